#include "engine/io/export_model.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "engine/io/gguf_quant.h"
#include "engine/io/hf_config.h"
#include "engine/io/model_source.h"
#include "engine/io/safetensors.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxShardBytes = 5'000'000'000;
constexpr char kMarker[] = "hone-export.json";

// The linear layer that a weight's name means, if an adapter can change it.
const LoraWeights* FindLora(const LoraAdapter* adapter, std::string_view name) {
  if (adapter == nullptr || !IsLinearWeight(name)) return nullptr;
  for (const LoraWeights& weights : adapter->weights) {
    if (LinearModuleName(weights.layer, weights.kind) + ".weight" == name) return &weights;
  }
  return nullptr;
}

void AddDelta(const LoraWeights& lora, double scale, int64_t rows, int64_t cols, float* weight) {
  std::vector<float> delta(static_cast<size_t>(cols));
  for (int64_t row = 0; row < rows; ++row) {
    std::fill(delta.begin(), delta.end(), 0.0f);
    for (int64_t k = 0; k < lora.r; ++k) {
      const float b = lora.b[row * lora.r + k];
      const float* a = lora.a.data() + k * cols;
      for (int64_t col = 0; col < cols; ++col) delta[col] += b * a[col];
    }
    float* out = weight + row * cols;
    for (int64_t col = 0; col < cols; ++col) out[col] += static_cast<float>(scale) * delta[col];
  }
}

struct Shard {
  std::string name;
  std::vector<SafetensorsWriter::Declaration> tensors;
  uint64_t bytes = 0;
};

absl::StatusOr<std::vector<Shard>> PlanShards(const ModelFiles& model, DType dtype) {
  std::vector<Shard> shards(1);
  for (const std::string& name : model.names()) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
    std::vector<int64_t> shape = {weight.cols};
    if (!IsVector(name)) shape.insert(shape.begin(), weight.rows);
    const uint64_t bytes = static_cast<uint64_t>(weight.rows) * weight.cols * BlockBytes(dtype);
    if (!shards.back().tensors.empty() && shards.back().bytes + bytes > kMaxShardBytes) shards.emplace_back();
    shards.back().tensors.push_back({name, dtype, std::move(shape)});
    shards.back().bytes += bytes;
  }
  if (shards.size() == 1) {
    shards[0].name = "model.safetensors";
    return shards;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].name = name;
  }
  return shards;
}

std::string IndexOf(const std::vector<Shard>& shards) {
  nlohmann::json map = nlohmann::json::object();
  uint64_t total = 0;
  for (const Shard& shard : shards) {
    total += shard.bytes;
    for (const auto& tensor : shard.tensors) map[tensor.name] = shard.name;
  }
  return nlohmann::json({{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}}).dump(2) + "\n";
}

class MergedExport {
 public:
  MergedExport(const ModelFiles& model, const LoraAdapter* adapter, DType dtype, std::string directory,
               const ExportProgress& progress)
      : model_(model), adapter_(adapter), dtype_(dtype), directory_(std::move(directory)), progress_(progress) {}

  absl::StatusOr<std::vector<FileReceipt>> Run() {
    HONE_RETURN_IF_ERROR(Prepare());
    absl::Status status = WriteEverything();
    if (!status.ok()) {
      for (const std::string& name : written_) ::unlink(Path(name).c_str());
      ::unlink(Path(kMarker).c_str());
      return status;
    }
    return receipts_;
  }

 private:
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

  // A folder that holds a model which an export did not write is somebody's model, maybe the base itself.
  absl::Status Prepare() {
    HONE_RETURN_IF_ERROR(MakeDirectories(directory_));
    std::error_code error;
    const bool ours = fs::exists(Path(kMarker), error);
    std::vector<std::string> old;
    for (const auto& entry : fs::directory_iterator(directory_, error)) {
      const std::string name = entry.path().filename().string();
      const bool weights =
          name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"));
      if (weights || name == "config.json") old.push_back(name);
    }
    if (error) return Internal("cannot list ", directory_, ": ", error.message());
    if (!old.empty() && !ours) {
      return FailedPrecondition(directory_, " already holds a model (", old.front(), "); give another folder");
    }
    for (const std::string& name : old) fs::remove(Path(name), error);  // an older export of ours, perhaps cut short
    return WriteFileDurably(Path(kMarker), "{\"complete\": false}\n");
  }

  absl::Status WriteEverything() {
    HONE_ASSIGN_OR_RETURN(const std::vector<Shard> shards, PlanShards(model_, dtype_));
    for (const Shard& shard : shards) HONE_RETURN_IF_ERROR(WriteShard(shard));
    if (shards.size() > 1) HONE_RETURN_IF_ERROR(WriteText("model.safetensors.index.json", IndexOf(shards)));
    HONE_RETURN_IF_ERROR(WriteTokenizer());
    HONE_ASSIGN_OR_RETURN(const std::string config, ConfigText());
    HONE_RETURN_IF_ERROR(WriteText("config.json", config));  // last: without it the folder is no model
    nlohmann::ordered_json files = nlohmann::ordered_json::array();
    for (const FileReceipt& file : receipts_) {
      files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
    }
    const nlohmann::ordered_json marker = {{"complete", true}, {"files", std::move(files)}};
    return WriteFileDurably(Path(kMarker), marker.dump(2) + "\n");
  }

