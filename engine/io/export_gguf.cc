#include <algorithm>
#include <optional>

#include "engine/io/export_model.h"
#include "engine/io/gguf.h"
#include "engine/io/gguf_config.h"
#include "engine/io/gguf_quant.h"
#include "engine/io/model_source.h"
#include "engine/io/tokenizer_to_gguf.h"
#include "engine/model/family.h"
#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint32_t kFileTypeF16 = 1, kFileTypeQ8_0 = 7;  // general.file_type

void AddArchitecture(const DecoderConfig& config, GgufWriter& writer) {
  const std::string arch(FamilyByName(config.family).gguf_architecture);
  const auto u32 = [&](const char* name, int64_t value) {
    writer.AddU32(StrCat(arch, ".", name), static_cast<uint32_t>(value));
  };
  u32("vocab_size", config.vocab_size);
  u32("context_length", config.max_position);
  u32("embedding_length", config.hidden_size);
  u32("block_count", config.num_layers);
  u32("feed_forward_length", config.intermediate_size);
  u32("attention.head_count", config.num_heads);
  u32("attention.head_count_kv", config.num_kv_heads);
  u32("attention.key_length", config.head_dim);
  u32("attention.value_length", config.head_dim);
  u32("rope.dimension_count", config.head_dim);
  if (config.sliding_window > 0) u32("attention.sliding_window", config.sliding_window);
  writer.AddF32(arch + ".attention.layer_norm_rms_epsilon", config.rms_norm_eps);
  writer.AddF32(arch + ".rope.freq_base", static_cast<float>(config.rope_theta));
  if (config.rope_scaling.kind == RopeScalingKind::kLinear) {
    writer.AddString(arch + ".rope.scaling.type", "linear");
    writer.AddF32(arch + ".rope.scaling.factor", static_cast<float>(config.rope_scaling.factor));
  }
}

absl::StatusOr<std::optional<GgufVocabulary>> VocabularyOf(const ModelFiles& model) {
  if (model.kind() == ModelSourceKind::kGguf) {
    HONE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(model.source()));
    HONE_ASSIGN_OR_RETURN(GgufVocabulary vocabulary, VocabularyFromGguf(file));
    return std::optional<GgufVocabulary>(std::move(vocabulary));
  }
  HONE_ASSIGN_OR_RETURN(const auto tokenizer, model.OpenTokenizer());
  const std::string json = tokenizer->ToTokenizerJson();
  if (json.empty()) return std::optional<GgufVocabulary>();  // random, without a tokenizer
  HONE_ASSIGN_OR_RETURN(GgufVocabulary vocabulary,
                        VocabularyFromTokenizerJson(json, *tokenizer, model.config().vocab_size));
  return std::optional<GgufVocabulary>(std::move(vocabulary));
}

absl::Status AddTokenizer(const ModelFiles& model, GgufWriter& writer) {
  HONE_ASSIGN_OR_RETURN(const std::optional<GgufVocabulary> vocabulary, VocabularyOf(model));
  if (!vocabulary) {
    writer.AddString("tokenizer.ggml.model", "no_vocab");
    return absl::OkStatus();
  }
  writer.AddString("tokenizer.ggml.model", vocabulary->model);
  writer.AddString("tokenizer.ggml.pre", vocabulary->pre);
  writer.AddStrings("tokenizer.ggml.tokens", vocabulary->tokens);
  if (!vocabulary->token_types.empty()) writer.AddI32s("tokenizer.ggml.token_type", vocabulary->token_types);
  writer.AddStrings("tokenizer.ggml.merges", vocabulary->merges);
  const auto id = [&](const char* key, std::optional<int32_t> value) {
    if (value) writer.AddU32(key, static_cast<uint32_t>(*value));
  };
  id("tokenizer.ggml.bos_token_id", vocabulary->bos);
  id("tokenizer.ggml.eos_token_id", vocabulary->eos);
  id("tokenizer.ggml.padding_token_id", vocabulary->pad);
  id("tokenizer.ggml.unknown_token_id", vocabulary->unk);
  writer.AddBool("tokenizer.ggml.add_bos_token", vocabulary->add_bos);
  writer.AddBool("tokenizer.ggml.add_eos_token", vocabulary->add_eos);
  if (!model.chat_template().empty()) writer.AddString("tokenizer.chat_template", model.chat_template());
  return absl::OkStatus();
}

// Llama 3's scaling as GGUF has it: what each rotary frequency is divided by.
std::vector<float> FrequencyFactors(const DecoderConfig& config) {
  DecoderConfig plain = config;
  plain.rope_scaling = {};
  const std::vector<float> base = RopeInverseFrequencies(plain), scaled = RopeInverseFrequencies(config);
  std::vector<float> factors(base.size());
  for (size_t i = 0; i < base.size(); ++i) factors[i] = base[i] / scaled[i];
  return factors;
}

