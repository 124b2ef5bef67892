#include "engine/io/export_model.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "engine/io/gguf_quant.h"
#include "engine/io/hf_config.h"
#include "engine/io/model_source.h"
#include "engine/io/nf4.h"
#include "engine/io/safetensors.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxShardBytes = 5'000'000'000;
constexpr char kMarker[] = "hone-export.json";
constexpr std::string_view kNf4State = ".quant_state.bitsandbytes__nf4";
constexpr size_t kNf4StateBytes = 256;  // JSON, padded with spaces

// The bits of EncodeNf4, blocks divided over the cores.
void EncodeNf4OnAllCores(const std::vector<float>& values, Nf4Parts& out) {
  const Nf4Sizes sizes = Nf4SizesOf(values.size());
  std::vector<float> absmax(sizes.blocks);
  const uint64_t threads = std::clamp<uint64_t>(std::thread::hardware_concurrency(), 1, 16);
  {
    std::vector<std::jthread> workers;
    for (uint64_t i = 0; i < threads; ++i) {
      const uint64_t begin = sizes.blocks * i / threads * kNf4BlockSize;
      const uint64_t end = std::min<uint64_t>(sizes.blocks * (i + 1) / threads * kNf4BlockSize, values.size());
      workers.emplace_back([&values, &out, &absmax, begin, end] {
        EncodeNf4Plain(values.data() + begin, end - begin, out.codes + begin / 2,
                       absmax.data() + begin / kNf4BlockSize);
      });
    }
  }
  out.nested_offset = MeanOfAbsmax(absmax.data(), sizes.blocks);
  EncodeNf4Absmax(absmax.data(), sizes.blocks, out.nested_offset, out.absmax_codes, out.nested_absmax);
}

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
  std::vector<std::string> weights;
  std::vector<SafetensorsWriter::Declaration> tensors;
  uint64_t bytes = 0;
};

using Declarations = std::vector<SafetensorsWriter::Declaration>;

// The tensors that bitsandbytes makes of one weight.
Declarations DeclareNf4(const std::string& name, const StoredWeight& weight, size_t state_bytes) {
  const Nf4Sizes sizes = Nf4SizesOf(static_cast<uint64_t>(weight.rows) * static_cast<uint64_t>(weight.cols));
  const auto count = [](uint64_t n) { return static_cast<int64_t>(n); };
  return {{name, DType::kU8, {count(sizes.code_bytes), 1}},
          {name + ".absmax", DType::kU8, {count(sizes.blocks)}},
          {name + ".quant_map", DType::kF32, {16}},
          {name + ".nested_absmax", DType::kF32, {count(sizes.nested_blocks)}},
          {name + ".nested_quant_map", DType::kF32, {256}},
          {StrCat(name, kNf4State), DType::kU8, {count(state_bytes)}}};
}

// What the weight is written as: the export's type, or with kNf4 its own where it is plain and no linear.
DType WrittenAs(const std::string& name, const StoredWeight& weight, DType dtype) {
  if (dtype != DType::kNf4 || IsLinearWeight(name)) return dtype;
  return BlockElements(weight.dtype) == 1 ? weight.dtype : DType::kBF16;
}

absl::StatusOr<Declarations> Declare(const ModelFiles& model, const std::string& name, DType dtype) {
  HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
  const DType written = WrittenAs(name, weight, dtype);
  if (written == DType::kNf4) return DeclareNf4(name, weight, kNf4StateBytes);
  std::vector<int64_t> shape = {weight.cols};
  if (!IsVector(name)) shape.insert(shape.begin(), weight.rows);
  return Declarations{{name, written, std::move(shape)}};
}

