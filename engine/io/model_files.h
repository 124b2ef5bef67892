// An opened model source: a Hugging Face folder, a GGUF file or `random:DIR/config.json`. One view of all three:
// weights under Hugging Face's names in the form they are stored in, a configuration, a tokenizer, a chat template.
// Files are mapped, so opening is cheap. Not here: memory for the weights and computing with them (engine/model).
//
// Names: model.embed_tokens.weight, model.norm.weight, lm_head.weight (absent when tied), and in model.layers.N.:
// input_layernorm.weight, post_attention_layernorm.weight, self_attn.{q,k,v,o}_proj.weight,
// self_attn.{q,k,v}_proj.bias, self_attn.{q,k}_norm.weight, mlp.{gate,up,down}_proj.weight. Vectors are one row: rows
// 1, cols n.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/decoder_config.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/dtype.h"

namespace hone {

enum class ModelSourceKind : uint8_t { kHuggingFace, kGguf, kRandom };
std::string_view ModelSourceKindName(ModelSourceKind kind);  // "huggingface", "gguf", "random"

struct StoredWeight {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  uint64_t bytes = 0;  // of the elements (NF4: of the 4-bit codes)
  // kNf4: `blocks` = ceil(rows*cols / 64) scales. nested: one byte each plus `nested_blocks` = ceil(blocks / 256)
  // floats, a table of 256 floats and an offset; otherwise one float each.
  bool nested = false;
  uint64_t blocks = 0;
  uint64_t nested_blocks = 0;

  uint64_t ScaleBytes() const;  // of all parts beside the codes (0 if not kNf4)
  uint64_t TotalBytes() const { return bytes + ScaleBytes(); }
};

// Where Read puts a weight: the parts of a WeightView. Only `data` is needed unless the weight is kNf4.
struct WeightDestination {
  void* data = nullptr;             // StoredWeight::bytes
  uint8_t* absmax_codes = nullptr;  // nested: blocks
  float* nested_code = nullptr;     // nested: 256
  float* nested_absmax = nullptr;   // nested: nested_blocks
  float* nested_offset = nullptr;   // nested: 1
  float* absmax = nullptr;          // not nested: blocks
};

struct ListedTensor {  // for `inspect`
  std::string name;    // Hugging Face's name, or the file's own where it has none
  std::string type;    // "BF16", "Q4_1", "NF4", "Q6_K", ...
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};

class ModelFiles {
 public:
  // Checks the configuration and that every weight it needs is there with the right shape. Errors name the file.
  static absl::StatusOr<std::unique_ptr<ModelFiles>> Open(const std::string& source);
  virtual ~ModelFiles() = default;

  virtual ModelSourceKind kind() const = 0;
  const std::string& source() const { return source_; }
  const DecoderConfig& config() const { return config_; }
  // "none", "nf4", "q8_0+q4_1", ...: the block types among the linear layers' weights.
  std::string Quantization() const;

  // All names that the configuration requires, in the order of the forward pass.
  const std::vector<std::string>& names() const { return names_; }
  virtual bool Has(std::string_view name) const = 0;
  virtual absl::StatusOr<StoredWeight> Describe(std::string_view name) const = 0;
  // Copies the stored form. GGUF's rotary permutation of q and k rows is undone (whole rows move, blocks are
  // untouched).
  virtual absl::Status Read(std::string_view name, const WeightDestination& destination) const = 0;
  // Bytes [offset, offset + bytes) of the elements as Read gives them (NF4: of the codes), for readers that share a
  // weight. Files are read, not mapped.
  virtual absl::Status ReadPart(std::string_view name, uint64_t offset, uint64_t bytes, void* out) const = 0;
  // What Read gives beside `data`; nothing but for kNf4.
  virtual absl::Status ReadScales(std::string_view name, const WeightDestination& destination) const = 0;
  // rows * cols floats, decoded. Thread-safe, as everything here is.
  absl::Status ReadAsFloat(std::string_view name, float* out) const;

  virtual std::vector<ListedTensor> Tensors() const = 0;

  // The tokenizer beside the weights or in them. `random:` without one: bytes modulo the vocabulary.
  virtual absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer() const = 0;
  // Only what reads and writes text: opens a source whose weights are absent or broken (`tokenize`, `render`): a folder
  // with tokenizer.json, a tokenizer.json itself, or a GGUF file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizerOnly(const std::string& source);
  static absl::StatusOr<std::string> ReadChatTemplateOnly(const std::string& source);  // NotFound: none
  static absl::StatusOr<TemplateTokens> ReadTemplateTokensOnly(const std::string& source);

  const std::string& chat_template() const { return chat_template_; }  // empty: none
  const TemplateTokens& template_tokens() const { return template_tokens_; }

  // Changes when the model does: SHA-256 over the configuration's text, the tokenizer's text, and each weight file's
  // size, header and 64 KiB samples (first, last and 62 evenly spaced). Cheap: it does not read every byte, so it is a
  // cache key, not a proof of integrity. Does not depend on where the files lie.
  const std::string& digest() const { return digest_; }

 protected:
  std::string source_;
  DecoderConfig config_;
  std::vector<std::string> names_;
  std::string chat_template_;
  TemplateTokens template_tokens_;
  std::string digest_;
};

}  // namespace hone
