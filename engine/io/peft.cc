#include "engine/io/peft.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/io/gguf_quant.h"
#include "engine/io/safetensors.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using nlohmann::json;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr char kConfigFile[] = "adapter_config.json";
constexpr char kWeightsFile[] = "adapter_model.safetensors";

// PEFT matches a pattern's key with the end of a module's name, at a dot.
bool Matches(std::string_view pattern, std::string_view module) {
  if (!module.ends_with(pattern)) return false;
  return module.size() == pattern.size() || module[module.size() - pattern.size() - 1] == '.';
}

template <typename T>
T PatternValue(const std::map<std::string, T>& patterns, std::string_view module, T otherwise) {
  for (const auto& [pattern, value] : patterns) {
    if (Matches(pattern, module)) return value;
  }
  return otherwise;
}

bool IsOff(const json& value) {
  return value.is_null() || value == false || ((value.is_object() || value.is_array()) && value.empty());
}

absl::Status RefuseUnimplemented(const json& config) {
  for (const char* name : {"use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication",
                           "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "target_parameters",
                           "arrow_config", "megatron_config", "loftq_config", "eva_config", "corda_config"}) {
    const auto found = config.find(name);
    if (found != config.end() && !IsOff(*found)) {
      return Unimplemented(kConfigFile, ": ", name, " is not implemented");
    }
  }
  const auto bias = config.find("bias");
  if (bias != config.end() && *bias != "none" && !bias->is_null()) {
    return Unimplemented(kConfigFile, ": bias must be \"none\"");
  }
  // These start by changing the base's weights: the adapter alone is then not what was trained.
  const auto init = config.find("init_lora_weights");
  if (init != config.end() && init->is_string() && *init != "gaussian" && *init != "orthogonal" && *init != "eva") {
    return Unimplemented(kConfigFile, ": init_lora_weights '", EscapeForDisplay(init->get<std::string>()),
                         "' is not implemented");
  }
  return absl::OkStatus();
}

absl::StatusOr<double> PositiveNumber(const json& value, std::string_view name) {
  // Of fp32's range, since that is what it is multiplied in.
  if (!value.is_number() || !std::isfinite(value.get<float>()) || !(value.get<float>() > 0)) {
    return InvalidArgument(kConfigFile, ": ", name, " must be a number above 0");
  }
  return value.get<double>();
}

absl::StatusOr<int64_t> Rank(const json& value, std::string_view name) {
  if (!value.is_number_integer() || value < 1 || value > 65536) {
    return InvalidArgument(kConfigFile, ": ", name, " must be an integer from 1 to 65536");
  }
  return value.get<int64_t>();
}

