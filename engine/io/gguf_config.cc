#include "engine/io/gguf_config.h"

#include <algorithm>
#include <cmath>

#include "engine/io/gguf_quant.h"
#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "engine/model/family.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 30;

// Keys of one architecture: "llama.block_count".
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture) : file_(file), architecture_(std::move(architecture)) {}

  std::string Key(std::string_view name) const { return StrCat(architecture_, ".", name); }
  bool Has(std::string_view name) const { return file_.Has(Key(name)); }
  absl::StatusOr<int64_t> Integer(std::string_view name, int64_t most = kMaxSize) const {
    HONE_ASSIGN_OR_RETURN(const int64_t value, file_.Integer(Key(name)));
    if (value < 1 || value > most) {
      return InvalidArgument(file_.path(), ": ", Key(name), " is ", value, ", expected 1 to ", most);
    }
    return value;
  }
  absl::StatusOr<int64_t> Integer(std::string_view name, int64_t most, int64_t absent) const {
    if (!Has(name)) return absent;
    return Integer(name, most);
  }
  absl::StatusOr<double> Positive(std::string_view name) const {
    HONE_ASSIGN_OR_RETURN(const double value, file_.Float(Key(name)));
    if (!std::isfinite(value) || value <= 0) return InvalidArgument(file_.path(), ": ", Key(name), " is not above 0");
    return value;
  }
  template <typename... Parts>
  absl::Status Refuse(std::string_view name, const Parts&... parts) const {
    return Unimplemented(file_.path(), ": ", Key(name), ": ", parts...);
  }

 private:
  const GgufFile& file_;
  std::string architecture_;
};

absl::Status ReadSizes(const GgufFile& file, const Keys& keys, DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(config.num_layers, keys.Integer("block_count", 4096));
  HONE_ASSIGN_OR_RETURN(config.hidden_size, keys.Integer("embedding_length"));
  HONE_ASSIGN_OR_RETURN(config.intermediate_size, keys.Integer("feed_forward_length"));
  HONE_ASSIGN_OR_RETURN(config.num_heads, keys.Integer("attention.head_count", 65536));
  HONE_ASSIGN_OR_RETURN(config.num_kv_heads, keys.Integer("attention.head_count_kv", 65536, config.num_heads));
  HONE_ASSIGN_OR_RETURN(config.max_position, keys.Integer("context_length"));
  if (config.num_heads % config.num_kv_heads != 0) {
    return InvalidArgument(file.path(), ": ", keys.Key("attention.head_count_kv"), " ", config.num_kv_heads,
                           " does not divide ", keys.Key("attention.head_count"), " ", config.num_heads);
  }
  HONE_ASSIGN_OR_RETURN(config.head_dim,
                        keys.Integer("attention.key_length", 65536, config.hidden_size / config.num_heads));
  HONE_ASSIGN_OR_RETURN(const int64_t value_dim, keys.Integer("attention.value_length", 65536, config.head_dim));
  if (value_dim != config.head_dim) {
    return keys.Refuse("attention.value_length", value_dim, " differs from the key length ", config.head_dim);
  }
  if (config.head_dim < 2 || config.head_dim % 2 != 0) {
    return InvalidArgument(file.path(), ": a head of ", config.head_dim, " values cannot be rotated");
  }
  HONE_ASSIGN_OR_RETURN(const int64_t rotated, keys.Integer("rope.dimension_count", 65536, config.head_dim));
  if (rotated != config.head_dim) {
    return keys.Refuse("rope.dimension_count", rotated, " of ", config.head_dim, " values rotated is not implemented");
  }
  HONE_ASSIGN_OR_RETURN(const double eps, keys.Positive("attention.layer_norm_rms_epsilon"));
  config.rms_norm_eps = static_cast<float>(eps);
  const GgufTensor* embedding = file.Find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return InvalidArgument(file.path(), ": there is no matrix token_embd.weight");
  }
  config.vocab_size = embedding->shape[0];
  if (config.vocab_size > kMaxSize) return InvalidArgument(file.path(), ": token_embd.weight has too many rows");
  return absl::OkStatus();
}

