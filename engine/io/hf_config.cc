#include "engine/io/hf_config.h"

#include <cmath>

#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "engine/model/family.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 4096;

// Reads fields of one JSON object. null counts as absent, as in transformers.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const json* Find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  template <typename... Parts>
  absl::Status Fail(const char* name, const Parts&... parts) const {
    return InvalidArgument(where_, name, ": ", parts...);
  }
  absl::Status Missing(const char* name) const { return Fail(name, "is missing"); }

  absl::StatusOr<std::optional<int64_t>> OptionalInteger(const char* name, int64_t least, int64_t most) const {
    const json* value = Find(name);
    if (value == nullptr) return std::optional<int64_t>();
    const bool fits = value->is_number_integer() &&
                      (!value->is_number_unsigned() || value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
      return Fail(name, "expected an integer from ", least, " to ", most, ", got ", Shown(*value));
    }
    return std::optional<int64_t>(value->get<int64_t>());
  }
  absl::StatusOr<int64_t> Integer(const char* name, int64_t most) const {
    HONE_ASSIGN_OR_RETURN(const auto value, OptionalInteger(name, 1, most));
    if (!value) return Missing(name);
    return *value;
  }
  absl::StatusOr<std::optional<double>> OptionalNumber(const char* name) const {
    const json* value = Find(name);
    if (value == nullptr) return std::optional<double>();
    if (!value->is_number() || !std::isfinite(value->get<double>())) {
      return Fail(name, "expected a number, got ", Shown(*value));
    }
    return std::optional<double>(value->get<double>());
  }
  absl::StatusOr<double> PositiveNumber(const char* name) const {
    HONE_ASSIGN_OR_RETURN(const auto value, OptionalNumber(name));
    if (!value) return Missing(name);
    if (*value <= 0) return Fail(name, "must be above 0, got ", *value);
    return *value;
  }
  absl::StatusOr<bool> Bool(const char* name, bool absent) const {
    const json* value = Find(name);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) return Fail(name, "expected true or false, got ", Shown(*value));
    return value->get<bool>();
  }
  absl::StatusOr<std::optional<std::string>> OptionalString(const char* name) const {
    const json* value = Find(name);
    if (value == nullptr) return std::optional<std::string>();
    if (!value->is_string()) return Fail(name, "expected a string, got ", Shown(*value));
    return std::optional<std::string>(value->get<std::string>());
  }

  static std::string Shown(const json& value) {
    return EscapeForDisplay(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
  }

 private:
  const json& object_;
  std::string where_;
};

absl::Status ReadSizes(const Fields& fields, DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(config.vocab_size, fields.Integer("vocab_size", kMaxSize));
  HONE_ASSIGN_OR_RETURN(config.hidden_size, fields.Integer("hidden_size", kMaxSize));
  HONE_ASSIGN_OR_RETURN(config.intermediate_size, fields.Integer("intermediate_size", kMaxSize));
  HONE_ASSIGN_OR_RETURN(config.num_layers, fields.Integer("num_hidden_layers", kMaxLayers));
  HONE_ASSIGN_OR_RETURN(config.num_heads, fields.Integer("num_attention_heads", 65536));
  HONE_ASSIGN_OR_RETURN(const auto kv_heads, fields.OptionalInteger("num_key_value_heads", 1, 65536));
  config.num_kv_heads = kv_heads.value_or(config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0) {
    return fields.Fail("num_key_value_heads", config.num_kv_heads, " does not divide num_attention_heads ",
                       config.num_heads);
  }
  HONE_ASSIGN_OR_RETURN(const auto head_dim, fields.OptionalInteger("head_dim", 2, 65536));
  if (!head_dim && (config.qk_norm || config.hidden_size % config.num_heads != 0)) return fields.Missing("head_dim");
  config.head_dim = head_dim.value_or(config.hidden_size / config.num_heads);
  if (config.head_dim % 2 != 0) return fields.Fail("head_dim", config.head_dim, " is odd");
  HONE_ASSIGN_OR_RETURN(config.max_position, fields.Integer("max_position_embeddings", kMaxSize));
  HONE_ASSIGN_OR_RETURN(const double eps, fields.PositiveNumber("rms_norm_eps"));
  config.rms_norm_eps = static_cast<float>(eps);
  if (!(config.rms_norm_eps > 0) || !std::isfinite(config.rms_norm_eps))
    return fields.Fail("rms_norm_eps", "no fp32 number");
  return absl::OkStatus();
}

