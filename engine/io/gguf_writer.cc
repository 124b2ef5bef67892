#include <map>

#include "engine/io/gguf.h"
#include "engine/io/output_file.h"
#include "proto/base/checked.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint64_t kAlignment = 32;

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}
void PutString(std::string& out, std::string_view text) {
  Put<uint64_t>(out, text.size());
  out.append(text);
}
void PutType(std::string& out, GgufType type) { Put<uint32_t>(out, static_cast<uint32_t>(type)); }

absl::StatusOr<uint32_t> GgmlNumber(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 8;
    case DType::kBF16:
      return 30;
    default:
      return InvalidArgument("GGUF files are not written with ", DTypeName(dtype), " tensors");
  }
}

uint64_t Aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

struct GgufWriter::State {
  struct Slot {
    uint64_t offset = 0, bytes = 0;
    bool written = false;
  };
  std::string metadata, tensor_list, path;
  uint64_t keys = 0;
  uint64_t data_bytes = 0;
  std::map<std::string, Slot, std::less<>> slots;
  std::unique_ptr<OutputFile> file;

  void Key(std::string_view key, GgufType type) {
    HONE_CHECK(file == nullptr, "metadata after Begin");
    PutString(metadata, key);
    PutType(metadata, type);
    ++keys;
  }
  template <typename T>
  void NumberArray(std::string_view key, GgufType element, const std::vector<T>& values) {
    Key(key, GgufType::kArray);
    PutType(metadata, element);
    Put<uint64_t>(metadata, values.size());
    for (T value : values) Put<T>(metadata, value);
  }
};

GgufWriter::GgufWriter() : state_(std::make_unique<State>()) {}
GgufWriter::~GgufWriter() = default;

void GgufWriter::AddString(std::string_view key, std::string_view value) {
  state_->Key(key, GgufType::kString);
  PutString(state_->metadata, value);
}
void GgufWriter::AddU32(std::string_view key, uint32_t value) {
  state_->Key(key, GgufType::kU32);
  Put(state_->metadata, value);
}
void GgufWriter::AddF32(std::string_view key, float value) {
  state_->Key(key, GgufType::kF32);
  Put(state_->metadata, value);
}
void GgufWriter::AddBool(std::string_view key, bool value) {
  state_->Key(key, GgufType::kBool);
  Put<uint8_t>(state_->metadata, value ? 1 : 0);
}
void GgufWriter::AddStrings(std::string_view key, const std::vector<std::string>& values) {
  state_->Key(key, GgufType::kArray);
  PutType(state_->metadata, GgufType::kString);
  Put<uint64_t>(state_->metadata, values.size());
  for (const std::string& value : values) PutString(state_->metadata, value);
}
void GgufWriter::AddI32s(std::string_view key, const std::vector<int32_t>& values) {
  state_->NumberArray(key, GgufType::kI32, values);
}
void GgufWriter::AddF32s(std::string_view key, const std::vector<float>& values) {
  state_->NumberArray(key, GgufType::kF32, values);
}

absl::Status GgufWriter::AddTensor(std::string_view name, DType dtype, std::vector<int64_t> shape) {
  HONE_CHECK(state_->file == nullptr, "tensor after Begin");
  HONE_ASSIGN_OR_RETURN(const uint32_t number, GgmlNumber(dtype));
  const auto elements = CheckedProduct(shape);
  const auto bytes = elements ? StorageBytes(dtype, *elements) : std::nullopt;
  if (shape.empty() || shape.size() > 4 || !bytes || shape.back() % BlockElements(dtype) != 0) {
    return InvalidArgument("tensor ", name, ": its shape cannot be stored as ", DTypeName(dtype));
  }
  if (!state_->slots.emplace(std::string(name), State::Slot{.offset = state_->data_bytes, .bytes = *bytes}).second) {
    return InvalidArgument("tensor ", name, " is declared twice");
  }
  PutString(state_->tensor_list, name);
  Put<uint32_t>(state_->tensor_list, static_cast<uint32_t>(shape.size()));
  for (auto size = shape.rbegin(); size != shape.rend(); ++size) Put<uint64_t>(state_->tensor_list, *size);
  Put<uint32_t>(state_->tensor_list, number);
  Put<uint64_t>(state_->tensor_list, state_->data_bytes);
  state_->data_bytes += Aligned(*bytes);
  return absl::OkStatus();
}

absl::Status GgufWriter::Begin(const std::string& path) {
  std::string header = "GGUF";
  Put<uint32_t>(header, 3);
  Put<uint64_t>(header, state_->slots.size());
  Put<uint64_t>(header, state_->keys);
  header += state_->metadata;
  header += state_->tensor_list;
  header.resize(Aligned(header.size()), '\0');
  HONE_ASSIGN_OR_RETURN(state_->file, OutputFile::Create(path));
  HONE_RETURN_IF_ERROR(state_->file->Reserve(header.size() + state_->data_bytes));
  for (auto& [name, slot] : state_->slots) slot.offset += header.size();
  return state_->file->WriteAt(0, header);
}

absl::Status GgufWriter::Write(std::string_view name, std::string_view bytes) {
  const auto slot = state_->slots.find(name);
  HONE_CHECK(state_->file != nullptr && slot != state_->slots.end() && !slot->second.written, "tensor ", name);
  HONE_CHECK(slot->second.bytes == bytes.size(), "tensor ", name, " takes ", slot->second.bytes, " bytes, got ",
             bytes.size());
  slot->second.written = true;
  return state_->file->WriteAt(slot->second.offset, bytes);
}

absl::Status GgufWriter::Finish() {
  for (const auto& [name, slot] : state_->slots) HONE_CHECK(slot.written, "tensor ", name, " was not written");
  return state_->file->Commit();
}

}  // namespace hone