template <typename T, typename Read>
absl::Status ReadPattern(const json& config, const char* name, std::map<std::string, T>& out, Read read) {
  const auto found = config.find(name);
  if (found == config.end() || found->is_null()) return absl::OkStatus();
  if (!found->is_object()) return InvalidArgument(kConfigFile, ": ", name, " must be an object");
  for (const auto& [key, value] : found->items()) {
    const bool plain = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
      return std::isalnum(c) || c == '_' || c == '.';
    });
    if (!plain) {
      return Unimplemented(kConfigFile, ": ", name, ": '", EscapeForDisplay(key),
                           "': regular expressions are not implemented, only module names");
    }
    HONE_ASSIGN_OR_RETURN(out[key], read(value, StrCat(name, ".", key)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> ReadMatrix(const SafetensorsFile& file, const std::string& name, int64_t rows,
                                              int64_t cols) {
  const SafetensorsTensor* tensor = file.Find(name);
  if (tensor == nullptr) return InvalidArgument(file.path(), ": ", name, " is missing");
  if (tensor->shape != std::vector<int64_t>{rows, cols}) {
    std::string shape;
    for (int64_t size : tensor->shape) shape += StrCat(shape.empty() ? "" : ", ", size);
    return InvalidArgument(file.path(), ": ", name, " is [", shape, "], expected [", rows, ", ", cols, "]");
  }
  if (tensor->dtype != DType::kF32 && tensor->dtype != DType::kF16 && tensor->dtype != DType::kBF16) {
    return Unimplemented(file.path(), ": ", name, " is ", tensor->type, ", expected F32, F16 or BF16");
  }
  std::vector<float> values(tensor->elements);
  DecodeToFloat(*tensor->dtype, tensor->bytes.data(), tensor->elements, values.data());
  return values;
}

// What target_modules and layers_to_transform say: short names if every named layer has the same modules, else full
// names.
struct Targets {
  std::set<std::string> modules;
  std::vector<int64_t> layers;  // empty: all
};

Targets TargetsOf(const LoraAdapter& adapter, const DecoderConfig& config) {
  std::map<int64_t, std::set<LinearKind>> by_layer;
  for (const LoraWeights& weights : adapter.weights) by_layer[weights.layer].insert(weights.kind);
  Targets targets;
  const bool grid = std::all_of(by_layer.begin(), by_layer.end(),
                                [&](const auto& layer) { return layer.second == by_layer.begin()->second; });
  for (const LoraWeights& weights : adapter.weights) {
    targets.modules.insert(grid ? LinearShortName(weights.kind) : LinearModuleName(weights.layer, weights.kind));
  }
  if (grid && static_cast<int64_t>(by_layer.size()) < config.num_layers) {
    for (const auto& [layer, kinds] : by_layer) targets.layers.push_back(layer);
  }
  return targets;
}

std::string WriteConfig(const LoraAdapter& adapter, const DecoderConfig& config) {
  const LoraMetadata& metadata = adapter.metadata;
  const Targets targets = TargetsOf(adapter, config);
  nlohmann::ordered_json ranks = nlohmann::ordered_json::object(), alphas = nlohmann::ordered_json::object();
  for (const LoraWeights& weights : adapter.weights) {
    const std::string module = LinearModuleName(weights.layer, weights.kind);
    if (weights.r != metadata.r) ranks[module] = weights.r;
  }
  for (const auto& [pattern, alpha] : metadata.alpha_pattern) alphas[pattern] = alpha;
  nlohmann::ordered_json out;
  out["peft_type"] = "LORA";
  out["task_type"] = "CAUSAL_LM";
  out["base_model_name_or_path"] = metadata.base_model;
  out["r"] = metadata.r;
  if (metadata.alpha == std::floor(metadata.alpha) && std::fabs(metadata.alpha) < 1e15) {
    out["lora_alpha"] = static_cast<int64_t>(metadata.alpha);
  } else {
    out["lora_alpha"] = metadata.alpha;
  }
  out["lora_dropout"] = metadata.dropout;
  out["use_rslora"] = metadata.use_rslora;
  out["target_modules"] = std::vector<std::string>(targets.modules.begin(), targets.modules.end());
  out["layers_to_transform"] = nullptr;
  if (!targets.layers.empty()) out["layers_to_transform"] = targets.layers;
  out["layers_pattern"] = nullptr;
  out["rank_pattern"] = std::move(ranks);
  out["alpha_pattern"] = std::move(alphas);
  out["bias"] = "none";
  out["use_dora"] = false;
  out["modules_to_save"] = nullptr;
  out["fan_in_fan_out"] = false;
  out["init_lora_weights"] = true;
  out["inference_mode"] = true;
  // A path need not be UTF-8; JSON must be.
  return out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string_view BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

}  // namespace

absl::StatusOr<LoraMetadata> ParsePeftConfig(std::string_view text) {
  auto parsed = ParseJson(text, {.max_bytes = size_t{4} << 20, .max_depth = 8});
  if (!parsed.ok()) return Annotate(parsed.status(), kConfigFile);
  const json& config = *parsed;
  if (!config.is_object()) return InvalidArgument(kConfigFile, ": expected an object");
  const json none;
  if (config.value("peft_type", none) != "LORA") return Unimplemented(kConfigFile, ": peft_type must be LORA");
  HONE_RETURN_IF_ERROR(RefuseUnimplemented(config));
  LoraMetadata metadata;
  HONE_ASSIGN_OR_RETURN(metadata.r, Rank(config.value("r", none), "r"));
  HONE_ASSIGN_OR_RETURN(metadata.alpha, PositiveNumber(config.value("lora_alpha", none), "lora_alpha"));
  const json rslora = config.value("use_rslora", json(false));
  if (!rslora.is_boolean()) return InvalidArgument(kConfigFile, ": use_rslora must be true or false");
  metadata.use_rslora = rslora.get<bool>();
  const json dropout = config.value("lora_dropout", json(0.0));
  if (dropout.is_number()) metadata.dropout = dropout.get<double>();
  const json base = config.value("base_model_name_or_path", none);
  if (base.is_string()) metadata.base_model = base.get<std::string>();
  HONE_RETURN_IF_ERROR(ReadPattern(config, "rank_pattern", metadata.rank_pattern, Rank));
  HONE_RETURN_IF_ERROR(ReadPattern(config, "alpha_pattern", metadata.alpha_pattern, PositiveNumber));
  return metadata;
}

double LoraScale(const LoraMetadata& metadata, int64_t layer, LinearKind kind, int64_t r) {
  const double alpha = PatternValue(metadata.alpha_pattern, LinearModuleName(layer, kind), metadata.alpha);
  const auto rank = static_cast<double>(r);
  return metadata.use_rslora ? alpha / std::sqrt(rank) : alpha / rank;
}

std::string LoraTensorName(int64_t layer, LinearKind kind, char a_or_b) {
  return StrCat(kPrefix, LinearModuleName(layer, kind), ".lora_", a_or_b, ".weight");
}

absl::StatusOr<LoraAdapter> ReadPeftAdapter(const std::string& directory, const DecoderConfig& config) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(directory + "/" + kConfigFile, uint64_t{4} << 20));
  auto metadata = ParsePeftConfig(text);
  if (!metadata.ok()) return Annotate(metadata.status(), directory);
  LoraAdapter adapter{.metadata = *std::move(metadata)};
  HONE_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(directory + "/" + kWeightsFile));
  size_t used = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (int i = 0; i < kLinearKinds; ++i) {
      const auto kind = static_cast<LinearKind>(i);
      const std::string a = LoraTensorName(layer, kind, 'A'), b = LoraTensorName(layer, kind, 'B');
      if (file.Find(a) == nullptr && file.Find(b) == nullptr) continue;
      LoraWeights weights{.layer = layer, .kind = kind};
      weights.r = PatternValue(adapter.metadata.rank_pattern, LinearModuleName(layer, kind), adapter.metadata.r);
      const LinearShape shape = ShapeOf(config, kind);
      HONE_ASSIGN_OR_RETURN(weights.a, ReadMatrix(file, a, weights.r, shape.in));
      HONE_ASSIGN_OR_RETURN(weights.b, ReadMatrix(file, b, shape.out, weights.r));
      weights.scale = LoraScale(adapter.metadata, layer, kind, weights.r);
      adapter.weights.push_back(std::move(weights));
      used += 2;
    }
  }
  if (used != file.tensors().size()) {
    std::set<std::string> known;
    for (const LoraWeights& weights : adapter.weights) {
      for (char side : {'A', 'B'}) known.insert(LoraTensorName(weights.layer, weights.kind, side));
    }
    for (const SafetensorsTensor& tensor : file.tensors()) {
      if (known.contains(tensor.name)) continue;
      return InvalidArgument(file.path(), ": tensor '", EscapeForDisplay(tensor.name),
                             "' is not a LoRA matrix of one of this model's linear layers");
    }
  }
  if (adapter.weights.empty()) return InvalidArgument(file.path(), ": holds no LoRA matrix");
  return adapter;
}