absl::Status ReadScaling(const json& object, std::string where, RopeScaling& scaling) {
  const Fields fields(object, std::move(where));
  HONE_ASSIGN_OR_RETURN(auto type, fields.OptionalString("rope_type"));
  if (!type) {
    HONE_ASSIGN_OR_RETURN(type, fields.OptionalString("type"));
  }
  if (!type) return fields.Missing("rope_type");
  if (*type == "default") return absl::OkStatus();
  if (*type == "linear") {
    scaling.kind = RopeScalingKind::kLinear;
    HONE_ASSIGN_OR_RETURN(scaling.factor, fields.PositiveNumber("factor"));
    return absl::OkStatus();
  }
  if (*type == "llama3") {
    scaling.kind = RopeScalingKind::kLlama3;
    HONE_ASSIGN_OR_RETURN(scaling.factor, fields.PositiveNumber("factor"));
    HONE_ASSIGN_OR_RETURN(scaling.low_freq_factor, fields.PositiveNumber("low_freq_factor"));
    HONE_ASSIGN_OR_RETURN(scaling.high_freq_factor, fields.PositiveNumber("high_freq_factor"));
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      return fields.Fail("high_freq_factor", "must be above low_freq_factor");
    }
    HONE_ASSIGN_OR_RETURN(scaling.original_max_position, fields.Integer("original_max_position_embeddings", kMaxSize));
    return absl::OkStatus();
  }
  return Unimplemented("config.json: rope scaling type '", EscapeForDisplay(*type),
                       "' is not implemented (implemented: default, linear, llama3)");
}

absl::Status ReadRope(const Fields& fields, DecoderConfig& config) {
  const json* parameters = fields.Find("rope_parameters");
  const json* scaling = fields.Find("rope_scaling");
  HONE_ASSIGN_OR_RETURN(auto theta, fields.OptionalNumber("rope_theta"));
  if (parameters != nullptr) {
    if (!parameters->is_object()) return fields.Fail("rope_parameters", "expected an object");
    for (const auto& [key, value] : parameters->items()) {
      if (value.is_object()) {
        return Unimplemented("config.json: rope_parameters: different values by layer type ('", EscapeForDisplay(key),
                             "') are not implemented");
      }
    }
    const Fields inner(*parameters, "config.json: rope_parameters.");
    HONE_ASSIGN_OR_RETURN(const auto inner_theta, inner.OptionalNumber("rope_theta"));
    if (theta && inner_theta && *theta != *inner_theta) {
      return inner.Fail("rope_theta", *inner_theta, " contradicts rope_theta ", *theta);
    }
    if (inner_theta) theta = inner_theta;
    HONE_ASSIGN_OR_RETURN(const auto partial, inner.OptionalNumber("partial_rotary_factor"));
    if (partial && *partial != 1)
      return Unimplemented("config.json: partial_rotary_factor ", *partial, " is not implemented");
    if (inner.Find("rope_type") != nullptr || inner.Find("type") != nullptr) {
      HONE_RETURN_IF_ERROR(ReadScaling(*parameters, "config.json: rope_parameters.", config.rope_scaling));
    }
  }
  if (scaling != nullptr) {
    if (!scaling->is_object()) return fields.Fail("rope_scaling", "expected an object");
    const RopeScaling before = config.rope_scaling;
    config.rope_scaling = {};
    HONE_RETURN_IF_ERROR(ReadScaling(*scaling, "config.json: rope_scaling.", config.rope_scaling));
    if (parameters != nullptr && before.kind != config.rope_scaling.kind) {
      return fields.Fail("rope_scaling", "contradicts rope_parameters");
    }
  }
  config.rope_theta = theta.value_or(10000);  // transformers' default for every family of the table
  if (config.rope_theta <= 0) return fields.Fail("rope_theta", "must be above 0, got ", config.rope_theta);
  return absl::OkStatus();
}

absl::Status ReadActivation(const Fields& fields, DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(const auto name, fields.OptionalString("hidden_act"));
  if (!name) return fields.Missing("hidden_act");
  if (*name == "silu" || *name == "swish") {
    config.activation = Activation::kSilu;
  } else if (*name == "gelu") {
    config.activation = Activation::kGelu;
  } else if (*name == "gelu_pytorch_tanh" || *name == "gelu_new") {
    config.activation = Activation::kGeluTanh;
  } else {
    return Unimplemented("config.json: hidden_act '", EscapeForDisplay(*name), "' is not implemented");
  }
  return absl::OkStatus();
}