absl::StatusOr<std::vector<Shard>> PlanShards(const ModelFiles& model, DType dtype) {
  std::vector<Shard> shards(1);
  for (const std::string& name : model.names()) {
    HONE_ASSIGN_OR_RETURN(Declarations tensors, Declare(model, name, dtype));
    uint64_t bytes = 0;
    for (const auto& tensor : tensors) {
      uint64_t size = static_cast<uint64_t>(BlockBytes(tensor.dtype));
      for (int64_t n : tensor.shape) size *= static_cast<uint64_t>(n);
      bytes += size;
    }
    if (!shards.back().tensors.empty() && shards.back().bytes + bytes > kMaxShardBytes) shards.emplace_back();
    shards.back().weights.push_back(name);
    for (auto& tensor : tensors) shards.back().tensors.push_back(std::move(tensor));
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
    for (const std::string& name : shard.weights) {
      HONE_RETURN_IF_ERROR(WriteWeight(name, *writer));
      ++done_;
      if (progress_ && !progress_(done_, static_cast<int64_t>(model_.names().size()))) {
        return absl::CancelledError("the export was cancelled");
      }
    }
    HONE_RETURN_IF_ERROR(writer->Finish());
    return AddReceipt(shard.name);
  }

  absl::Status WriteWeight(const std::string& name, SafetensorsWriter& writer) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model_.Describe(name));
    HONE_RETURN_IF_ERROR(ReadMergedWeight(model_, adapter_, name, &values_));
    const DType written = WrittenAs(name, weight, dtype_);
    if (written == DType::kNf4) return WriteNf4(name, weight, writer);
    bytes_.resize(values_.size() * BlockBytes(written));
    EncodeFromFloat(written, values_.data(), values_.size(), bytes_.data());
    return writer.Write(name, bytes_);
  }

  absl::Status WriteNf4(const std::string& name, const StoredWeight& weight, SafetensorsWriter& writer) {
    const Nf4Sizes sizes = Nf4SizesOf(values_.size());
    bytes_.resize(sizes.code_bytes);
    std::string absmax_codes(sizes.blocks, '\0');
    std::vector<float> nested_absmax(sizes.nested_blocks);
    Nf4Parts parts{reinterpret_cast<uint8_t*>(bytes_.data()), reinterpret_cast<uint8_t*>(absmax_codes.data()),
                   nested_absmax.data(), 0};
    EncodeNf4OnAllCores(values_, parts);
    const auto floats = [](const auto& table) {
      return std::string_view(reinterpret_cast<const char*>(table.data()), table.size() * sizeof(float));
    };
    nlohmann::ordered_json state = {{"quant_type", "nf4"},
                                    {"blocksize", kNf4BlockSize},
                                    {"dtype", weight.dtype == DType::kF32 ? "float32" : "bfloat16"},
                                    {"shape", {weight.rows, weight.cols}},
                                    {"nested_blocksize", kNf4NestedBlockSize},
                                    {"nested_dtype", "float32"},
                                    {"nested_offset", parts.nested_offset}};
    std::string text = state.dump();
    HONE_CHECK(text.size() <= kNf4StateBytes, text);
    text.resize(kNf4StateBytes, ' ');  // one size for all, known before a value is
    HONE_RETURN_IF_ERROR(writer.Write(name, bytes_));
    HONE_RETURN_IF_ERROR(writer.Write(name + ".absmax", absmax_codes));
    HONE_RETURN_IF_ERROR(writer.Write(name + ".quant_map", floats(Nf4Codebook())));
    HONE_RETURN_IF_ERROR(writer.Write(name + ".nested_absmax", floats(nested_absmax)));
    HONE_RETURN_IF_ERROR(writer.Write(name + ".nested_quant_map", floats(Nf4DynamicMap())));
    return writer.Write(StrCat(name, kNf4State), text);
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
    const DType dtype = dtype_ == DType::kNf4 ? DType::kBF16 : dtype_;
    if (model_.kind() == ModelSourceKind::kGguf) return WriteHfConfig(model_.config(), dtype);
    // A folder's own configuration, so that nothing in it is lost, but for what the export changes.
    const std::string path = model_.kind() == ModelSourceKind::kRandom
                                 ? model_.source().substr(model_.source().find(':') + 1)
                                 : model_.source() + "/config.json";
    HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, uint64_t{4} << 20));
    HONE_RETURN_IF_ERROR(ParseJson(text).status());
    auto config = nlohmann::ordered_json::parse(text);  // again, for the order of its fields; it cannot throw now
    config.erase("quantization_config");
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] = dtype == DType::kF32 ? "float32" : "bfloat16";
    if (config.contains("dtype")) config.erase("torch_dtype");
    if (dtype_ == DType::kNf4) {
      config["quantization_config"] = {{"quant_method", "bitsandbytes"},
                                       {"load_in_4bit", true},
                                       {"load_in_8bit", false},
                                       {"bnb_4bit_quant_type", "nf4"},
                                       {"bnb_4bit_use_double_quant", true},
                                       {"bnb_4bit_compute_dtype", "bfloat16"},
                                       {"bnb_4bit_quant_storage", "uint8"}};
    }
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
  std::vector<float> values_;
  std::string bytes_;
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

absl::StatusOr<std::vector<FileReceipt>> ExportNf4(const ModelFiles& model, const std::string& directory,
                                                   const ExportProgress& progress) {
  if (model.kind() == ModelSourceKind::kGguf) {
    return InvalidArgument(model.source(), ": nf4 is written of Hugging Face folders; use a GGUF file as it is");
  }
  for (const std::string& name : model.names()) {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, model.Describe(name));
    if (BlockElements(weight.dtype) != 1) {
      return InvalidArgument(model.source(), ": ", name, " is ", DTypeName(weight.dtype),
                             " already; use the model as it is");
    }
    if (IsLinearWeight(name) && weight.rows * weight.cols % 2 != 0) {
      return Unimplemented(model.source(), ": ", name, " has an odd number of elements");
    }
  }
  return MergedExport(model, nullptr, DType::kNf4, directory, progress).Run();
}

}  // namespace hone
