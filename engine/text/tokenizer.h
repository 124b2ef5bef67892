// Text to token ids and back, exactly as Hugging Face `tokenizers` does it for the subset CONTRACT.md lists (BPE with
// its normalisers, pre-tokenisers, post-processors, decoders and added tokens). Built from a tokenizer.json, from a
// GGUF's vocabulary, or as plain bytes for random models. Not here: chat templates (chat_template.h), reading GGUF
// files (engine/io).
//
// Errors while loading name the file and the JSON path. A Tokenizer is immutable: every method is const and may be
// called from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Encoding {
  std::vector<int32_t> ids;
  // Byte span [begin, end) of the input text that each id came from, one per id, never decreasing in begin. Where a
  // character is split over several ids each of them has the whole character. Ids the post-processor adds have empty
  // spans.
  std::vector<std::pair<uint32_t, uint32_t>> spans;
};

// What a GGUF file says of its tokenizer (keys tokenizer.ggml.*), read by engine/io/gguf.h.
struct GgufVocabulary {
  std::string model;  // tokenizer.ggml.model: only "gpt2" (byte-level BPE) is implemented
  std::string pre;    // tokenizer.ggml.pre: smollm, gpt-2, llama-bpe, qwen2
  std::vector<std::string> tokens;
  std::vector<int32_t>
      token_types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty: all normal
  std::vector<std::string> merges;  // "left right", best first
  std::optional<int32_t> bos, eos, pad, unk;
  bool add_bos = false, add_eos = false;
};

class TokenizerModel;  // what is behind it; tokenizer_model.h

class Tokenizer {
 public:
  // tokenizer_json: the text of tokenizer.json. tokenizer_config_json: the text of tokenizer_config.json, for the names
  // of the BOS, EOS and padding tokens; empty if there is none. Errors name what is not implemented and its JSON path.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view tokenizer_json,
                                                             std::string_view tokenizer_config_json = {});
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufVocabulary& vocabulary);
  // Each byte of the text modulo vocab_size is an id; no special tokens. For `random:` models without a tokenizer.
  static std::unique_ptr<Tokenizer> Bytes(int vocab_size);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // add_special_tokens: run the post-processor's template (BOS, EOS). Special tokens written in the text are always
  // read as such. Fails on invalid UTF-8, with the byte offset, and on text of more than 256 MiB.
  absl::StatusOr<Encoding> Encode(std::string_view text, bool add_special_tokens) const;
  // Never fails: an id outside the vocabulary, and bytes that are not UTF-8, read as U+FFFD.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  int vocab_size() const;  // largest id + 1, added tokens included
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::string TokenText(int32_t id) const;  // as the vocabulary spells it; empty for an unknown id
  std::optional<int32_t> TokenId(std::string_view token) const;
  bool IsSpecial(int32_t id) const;
  std::string_view kind() const;  // "byte-level BPE", "byte-fallback BPE", "BPE", "bytes"
  bool normalizes() const;        // whether Decode(Encode(x)) may be NFC(x) or otherwise differ from x
  std::vector<std::pair<std::string, int32_t>> added_tokens() const;

  // A tokenizer.json that Hugging Face tokenizers loads and that gives the same ids. One read by FromJson comes back as
  // it was read; one from a GGUF is written anew. Empty for Bytes, which has none.
  std::string ToTokenizerJson() const;

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerModel> model);
  std::unique_ptr<TokenizerModel> model_;
};

}  // namespace hone