absl::Status ReadBias(const Fields& fields, const Family& family, DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(const bool attention_bias, fields.Bool("attention_bias", false));
  switch (family.qkv_bias) {
    case Presence::kAlways:
      config.qkv_bias = true;
      break;
    case Presence::kByConfig:
      config.qkv_bias = attention_bias;
      break;
    case Presence::kNever:
      break;
  }
  // attention_bias also puts a bias on o_proj, which no family here has.
  if (attention_bias) return Unimplemented("config.json: attention_bias true is not implemented for ", family.name);
  HONE_ASSIGN_OR_RETURN(const bool mlp_bias, fields.Bool("mlp_bias", false));
  if (mlp_bias) return Unimplemented("config.json: mlp_bias true is not implemented");
  return absl::OkStatus();
}

// 0: none. Layers that differ in their window are refused.
absl::Status ReadWindow(const Fields& fields, const Family& family, DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(const auto window, fields.OptionalInteger("sliding_window", 1, kMaxSize));
  const json* use = fields.Find("use_sliding_window");
  HONE_ASSIGN_OR_RETURN(const bool used, fields.Bool("use_sliding_window", false));
  // Where use_sliding_window exists it decides, and max_window_layers says how many of the first layers see everything.
  bool active = window.has_value() && (use == nullptr || used);
  HONE_ASSIGN_OR_RETURN(const auto full_layers, fields.OptionalInteger("max_window_layers", 0, kMaxSize));
  if (use == nullptr && full_layers) active = false;  // Qwen's default of use_sliding_window
  bool mixed = false;
  if (active && use != nullptr) {
    if (!full_layers) return fields.Missing("max_window_layers");
    active = *full_layers < config.num_layers;
    mixed = active && *full_layers > 0;
  }
  if (const json* types = fields.Find("layer_types"); types != nullptr) {
    int64_t sliding = 0, count = 0;
    if (!types->is_array()) return fields.Fail("layer_types", "expected an array");
    for (const json& type : *types) {
      if (type != "full_attention" && type != "sliding_attention") {
        return Unimplemented("config.json: layer_types: ", Fields::Shown(type), " is not implemented");
      }
      sliding += type == "sliding_attention" ? 1 : 0;
      ++count;
    }
    if (count != config.num_layers)
      return fields.Fail("layer_types", count, " entries for ", config.num_layers, " layers");
    mixed = sliding > 0 && sliding < count;
    if (!mixed) active = sliding > 0;
    if (active && !window) return fields.Missing("sliding_window");
  }
  if (mixed)
    return Unimplemented("config.json: layers with and without a sliding window in one model are not implemented");
  if (!active) return absl::OkStatus();
  if (family.sliding_window == Presence::kNever) {
    return Unimplemented("config.json: sliding_window is not implemented for ", family.name);
  }
  config.sliding_window = *window;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const Fields& fields, const char* name) {
  std::vector<int32_t> ids;
  const json* value = fields.Find(name);
  if (value == nullptr) return ids;
  const auto add = [&](const json& one) {
    if (!one.is_number_integer() || one < 0 || one > INT32_MAX) return false;
    ids.push_back(one.get<int32_t>());
    return true;
  };
  bool ok = true;
  if (value->is_array()) {
    for (const json& one : *value) ok = ok && add(one);
    ok = ok && ids.size() <= 256;
  } else {
    ok = *value == -1 || add(*value);  // -1 is how some tools write "none"
  }
  if (!ok) return fields.Fail(name, "expected a token id or a list of token ids, got ", Fields::Shown(*value));
  return ids;
}