// rope_freqs.weight divides each rotary frequency. It is how converters store llama3's scaling; nothing else is
// accepted, and then only if the published constants reproduce every value.
absl::Status ReadFrequencyFactors(const GgufFile& file, DecoderConfig& config) {
  const GgufTensor* tensor = file.Find("rope_freqs.weight");
  if (tensor == nullptr) return absl::OkStatus();
  const int64_t half = config.head_dim / 2;
  if (tensor->dtype != DType::kF32 || tensor->shape != std::vector<int64_t>{half}) {
    return InvalidArgument(file.path(), ": rope_freqs.weight must be ", half, " F32 values");
  }
  std::vector<float> factors(static_cast<size_t>(half));
  DecodeToFloat(DType::kF32, tensor->bytes.data(), static_cast<uint64_t>(half), factors.data());
  const float largest = *std::max_element(factors.begin(), factors.end());
  const auto is_one = [](float f) { return f == 1.0f; };
  if (std::all_of(factors.begin(), factors.end(), is_one)) return absl::OkStatus();
  if (config.rope_scaling.kind != RopeScalingKind::kNone) {
    return Unimplemented(file.path(), ": rope_freqs.weight together with rope.scaling is not implemented");
  }
  DecoderConfig plain = config;
  config.rope_scaling = {.kind = RopeScalingKind::kLlama3,
                         .factor = largest,
                         .low_freq_factor = 1,
                         .high_freq_factor = 4,
                         .original_max_position = 8192};
  const std::vector<float> base = RopeInverseFrequencies(plain), scaled = RopeInverseFrequencies(config);
  for (int64_t i = 0; i < half; ++i) {
    const double expected = static_cast<double>(base[i]) / scaled[i];
    if (!(std::fabs(factors[i] - expected) <= 1e-3 * expected)) {
      return Unimplemented(file.path(), ": rope_freqs.weight[", i, "] is ", factors[i],
                           ", which is not Llama 3's scaling (factor ", largest,
                           ", low 1, high 4, 8192 positions); no other is implemented");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufFile& file, const Keys& keys, DecoderConfig& config) {
  config.rope_theta = 10000;  // GGUF's default for absent keys
  if (keys.Has("rope.freq_base")) {
    HONE_ASSIGN_OR_RETURN(config.rope_theta, keys.Positive("rope.freq_base"));
  }
  std::string type = "none";
  if (keys.Has("rope.scaling.type")) {
    HONE_ASSIGN_OR_RETURN(type, file.String(keys.Key("rope.scaling.type")));
  } else if (keys.Has("rope.scale_linear")) {
    return keys.Refuse("rope.scale_linear", "the old spelling is not implemented");
  }
  if (type == "linear") {
    config.rope_scaling.kind = RopeScalingKind::kLinear;
    HONE_ASSIGN_OR_RETURN(config.rope_scaling.factor, keys.Positive("rope.scaling.factor"));
  } else if (type != "none" && !type.empty()) {
    return keys.Refuse("rope.scaling.type", "'", EscapeForDisplay(type), "' is not implemented (none, linear)");
  }
  return ReadFrequencyFactors(file, config);
}

absl::Status ReadTokenIds(const GgufFile& file, DecoderConfig& config) {
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (!file.Has(key)) continue;
    HONE_ASSIGN_OR_RETURN(const int64_t id, file.Integer(key));
    if (id < 0 || id >= config.vocab_size) continue;  // 2^32 - 1 is how some writers say "none"
    const auto id32 = static_cast<int32_t>(id);
    auto& ids = config.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id32) == ids.end()) ids.push_back(id32);
  }
  if (!file.Has("tokenizer.ggml.bos_token_id")) return absl::OkStatus();
  HONE_ASSIGN_OR_RETURN(const int64_t bos, file.Integer("tokenizer.ggml.bos_token_id"));
  if (bos >= 0 && bos < config.vocab_size) config.bos_token_id = static_cast<int32_t>(bos);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<int32_t>> OptionalId(const GgufFile& file, std::string_view key, size_t tokens) {
  if (!file.Has(key)) return std::optional<int32_t>();
  HONE_ASSIGN_OR_RETURN(const int64_t id, file.Integer(key));
  if (id < 0 || static_cast<uint64_t>(id) >= tokens) return std::optional<int32_t>();
  return std::optional<int32_t>(static_cast<int32_t>(id));
}

absl::StatusOr<bool> OptionalBool(const GgufFile& file, std::string_view key) {
  if (!file.Has(key)) return false;
  return file.Bool(key);
}

}  // namespace