absl::StatusOr<std::vector<FileReceipt>> WritePeftAdapter(const std::string& directory, const LoraAdapter& adapter,
                                                          const DecoderConfig& config) {
  HONE_RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<SafetensorsWriter::Declaration> tensors;
  for (const LoraWeights& weights : adapter.weights) {
    const LinearShape shape = ShapeOf(config, weights.kind);
    HONE_CHECK(static_cast<int64_t>(weights.a.size()) == weights.r * shape.in &&
                   static_cast<int64_t>(weights.b.size()) == weights.r * shape.out,
               LinearModuleName(weights.layer, weights.kind));
    tensors.push_back({LoraTensorName(weights.layer, weights.kind, 'A'), DType::kF32, {weights.r, shape.in}});
    tensors.push_back({LoraTensorName(weights.layer, weights.kind, 'B'), DType::kF32, {shape.out, weights.r}});
  }
  HONE_ASSIGN_OR_RETURN(const auto writer,
                        SafetensorsWriter::Create(directory + "/" + kWeightsFile, std::move(tensors)));
  for (const LoraWeights& weights : adapter.weights) {
    HONE_RETURN_IF_ERROR(writer->Write(LoraTensorName(weights.layer, weights.kind, 'A'), BytesOf(weights.a)));
    HONE_RETURN_IF_ERROR(writer->Write(LoraTensorName(weights.layer, weights.kind, 'B'), BytesOf(weights.b)));
  }
  HONE_RETURN_IF_ERROR(writer->Finish());
  HONE_RETURN_IF_ERROR(WriteFileDurably(directory + "/" + kConfigFile, WriteConfig(adapter, config)));
  std::vector<FileReceipt> receipts;
  for (const char* name : {kConfigFile, kWeightsFile}) {
    HONE_ASSIGN_OR_RETURN(FileReceipt receipt, ReceiptOf(directory, name));
    receipts.push_back(std::move(receipt));
  }
  return receipts;
}

}  // namespace hone