// Switches that change the mathematics and that no family of the table computes: refused unless they are off.
absl::Status RefuseUnknownMathematics(const Fields& fields) {
  static constexpr struct {
    const char* name;
    double off;
  } kSwitches[] = {{"partial_rotary_factor", 1},  {"final_logit_softcapping", 0},
                   {"attn_logit_softcapping", 0}, {"logit_scale", 1},
                   {"attention_dropout", 0},      {"embedding_multiplier", 1},
                   {"residual_multiplier", 1},    {"logits_scaling", 1},
                   {"num_local_experts", 0},      {"num_experts", 0}};
  for (const auto& [name, off] : kSwitches) {
    HONE_ASSIGN_OR_RETURN(const auto value, fields.OptionalNumber(name));
    if (value && *value != off) return Unimplemented("config.json: ", name, " ", *value, " is not implemented");
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> ReadQuantization(const Fields& fields) {
  const json* value = fields.Find("quantization_config");
  if (value == nullptr) return false;
  if (!value->is_object()) return fields.Fail("quantization_config", "expected an object");
  const Fields inner(*value, "config.json: quantization_config.");
  HONE_ASSIGN_OR_RETURN(const auto method, inner.OptionalString("quant_method"));
  HONE_ASSIGN_OR_RETURN(const bool four_bit, inner.Bool("load_in_4bit", false));
  HONE_ASSIGN_OR_RETURN(const auto type, inner.OptionalString("bnb_4bit_quant_type"));
  if (method.value_or("bitsandbytes") == "bitsandbytes" && four_bit && type.value_or("fp4") == "nf4") return true;
  return Unimplemented(
      "config.json: quantization_config: only bitsandbytes 4-bit nf4 is implemented, got quant_method ",
      method ? EscapeForDisplay(*method) : "(none)", four_bit ? ", 4-bit " : "",
      four_bit ? EscapeForDisplay(type.value_or("fp4")) : "");
}

absl::StatusOr<std::optional<DType>> ReadDtype(const Fields& fields) {
  HONE_ASSIGN_OR_RETURN(auto name, fields.OptionalString("dtype"));
  if (!name) {
    HONE_ASSIGN_OR_RETURN(name, fields.OptionalString("torch_dtype"));
  }
  if (!name) return std::optional<DType>();
  if (name->starts_with("torch.")) name = name->substr(6);
  if (*name == "float32") return std::optional<DType>(DType::kF32);
  if (*name == "float16") return std::optional<DType>(DType::kF16);
  if (*name == "bfloat16") return std::optional<DType>(DType::kBF16);
  return Unimplemented("config.json: dtype '", EscapeForDisplay(*name),
                       "' is not implemented (float32, float16, bfloat16)");
}

absl::Status ReadFamily(const Fields& fields, HfConfig& result, const Family*& family) {
  HONE_ASSIGN_OR_RETURN(const auto type, fields.OptionalString("model_type"));
  if (!type) return fields.Missing("model_type");
  auto found = FamilyByHfModelType(EscapeForDisplay(*type));  // escaping leaves every known name as it is
  if (!found.ok()) return Annotate(found.status(), "config.json");
  family = *found;
  result.decoder.family = std::string(family->name);
  result.decoder.qk_norm = family->qk_norm;
  if (const json* architectures = fields.Find("architectures"); architectures != nullptr) {
    if (!architectures->is_array()) return fields.Fail("architectures", "expected an array");
    if (!architectures->empty() && (*architectures)[0] != std::string(family->hf_architecture)) {
      return Unimplemented("config.json: architectures: ", Fields::Shown((*architectures)[0]),
                           " is not implemented, only ", family->hf_architecture, " for model_type ",
                           family->hf_model_type);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<json> ParseObject(std::string_view text, std::string_view file) {
  auto parsed = ParseJson(text, {.max_bytes = size_t{4} << 20, .max_depth = 16});
  if (!parsed.ok()) return Annotate(parsed.status(), file);
  if (!parsed->is_object()) return InvalidArgument(file, ": expected an object");
  return parsed;
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(std::string_view config_json, std::string_view generation_config_json) {
  HONE_ASSIGN_OR_RETURN(const json root, ParseObject(config_json, "config.json"));
  const Fields fields(root, "config.json: ");
  HfConfig result;
  DecoderConfig& config = result.decoder;
  const Family* family = nullptr;
  HONE_RETURN_IF_ERROR(ReadFamily(fields, result, family));
  HONE_RETURN_IF_ERROR(ReadSizes(fields, config));
  HONE_RETURN_IF_ERROR(ReadRope(fields, config));
  HONE_RETURN_IF_ERROR(ReadActivation(fields, config));
  HONE_RETURN_IF_ERROR(ReadBias(fields, *family, config));
  HONE_RETURN_IF_ERROR(ReadWindow(fields, *family, config));
  HONE_RETURN_IF_ERROR(RefuseUnknownMathematics(fields));
  HONE_ASSIGN_OR_RETURN(config.tie_word_embeddings, fields.Bool("tie_word_embeddings", false));
  HONE_ASSIGN_OR_RETURN(result.bitsandbytes_nf4, ReadQuantization(fields));
  HONE_ASSIGN_OR_RETURN(result.dtype, ReadDtype(fields));
  HONE_ASSIGN_OR_RETURN(config.eos_token_ids, ReadTokenIds(fields, "eos_token_id"));
  HONE_ASSIGN_OR_RETURN(const auto bos, ReadTokenIds(fields, "bos_token_id"));
  if (!bos.empty()) config.bos_token_id = bos.front();
  if (generation_config_json.empty()) return result;
  HONE_ASSIGN_OR_RETURN(const json generation, ParseObject(generation_config_json, "generation_config.json"));
  HONE_ASSIGN_OR_RETURN(const auto eos, ReadTokenIds(Fields(generation, "generation_config.json: "), "eos_token_id"));
  if (!eos.empty()) config.eos_token_ids = eos;
  return result;
}

namespace {

std::string_view TorchName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      FailInvariant(__FILE__, __LINE__, "a plain float dtype", "");
  }
}

std::string_view ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_pytorch_tanh";
  }
  FailInvariant(__FILE__, __LINE__, "activation", "");
}

// The shortest decimal that names the fp32 value: 1e-05 rather than 9.999999747378752e-06.
double ShortestDouble(float value) {
  char text[32];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, static_cast<double>(value));
    if (std::strtof(text, nullptr) == value) break;
  }
  return std::strtod(text, nullptr);
}

std::vector<int32_t> BosIds(const DecoderConfig& config) {
  if (config.bos_token_id < 0) return {};
  return {config.bos_token_id};
}

nlohmann::ordered_json TokenIds(const std::vector<int32_t>& ids) {
  if (ids.empty()) return nullptr;
  if (ids.size() == 1) return ids.front();
  return ids;
}

}  // namespace

