// A Hugging Face folder as ModelFiles: config.json, safetensors, tokenizer files. NF4 weights in bitsandbytes' form are
// one weight in several tensors: X, X.absmax, X.quant_map, X.nested_absmax, X.nested_quant_map,
// X.quant_state.bitsandbytes__nf4.
#include <cmath>
#include <cstring>
#include <map>

#include "engine/io/hf_config.h"
#include "engine/io/model_source.h"
#include "engine/io/nf4.h"
#include "engine/io/random_access_file.h"
#include "engine/io/safetensors.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::string_view kQuantState = ".quant_state.bitsandbytes__nf4";
constexpr uint64_t kMaxConfigBytes = uint64_t{4} << 20;

// The tensors that make up one NF4 weight; views into the mapping.
struct Nf4Tensors {
  int64_t rows = 0, cols = 0;
  bool nested = false;
  float nested_offset = 0;
  std::string_view codes, absmax, nested_code, nested_absmax;
};

class HuggingFaceModel : public ModelFiles {
 public:
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& directory) {
    auto model = std::make_unique<HuggingFaceModel>();
    model->source_ = directory;
    HONE_RETURN_IF_ERROR(model->Load());
    return model;
  }

  ModelSourceKind kind() const override { return ModelSourceKind::kHuggingFace; }
  bool Has(std::string_view name) const override { return weights_.Find(name) != nullptr; }

  absl::StatusOr<StoredWeight> Describe(std::string_view name) const override {
    HONE_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Need(name));
    if (const auto nf4 = nf4_.find(name); nf4 != nf4_.end()) {
      const Nf4Tensors& parts = nf4->second;
      const Nf4Sizes sizes = Nf4SizesOf(static_cast<uint64_t>(parts.rows) * static_cast<uint64_t>(parts.cols));
      return StoredWeight{.dtype = DType::kNf4,
                          .rows = parts.rows,
                          .cols = parts.cols,
                          .bytes = sizes.code_bytes,
                          .nested = parts.nested,
                          .blocks = sizes.blocks,
                          .nested_blocks = sizes.nested_blocks};
    }
    const auto& shape = tensor->shape;
    if (shape.empty() || shape.size() > 2) {
      return InvalidArgument(source_, ": ", name, " has ", shape.size(), " dimensions, expected 1 or 2");
    }
    if (tensor->dtype != DType::kF32 && tensor->dtype != DType::kF16 && tensor->dtype != DType::kBF16) {
      return Unimplemented(source_, ": ", name, " is ", tensor->type,
                           "; weights are F32, F16, BF16 or bitsandbytes NF4");
    }
    return StoredWeight{.dtype = *tensor->dtype,
                        .rows = shape.size() == 2 ? shape[0] : 1,
                        .cols = shape.back(),
                        .bytes = tensor->bytes.size()};
  }

  absl::Status Read(std::string_view name, const WeightDestination& destination) const override {
    HONE_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Need(name));
    Copy(tensor->bytes, destination.data);
    return ReadScales(name, destination);
  }

  absl::Status ReadScales(std::string_view name, const WeightDestination& destination) const override {
    const auto nf4 = nf4_.find(name);
    if (nf4 == nf4_.end()) return absl::OkStatus();
    const Nf4Tensors& parts = nf4->second;
    if (!parts.nested) {
      Copy(parts.absmax, destination.absmax);
      return absl::OkStatus();
    }
    Copy(parts.absmax, destination.absmax_codes);
    Copy(parts.nested_code, destination.nested_code);
    Copy(parts.nested_absmax, destination.nested_absmax);
    HONE_CHECK(destination.nested_offset != nullptr, "a weight's offset has no destination");
    *destination.nested_offset = parts.nested_offset;
    return absl::OkStatus();
  }

  absl::Status ReadPart(std::string_view name, uint64_t offset, uint64_t bytes, void* out) const override {
    HONE_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Need(name));
    HONE_CHECK(offset <= tensor->bytes.size() && bytes <= tensor->bytes.size() - offset, name, ": part outside");
    for (size_t i = 0; i < files_.size(); ++i) {
      const SafetensorsFile& file = weights_.files()[i];
      if (file.Find(name) != tensor) continue;
      const char* const begin = file.header().data() - sizeof(uint64_t);  // of the file
      return files_[i].ReadAt(static_cast<uint64_t>(tensor->bytes.data() - begin) + offset, bytes, out);
    }
    FailInvariant(__FILE__, __LINE__, "a weight of this folder's files", std::string(name));
  }

  std::vector<ListedTensor> Tensors() const override {
    std::vector<ListedTensor> out;
    for (const SafetensorsFile& file : weights_.files()) {
      for (const SafetensorsTensor& tensor : file.tensors()) {
        if (const auto nf4 = nf4_.find(tensor.name); nf4 != nf4_.end()) {
          const Nf4Tensors& p = nf4->second;
          out.push_back({tensor.name,
                         "NF4",
                         {p.rows, p.cols},
                         p.codes.size() + p.absmax.size() + p.nested_code.size() + p.nested_absmax.size()});
        } else if (!IsNf4Part(tensor.name)) {
          out.push_back({tensor.name, tensor.type, tensor.shape, tensor.bytes.size()});
        }
      }
    }
    return out;
  }

  absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer() const override { return OpenTokenizerOnly(source_); }

 private:
  absl::Status Load() {
    auto config_text = ReadFile(source_ + "/config.json", kMaxConfigBytes);
    if (absl::IsNotFound(config_text.status())) {
      return FailedPrecondition(source_, " is not a model: it has no config.json");
    }
    if (!config_text.ok()) return config_text.status();
    HONE_ASSIGN_OR_RETURN(const std::string generation,
                          ReadOptionalFile(source_ + "/generation_config.json", kMaxConfigBytes));
    auto parsed = ParseHfConfig(*config_text, generation);
    if (!parsed.ok()) return Annotate(parsed.status(), source_);
    config_ = parsed->decoder;
    names_ = RequiredWeights(config_);
    HONE_ASSIGN_OR_RETURN(weights_, SafetensorsDirectory::Open(source_));
    for (const SafetensorsFile& file : weights_.files()) {
      HONE_ASSIGN_OR_RETURN(RandomAccessFile reader, RandomAccessFile::Open(file.path()));
      files_.push_back(std::move(reader));
      for (const SafetensorsTensor& tensor : file.tensors()) {
        if (!tensor.name.ends_with(kQuantState)) continue;
        HONE_RETURN_IF_ERROR(LoadNf4(tensor));
      }
    }
    for (const std::string& name : names_) {
      HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
      if (absl::Status fits = CheckWeight(config_, name, weight); !fits.ok()) return Annotate(fits, source_);
    }
    return LoadText(*config_text, generation);
  }

  absl::Status LoadText(const std::string& config_text, const std::string& generation) {
    auto files = ReadTextFiles(source_);
    if (!files.ok()) return Annotate(files.status(), source_);
    auto tokens = TokensOf(*files);
    if (!tokens.ok()) return Annotate(tokens.status(), source_);
    template_tokens_ = *std::move(tokens);
    chat_template_ = files->chat_template;
    Sha256 sha;
    for (std::string_view text :
         {std::string_view("hf"), std::string_view(config_text), std::string_view(generation),
          std::string_view(files->tokenizer_json), std::string_view(files->tokenizer_config_json),
          std::string_view(files->chat_template)}) {
      DigestText(sha, text);
    }
    for (const SafetensorsFile& file : weights_.files()) {
      std::string_view bytes;
      if (!file.tensors().empty()) {  // the data section, whole: tensors tile it
        const std::string_view first = file.tensors().front().bytes, last = file.tensors().back().bytes;
        bytes = {first.data(), static_cast<size_t>(last.data() + last.size() - first.data())};
      }
      DigestWeights(sha, file.header(), bytes);
    }
    digest_ = sha.FinishHex();
    return absl::OkStatus();
  }

  absl::StatusOr<const SafetensorsTensor*> Need(std::string_view name) const {
    const SafetensorsTensor* tensor = weights_.Find(name);
    if (tensor == nullptr) return NotFound(source_, ": the weight ", name, " is missing");
    return tensor;
  }

  bool IsNf4Part(std::string_view name) const {
    for (std::string_view part :
         {std::string_view(".absmax"), std::string_view(".quant_map"), std::string_view(".nested_absmax"),
          std::string_view(".nested_quant_map"), kQuantState}) {
      if (name.ends_with(part) && nf4_.contains(name.substr(0, name.size() - part.size()))) return true;
    }
    return false;
  }

  absl::StatusOr<std::string_view> Part(const std::string& name, std::string_view type, uint64_t elements) const {
    HONE_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, Need(name));
    if (tensor->type != type || tensor->elements != elements) {
      return InvalidArgument(source_, ": ", EscapeForDisplay(name), " holds ", tensor->elements, " ", tensor->type,
                             ", expected ", elements, " ", type);
    }
    return tensor->bytes;
  }

  absl::Status LoadNf4(const SafetensorsTensor& state) {
    const std::string name = state.name.substr(0, state.name.size() - kQuantState.size());
    const auto fail = [&](const auto&... parts) {
      return InvalidArgument(source_, ": ", EscapeForDisplay(state.name), ": ", parts...);
    };
    if (state.type != "U8") return fail("expected U8 bytes of JSON");
    auto json = ParseJson(state.bytes, {.max_bytes = 65536, .max_depth = 8});
    if (!json.ok()) return fail(json.status().message());
    if (!json->is_object()) return fail("expected an object");
    if (json->value("quant_type", nlohmann::json()) != "nf4") return fail("quant_type must be nf4");
    if (json->value("blocksize", nlohmann::json()) != kNf4BlockSize) return fail("blocksize must be ", kNf4BlockSize);
    const auto shape = json->find("shape");
    if (shape == json->end() || !shape->is_array() || shape->size() != 2 || !(*shape)[0].is_number_unsigned() ||
        !(*shape)[1].is_number_unsigned()) {
      return fail("shape must be two unsigned integers");
    }
    // The sizes are bounded by the file: half a byte each.
    const uint64_t rows = (*shape)[0].get<uint64_t>(), cols = (*shape)[1].get<uint64_t>();
    if (rows > (uint64_t{1} << 31) || cols > (uint64_t{1} << 31)) return fail("shape is too large");
    const Nf4Sizes sizes = Nf4SizesOf(rows * cols);
    Nf4Tensors parts{.rows = static_cast<int64_t>(rows), .cols = static_cast<int64_t>(cols)};
    HONE_ASSIGN_OR_RETURN(parts.codes, Part(name, "U8", sizes.code_bytes));
    HONE_ASSIGN_OR_RETURN(const std::string_view map, Part(name + ".quant_map", "F32", 16));
    const std::string_view table(reinterpret_cast<const char*>(Nf4Codebook().data()), 64);
    if (map != table) return fail("quant_map is not NF4's table");
    parts.nested = weights_.Find(name + ".nested_absmax") != nullptr;
    HONE_ASSIGN_OR_RETURN(parts.absmax, Part(name + ".absmax", parts.nested ? "U8" : "F32", sizes.blocks));
    if (parts.nested) {
      if (json->value("nested_blocksize", nlohmann::json()) != kNf4NestedBlockSize) {
        return fail("nested_blocksize must be ", kNf4NestedBlockSize);
      }
      const auto offset = json->find("nested_offset");
      if (offset == json->end() || !offset->is_number() || !std::isfinite(offset->get<double>())) {
        return fail("nested_offset must be a number");
      }
      parts.nested_offset = static_cast<float>(offset->get<double>());
      HONE_ASSIGN_OR_RETURN(parts.nested_code, Part(name + ".nested_quant_map", "F32", 256));
      HONE_ASSIGN_OR_RETURN(parts.nested_absmax, Part(name + ".nested_absmax", "F32", sizes.nested_blocks));
    }
    nf4_.emplace(name, parts);
    return absl::OkStatus();
  }

  static void Copy(std::string_view from, void* to) {
    HONE_CHECK(to != nullptr, "a weight's part has no destination");
    std::memcpy(to, from.data(), from.size());
  }

  SafetensorsDirectory weights_;
  std::vector<RandomAccessFile> files_;  // of weights_.files()
  std::map<std::string, Nf4Tensors, std::less<>> nf4_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenHuggingFace(const std::string& directory) {
  return HuggingFaceModel::Open(directory);
}

}  // namespace hone