DType StoredType(std::string_view name, const StoredWeight& weight, DType dtype) {
  if (IsVector(name)) return DType::kF32;
  if (weight.cols % BlockElements(dtype) != 0) return DType::kF16;  // rows that are not whole blocks
  return dtype;
}

// Half h, index i of a head: from row h*D/2 + i to row 2*i + h.
void Interleave(int64_t rows, int64_t row_elements, int64_t head_dim, std::vector<float>* values) {
  std::vector<float> out(values->size());
  const int64_t half = head_dim / 2;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / head_dim, within = row % head_dim;
    const int64_t to = head * head_dim + (within % half) * 2 + within / half;
    std::copy_n(values->begin() + row * row_elements, row_elements, out.begin() + to * row_elements);
  }
  values->swap(out);
}

bool IsPermuted(const DecoderConfig& config, std::string_view name) {
  if (!FamilyByName(config.family).gguf_permutes_qk) return false;
  return name.find(".q_proj.") != std::string_view::npos || name.find(".k_proj.") != std::string_view::npos;
}

absl::Status WriteWeights(const ModelFiles& model, const LoraAdapter* adapter, DType dtype, GgufWriter& writer,
                          const ExportProgress& progress) {
  const DecoderConfig& config = model.config();
  std::vector<float> values;
  std::string bytes;
  int64_t done = 0;
  for (const std::string& name : model.names()) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
    HONE_RETURN_IF_ERROR(ReadMergedWeight(model, adapter, name, &values));
    if (IsPermuted(config, name)) {
      const int64_t rows = IsVector(name) ? weight.cols : weight.rows;
      Interleave(rows, static_cast<int64_t>(values.size()) / rows, config.head_dim, &values);
    }
    const DType stored = StoredType(name, weight, dtype);
    bytes.resize(*StorageBytes(stored, values.size()));
    EncodeFromFloat(stored, values.data(), values.size(), bytes.data());
    HONE_RETURN_IF_ERROR(writer.Write(*GgufTensorName(name), bytes));
    ++done;
    if (progress && !progress(done, static_cast<int64_t>(model.names().size()))) {
      return absl::CancelledError("the export was cancelled");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FileReceipt> ExportGguf(const ModelFiles& model, const LoraAdapter* adapter, DType dtype,
                                       const std::string& path, const ExportProgress& progress) {
  HONE_CHECK(dtype == DType::kF16 || dtype == DType::kQ8_0, "GGUF exports are f16 or q8_0");
  const DecoderConfig& config = model.config();
  const size_t slash = path.find_last_of('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const std::string file = slash == std::string::npos ? path : path.substr(slash + 1);
  HONE_RETURN_IF_ERROR(MakeDirectories(directory));
  GgufWriter writer;
  writer.AddString("general.architecture", FamilyByName(config.family).gguf_architecture);
  writer.AddString("general.type", "model");
  writer.AddString("general.name", file.substr(0, file.find_last_of('.')));
  writer.AddU32("general.file_type", dtype == DType::kF16 ? kFileTypeF16 : kFileTypeQ8_0);
  writer.AddU32("general.quantization_version", 2);
  AddArchitecture(config, writer);
  HONE_RETURN_IF_ERROR(AddTokenizer(model, writer));
  const bool has_factors = config.rope_scaling.kind == RopeScalingKind::kLlama3;
  const std::vector<float> factors = has_factors ? FrequencyFactors(config) : std::vector<float>();
  if (has_factors) HONE_RETURN_IF_ERROR(writer.AddTensor("rope_freqs.weight", DType::kF32, {config.head_dim / 2}));
  for (const std::string& name : model.names()) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
    std::vector<int64_t> shape = {weight.cols};
    if (!IsVector(name)) shape.insert(shape.begin(), weight.rows);
    HONE_RETURN_IF_ERROR(writer.AddTensor(*GgufTensorName(name), StoredType(name, weight, dtype), std::move(shape)));
  }
  HONE_RETURN_IF_ERROR(writer.Begin(path));
  if (has_factors) {
    HONE_RETURN_IF_ERROR(
        writer.Write("rope_freqs.weight", {reinterpret_cast<const char*>(factors.data()), factors.size() * 4}));
  }
  HONE_RETURN_IF_ERROR(WriteWeights(model, adapter, dtype, writer, progress));
  HONE_RETURN_IF_ERROR(writer.Finish());
  return ReceiptOf(directory, file);
}

}  // namespace hone