std::string WriteHfConfig(const DecoderConfig& config, DType dtype) {
  const std::vector<int32_t> bos = BosIds(config);
  const Family& family = FamilyByName(config.family);
  nlohmann::ordered_json out;
  out["architectures"] = nlohmann::ordered_json::array({family.hf_architecture});
  out["model_type"] = family.hf_model_type;
  out["vocab_size"] = config.vocab_size;
  out["hidden_size"] = config.hidden_size;
  out["intermediate_size"] = config.intermediate_size;
  out["num_hidden_layers"] = config.num_layers;
  out["num_attention_heads"] = config.num_heads;
  out["num_key_value_heads"] = config.num_kv_heads;
  out["head_dim"] = config.head_dim;
  out["hidden_act"] = ActivationName(config.activation);
  out["max_position_embeddings"] = config.max_position;
  out["rms_norm_eps"] = ShortestDouble(config.rms_norm_eps);
  out["rope_theta"] = config.rope_theta;
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.kind == RopeScalingKind::kNone) {
    out["rope_scaling"] = nullptr;
  } else if (scaling.kind == RopeScalingKind::kLinear) {
    out["rope_scaling"] = {{"rope_type", "linear"}, {"factor", scaling.factor}};
  } else {
    out["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", scaling.factor},
                           {"low_freq_factor", scaling.low_freq_factor},
                           {"high_freq_factor", scaling.high_freq_factor},
                           {"original_max_position_embeddings", scaling.original_max_position}};
  }
  if (family.sliding_window == Presence::kByConfig) {
    // Qwen's configuration has a switch and a layer count, Mistral's only the window; transformers ignores what it
    // lacks.
    out["use_sliding_window"] = config.sliding_window > 0;
    out["sliding_window"] = config.sliding_window > 0 ? nlohmann::ordered_json(config.sliding_window) : nullptr;
    out["max_window_layers"] = config.sliding_window > 0 ? 0 : config.num_layers;
  }
  if (family.qkv_bias != Presence::kAlways) out["attention_bias"] = config.qkv_bias;
  out["attention_dropout"] = 0.0;
  out["tie_word_embeddings"] = config.tie_word_embeddings;
  out["bos_token_id"] = TokenIds(bos);
  out["eos_token_id"] = TokenIds(config.eos_token_ids);
  out["torch_dtype"] = TorchName(dtype);
  out["use_cache"] = true;
  // The format's version, not a program's. Without it transformers suspects every large vocabulary of an old Mistral
  // mistake and advises an option that would change the ids.
  out["transformers_version"] = "4.57.1";
  return out.dump(2) + "\n";
}

std::string WriteHfGenerationConfig(const DecoderConfig& config) {
  const std::vector<int32_t> bos = BosIds(config);
  nlohmann::ordered_json out;
  out["bos_token_id"] = TokenIds(bos);
  out["eos_token_id"] = TokenIds(config.eos_token_ids);
  return out.dump(2) + "\n";
}

}  // namespace hone
