#include "engine/train/adapter_files.h"

#include <vector>

#include "engine/io/safetensors.h"
#include "proto/base/status.h"

namespace hone {

LoraAdapter AdapterFromValues(const LoraLayout& layout, std::span<const float> values, const std::string& base_model) {
  LoraAdapter adapter;
  adapter.metadata.r = layout.config().r;
  adapter.metadata.alpha = layout.config().alpha;
  adapter.metadata.use_rslora = layout.config().use_rslora;
  adapter.metadata.base_model = base_model;
  for (const LoraMatrix& m : layout.matrices()) {
    LoraWeights w;
    w.layer = m.layer;
    w.kind = m.kind;
    w.r = m.r;
    w.scale = layout.config().scale();
    const auto a = values.subspan(m.a_offset, m.r * m.in), b = values.subspan(m.b_offset, m.out * m.r);
    w.a.assign(a.begin(), a.end());
    w.b.assign(b.begin(), b.end());
    adapter.weights.push_back(std::move(w));
  }
  return adapter;
}

absl::Status WriteLoraTensors(const std::string& path, const LoraLayout& layout, std::span<const float> values) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const LoraMatrix& m : layout.matrices()) {
    declarations.push_back({LoraTensorName(m.layer, m.kind, 'A'), DType::kF32, {m.r, m.in}});
    declarations.push_back({LoraTensorName(m.layer, m.kind, 'B'), DType::kF32, {m.out, m.r}});
  }
  HONE_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, declarations));
  auto bytes = [&](int64_t offset, int64_t count) {
    return std::string_view(reinterpret_cast<const char*>(values.data() + offset), count * sizeof(float));
  };
  for (const LoraMatrix& m : layout.matrices()) {
    HONE_RETURN_IF_ERROR(writer->Write(LoraTensorName(m.layer, m.kind, 'A'), bytes(m.a_offset, m.r * m.in)));
    HONE_RETURN_IF_ERROR(writer->Write(LoraTensorName(m.layer, m.kind, 'B'), bytes(m.b_offset, m.out * m.r)));
  }
  return writer->Finish();
}

}  // namespace hone
