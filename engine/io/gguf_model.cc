// A GGUF file as ModelFiles. Llama's converter stores the rows of q and k so that the two halves of a head are
// interleaved (row i*2 + half instead of half*D/2 + i); reading puts them back.
#include <algorithm>
#include <cstring>
#include <map>

#include "engine/io/gguf.h"
#include "engine/io/gguf_config.h"
#include "engine/io/model_source.h"
#include "engine/io/random_access_file.h"
#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "engine/model/family.h"
#include "proto/base/status.h"

namespace hone {
namespace {

class GgufModel : public ModelFiles {
 public:
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& path) {
    HONE_ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
    auto model = std::make_unique<GgufModel>(std::move(file));
    model->source_ = path;
    HONE_RETURN_IF_ERROR(model->Load());
    return model;
  }
  explicit GgufModel(GgufFile file) : file_(std::move(file)) {}

  ModelSourceKind kind() const override { return ModelSourceKind::kGguf; }
  bool Has(std::string_view name) const override { return Find(name) != nullptr; }

  absl::StatusOr<StoredWeight> Describe(std::string_view name) const override {
    HONE_ASSIGN_OR_RETURN(const GgufTensor* tensor, Need(name));
    const auto& shape = tensor->shape;
    if (shape.empty() || shape.size() > 2) {
      return InvalidArgument(source_, ": ", tensor->name, " has ", shape.size(), " dimensions, expected 1 or 2");
    }
    if (!tensor->dtype) {
      return Unimplemented(source_, ": tensor ", tensor->name, " is ", tensor->type_name,
                           "; read are F32, F16, BF16, Q8_0, Q4_0 and Q4_1");
    }
    return StoredWeight{.dtype = *tensor->dtype,
                        .rows = shape.size() == 2 ? shape[0] : 1,
                        .cols = shape.back(),
                        .bytes = tensor->bytes.size()};
  }

  absl::Status Read(std::string_view name, const WeightDestination& destination) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    const std::string_view bytes = Find(name)->bytes;
    HONE_CHECK(destination.data != nullptr, "a weight has no destination");
    if (!IsPermuted(name)) {
      std::memcpy(destination.data, bytes.data(), bytes.size());
      return absl::OkStatus();
    }
    ReadPermuted(weight, bytes, 0, weight.bytes, static_cast<char*>(destination.data));
    return absl::OkStatus();
  }

  absl::Status ReadScales(std::string_view, const WeightDestination&) const override { return absl::OkStatus(); }

  absl::Status ReadPart(std::string_view name, uint64_t offset, uint64_t bytes, void* out) const override {
    HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
    HONE_CHECK(offset <= weight.bytes && bytes <= weight.bytes - offset, name, ": part outside");
    const GgufTensor* tensor = Find(name);
    if (!IsPermuted(name)) return reader_->ReadAt(tensor->offset + offset, bytes, out);
    ReadPermuted(weight, tensor->bytes, offset, bytes, static_cast<char*>(out));
    return absl::OkStatus();
  }

  std::vector<ListedTensor> Tensors() const override {
    std::map<std::string, std::string> canonical;
    for (const std::string& name : names_) canonical[*GgufTensorName(name)] = name;
    std::vector<ListedTensor> out;
    for (const GgufTensor& tensor : file_.tensors()) {
      const auto known = canonical.find(tensor.name);
      out.push_back({known == canonical.end() ? tensor.name : known->second, tensor.type_name, tensor.shape,
                     tensor.bytes.size()});
    }
    return out;
  }

  absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer() const override {
    HONE_ASSIGN_OR_RETURN(GgufVocabulary vocabulary, VocabularyFromGguf(file_));
    auto tokenizer = Tokenizer::FromGguf(std::move(vocabulary));
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), source_);
    return tokenizer;
  }

 private:
  absl::Status Load() {
    HONE_ASSIGN_OR_RETURN(config_, DecoderConfigFromGguf(file_));
    HONE_ASSIGN_OR_RETURN(RandomAccessFile reader, RandomAccessFile::Open(source_));
    reader_ = std::make_unique<RandomAccessFile>(std::move(reader));
    names_ = RequiredWeights(config_);
    for (const std::string& name : names_) {
      HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
      if (absl::Status fits = CheckWeight(config_, name, weight); !fits.ok()) return Annotate(fits, source_);
    }
    chat_template_ = ChatTemplateFromGguf(file_).value_or("");
    if (file_.Has("tokenizer.ggml.tokens")) {
      HONE_ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, VocabularyFromGguf(file_));
      template_tokens_ = TokensOfGguf(vocabulary);
    }
    Sha256 sha;
    DigestText(sha, "gguf");
    const std::string_view header = file_.header();
    const std::string_view all(header.data(), file_.file_bytes());
    DigestWeights(sha, header, all.substr(header.size()));
    digest_ = sha.FinishHex();
    return absl::OkStatus();
  }

  // Bytes [offset, offset + count) of the weight with its rows in Hugging Face's order.
  void ReadPermuted(const StoredWeight& weight, std::string_view bytes, uint64_t offset, uint64_t count,
                    char* out) const {
    // A bias is a vector: its "rows" are its elements.
    const int64_t rows = weight.rows == 1 ? weight.cols : weight.rows;
    const uint64_t row_bytes = weight.bytes / static_cast<uint64_t>(rows);
    const int64_t half = config_.head_dim / 2;
    for (uint64_t at = offset; at < offset + count;) {
      const auto row = static_cast<int64_t>(at / row_bytes);
      const uint64_t skipped = at % row_bytes, taken = std::min(row_bytes - skipped, offset + count - at);
      const int64_t head = row / config_.head_dim, within = row % config_.head_dim;
      const int64_t stored = head * config_.head_dim + (within % half) * 2 + within / half;
      std::memcpy(out + (at - offset), bytes.data() + static_cast<uint64_t>(stored) * row_bytes + skipped, taken);
      at += taken;
    }
  }

  bool IsPermuted(std::string_view name) const {
    if (!FamilyByName(config_.family).gguf_permutes_qk) return false;
    for (std::string_view module : {"q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"}) {
      if (name.ends_with(module)) return true;
    }
    return false;
  }

  const GgufTensor* Find(std::string_view name) const {
    const auto stored = GgufTensorName(name);
    return stored ? file_.Find(*stored) : nullptr;
  }
  absl::StatusOr<const GgufTensor*> Need(std::string_view name) const {
    const GgufTensor* tensor = Find(name);
    if (tensor != nullptr) return tensor;
    return NotFound(source_, ": the weight ", name, " (", GgufTensorName(name).value_or("no GGUF name"),
                    ") is missing");
  }

  GgufFile file_;
  std::unique_ptr<RandomAccessFile> reader_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenGguf(const std::string& path) { return GgufModel::Open(path); }

}  // namespace hone