  absl::Status WriteShard(const Shard& shard) {
    written_.push_back(shard.name);
    HONE_ASSIGN_OR_RETURN(const auto writer, SafetensorsWriter::Create(Path(shard.name), shard.tensors));
    std::vector<float> values;
    std::string bytes;
    for (const auto& tensor : shard.tensors) {
      HONE_RETURN_IF_ERROR(ReadMergedWeight(model_, adapter_, tensor.name, &values));
      bytes.resize(values.size() * BlockBytes(dtype_));
      EncodeFromFloat(dtype_, values.data(), values.size(), bytes.data());
      HONE_RETURN_IF_ERROR(writer->Write(tensor.name, bytes));
      ++done_;
      if (progress_ && !progress_(done_, static_cast<int64_t>(model_.names().size()))) {
        return absl::CancelledError("the export was cancelled");
      }
    }
    HONE_RETURN_IF_ERROR(writer->Finish());
    return AddReceipt(shard.name);
  }

  absl::Status WriteText(const std::string& name, std::string_view text) {
    written_.push_back(name);
    HONE_RETURN_IF_ERROR(WriteFileDurably(Path(name), text));
    return AddReceipt(name);
  }

  absl::Status AddReceipt(const std::string& name) {
    HONE_ASSIGN_OR_RETURN(FileReceipt receipt, ReceiptOf(directory_, name));
    receipts_.push_back(std::move(receipt));
    return absl::OkStatus();
  }

  // The folder beside whose configuration a folder or random model lies.
  std::string SourceFolder() const {
    std::string source = model_.source();
    if (model_.kind() == ModelSourceKind::kHuggingFace) return source;
    source = source.substr(source.find(':') + 1);
    const size_t slash = source.find_last_of('/');
    return slash == std::string::npos ? "." : source.substr(0, slash);
  }

  absl::StatusOr<std::string> ConfigText() const {
    if (model_.kind() == ModelSourceKind::kGguf) return WriteHfConfig(model_.config(), dtype_);
    // A folder's own configuration, so that nothing in it is lost, but for what the export changes.
    const std::string path = model_.kind() == ModelSourceKind::kRandom
                                 ? model_.source().substr(model_.source().find(':') + 1)
                                 : model_.source() + "/config.json";
    HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, uint64_t{4} << 20));
    HONE_RETURN_IF_ERROR(ParseJson(text).status());
    auto config = nlohmann::ordered_json::parse(text);  // again, for the order of its fields; it cannot throw now
    config.erase("quantization_config");
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] = dtype_ == DType::kF32 ? "float32" : "bfloat16";
    if (config.contains("dtype")) config.erase("torch_dtype");
    return config.dump(2) + "\n";
  }

  absl::Status WriteTokenizer() {
    if (model_.kind() != ModelSourceKind::kGguf) return CopyTokenizerFiles();
    HONE_ASSIGN_OR_RETURN(const auto tokenizer, model_.OpenTokenizer());
    HONE_RETURN_IF_ERROR(WriteText("tokenizer.json", tokenizer->ToTokenizerJson()));
    nlohmann::ordered_json config;
    config["tokenizer_class"] = "PreTrainedTokenizerFast";
    const auto name = [&](const char* key, std::optional<int32_t> id) {
      if (id) config[key] = tokenizer->TokenText(*id);
    };
    name("bos_token", tokenizer->bos_id());
    name("eos_token", tokenizer->eos_id());
    name("pad_token", tokenizer->pad_id());
    config["model_max_length"] = model_.config().max_position;
    config["clean_up_tokenization_spaces"] = false;
    config["add_prefix_space"] = false;
    HONE_RETURN_IF_ERROR(WriteText("tokenizer_config.json", config.dump(2) + "\n"));
    if (!model_.chat_template().empty()) HONE_RETURN_IF_ERROR(WriteText("chat_template.jinja", model_.chat_template()));
    return WriteText("generation_config.json", WriteHfGenerationConfig(model_.config()));
  }

  absl::Status CopyTokenizerFiles() {
    for (const char* file :
         {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
          "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model"}) {
      HONE_ASSIGN_OR_RETURN(const std::string text, ReadOptionalFile(SourceFolder() + "/" + file, uint64_t{256} << 20));
      if (!text.empty()) HONE_RETURN_IF_ERROR(WriteText(file, text));
    }
    HONE_ASSIGN_OR_RETURN(std::string text,
                          ReadOptionalFile(SourceFolder() + "/generation_config.json", uint64_t{4} << 20));
    if (text.empty()) text = WriteHfGenerationConfig(model_.config());
    return WriteText("generation_config.json", text);
  }

  const ModelFiles& model_;
  const LoraAdapter* adapter_;
  const DType dtype_;
  const std::string directory_;
  const ExportProgress& progress_;
  int64_t done_ = 0;
  std::vector<std::string> written_;
  std::vector<FileReceipt> receipts_;
};

}  // namespace

absl::Status ReadMergedWeight(const ModelFiles& model, const LoraAdapter* adapter, const std::string& name,
                              std::vector<float>* out) {
  HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
  out->resize(static_cast<size_t>(weight.rows) * static_cast<size_t>(weight.cols));
  HONE_RETURN_IF_ERROR(model.ReadAsFloat(name, out->data()));
  const LoraWeights* lora = FindLora(adapter, name);
  if (lora == nullptr) return absl::OkStatus();
  AddDelta(*lora, LoraScale(adapter->metadata, lora->layer, lora->kind, lora->r), weight.rows, weight.cols,
           out->data());
  for (float value : *out) {
    if (!std::isfinite(value)) return InvalidArgument(name, ": base plus adapter is not finite; nothing was exported");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FileReceipt>> ExportMerged(const ModelFiles& model, const LoraAdapter* adapter, DType dtype,
                                                      const std::string& directory, const ExportProgress& progress) {
  HONE_CHECK(dtype == DType::kBF16 || dtype == DType::kF32, "merged models are bf16 or f32");
  return MergedExport(model, adapter, dtype, directory, progress).Run();
}

}  // namespace hone