absl::StatusOr<DecoderConfig> DecoderConfigFromGguf(const GgufFile& file) {
  HONE_ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  auto family = FamilyByGgufArchitecture(EscapeForDisplay(architecture));
  if (!family.ok()) return Annotate(family.status(), file.path());
  const Keys keys(file, architecture);
  DecoderConfig config;
  config.family = std::string((*family)->name);
  config.qk_norm = (*family)->qk_norm;
  config.activation = Activation::kSilu;  // what every architecture of the table has
  HONE_RETURN_IF_ERROR(ReadSizes(file, keys, config));
  HONE_RETURN_IF_ERROR(ReadRope(file, keys, config));
  HONE_ASSIGN_OR_RETURN(const int64_t experts, keys.Has("expert_count") ? file.Integer(keys.Key("expert_count")) : 0);
  if (experts != 0) return keys.Refuse("expert_count", experts, " experts are not implemented");
  HONE_ASSIGN_OR_RETURN(const int64_t window, keys.Integer("attention.sliding_window", kMaxSize, 0));
  if (window > 0 && (*family)->sliding_window == Presence::kNever) {
    return keys.Refuse("attention.sliding_window", "not implemented for ", (*family)->name);
  }
  config.sliding_window = window;
  config.tie_word_embeddings = file.Find("output.weight") == nullptr;
  const bool has_bias = file.Find("blk.0.attn_q.bias") != nullptr;
  if (has_bias && (*family)->qkv_bias == Presence::kNever) {
    return Unimplemented(file.path(), ": blk.0.attn_q.bias: a bias is not implemented for ", (*family)->name);
  }
  config.qkv_bias = (*family)->qkv_bias == Presence::kAlways || has_bias;
  HONE_RETURN_IF_ERROR(ReadTokenIds(file, config));
  return config;
}

absl::StatusOr<GgufVocabulary> VocabularyFromGguf(const GgufFile& file) {
  GgufVocabulary vocabulary;
  HONE_ASSIGN_OR_RETURN(vocabulary.model, file.String("tokenizer.ggml.model"));
  if (file.Has("tokenizer.ggml.pre")) {
    HONE_ASSIGN_OR_RETURN(vocabulary.pre, file.String("tokenizer.ggml.pre"));
  }
  HONE_ASSIGN_OR_RETURN(vocabulary.tokens, file.Strings("tokenizer.ggml.tokens"));
  if (file.Has("tokenizer.ggml.token_type")) {
    HONE_ASSIGN_OR_RETURN(vocabulary.token_types, file.Integers("tokenizer.ggml.token_type"));
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != vocabulary.tokens.size()) {
    return InvalidArgument(file.path(), ": tokenizer.ggml.token_type has ", vocabulary.token_types.size(),
                           " entries for ", vocabulary.tokens.size(), " tokens");
  }
  if (file.Has("tokenizer.ggml.merges")) {
    HONE_ASSIGN_OR_RETURN(vocabulary.merges, file.Strings("tokenizer.ggml.merges"));
  }
  const size_t count = vocabulary.tokens.size();
  HONE_ASSIGN_OR_RETURN(vocabulary.bos, OptionalId(file, "tokenizer.ggml.bos_token_id", count));
  HONE_ASSIGN_OR_RETURN(vocabulary.eos, OptionalId(file, "tokenizer.ggml.eos_token_id", count));
  HONE_ASSIGN_OR_RETURN(vocabulary.pad, OptionalId(file, "tokenizer.ggml.padding_token_id", count));
  HONE_ASSIGN_OR_RETURN(vocabulary.unk, OptionalId(file, "tokenizer.ggml.unknown_token_id", count));
  HONE_ASSIGN_OR_RETURN(vocabulary.add_bos, OptionalBool(file, "tokenizer.ggml.add_bos_token"));
  HONE_ASSIGN_OR_RETURN(vocabulary.add_eos, OptionalBool(file, "tokenizer.ggml.add_eos_token"));
  return vocabulary;
}

std::optional<std::string> ChatTemplateFromGguf(const GgufFile& file) {
  auto text = file.String("tokenizer.chat_template");
  if (!text.ok()) return std::nullopt;
  return *std::move(text);
}

std::optional<std::string> GgufTensorName(std::string_view name) {
  static constexpr std::pair<std::string_view, std::string_view> kWhole[] = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"}};
  static constexpr std::pair<std::string_view, std::string_view> kInLayer[] = {
      {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
      {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  for (const auto& [hf, gguf] : kWhole) {
    if (name == hf) return std::string(gguf);
  }
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  const size_t dot = name.find('.');
  if (dot == std::string_view::npos || dot == 0 || dot > 9) return std::nullopt;
  const std::string_view layer = name.substr(0, dot);
  if (layer.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  name.remove_prefix(dot + 1);
  for (const std::string_view suffix : {".weight", ".bias"}) {
    if (!name.ends_with(suffix)) continue;
    const std::string_view module = name.substr(0, name.size() - suffix.size());
    for (const auto& [hf, gguf] : kInLayer) {
      if (module == hf) return StrCat("blk.", layer, ".", gguf, suffix);
    }
  }
  return std::nullopt;
}

}  // namespace hone
