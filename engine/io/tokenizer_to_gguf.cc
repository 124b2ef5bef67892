#include "engine/io/tokenizer_to_gguf.h"

#include <algorithm>

#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using nlohmann::json;

constexpr int32_t kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5;

constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlamaPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

json Member(const json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() ? json() : *found;
}

bool IsByteLevel(const json& step, bool use_regex) {
  const json regex = Member(step, "use_regex");
  return Member(step, "type") == "ByteLevel" && Member(step, "add_prefix_space") == false &&
         (regex.is_null() ? use_regex : regex == use_regex);
}

bool IsSplit(const json& step, std::string_view pattern) {
  return Member(step, "type") == "Split" && Member(Member(step, "pattern"), "Regex") == std::string(pattern) &&
         Member(step, "behavior") == "Isolated" && Member(step, "invert") == false;
}

bool IsDigits(const json& step) {
  return Member(step, "type") == "Digits" && Member(step, "individual_digits") == true;
}

bool IsNfc(const json& normalizer) {
  if (Member(normalizer, "type") == "Sequence") {
    const json steps = Member(normalizer, "normalizers");
    return steps.is_array() && steps.size() == 1 && IsNfc(steps[0]);
  }
  return Member(normalizer, "type") == "NFC";
}

absl::StatusOr<std::string> PreName(const json& root) {
  const json normalizer = Member(root, "normalizer"), pre = Member(root, "pre_tokenizer");
  const bool ignore_merges = Member(Member(root, "model"), "ignore_merges") == true;
  if (IsByteLevel(pre, true) && normalizer.is_null() && !ignore_merges) return std::string("gpt-2");
  const json steps = Member(pre, "pretokenizers");
  if (Member(pre, "type") == "Sequence" && steps.is_array() && steps.size() == 2) {
    if (IsDigits(steps[0]) && IsByteLevel(steps[1], true) && normalizer.is_null() && !ignore_merges) {
      return std::string("smollm");
    }
    if (IsSplit(steps[0], kLlamaPattern) && IsByteLevel(steps[1], false) && normalizer.is_null() && ignore_merges) {
      return std::string("llama-bpe");
    }
    if (IsSplit(steps[0], kQwen2Pattern) && IsByteLevel(steps[1], false) && IsNfc(normalizer) && !ignore_merges) {
      return std::string("qwen2");
    }
  }
  return Unimplemented(
      "tokenizer.json: its normaliser and pre-tokeniser are none of those that GGUF export knows a "
      "tokenizer.ggml.pre for (smollm, gpt-2, llama-bpe, qwen2)");
}

absl::Status Place(GgufVocabulary& out, const std::string& token, const json& id, int32_t type) {
  if (!id.is_number_unsigned() || id.get<uint64_t>() >= out.tokens.size()) {
    return InvalidArgument("tokenizer.json: '", EscapeForDisplay(token), "' has an id outside the model's ",
                           out.tokens.size(), " embeddings");
  }
  out.tokens[id.get<uint64_t>()] = token;
  out.token_types[id.get<uint64_t>()] = type;
  return absl::OkStatus();
}

absl::Status ReadTokens(const json& root, GgufVocabulary& out) {
  const json vocab = Member(Member(root, "model"), "vocab");
  if (!vocab.is_object()) return InvalidArgument("tokenizer.json: model.vocab must be an object");
  for (const auto& [token, id] : vocab.items()) HONE_RETURN_IF_ERROR(Place(out, token, id, kNormal));
  const json added = Member(root, "added_tokens");
  if (!added.is_array()) return absl::OkStatus();
  for (const json& entry : added) {
    const json content = Member(entry, "content");
    if (!content.is_string()) return InvalidArgument("tokenizer.json: added_tokens: content must be a string");
    const int32_t type = Member(entry, "special") == true ? kControl : kUserDefined;
    HONE_RETURN_IF_ERROR(Place(out, content.get<std::string>(), Member(entry, "id"), type));
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const json& root, GgufVocabulary& out) {
  const json merges = Member(Member(root, "model"), "merges");
  if (!merges.is_array()) return InvalidArgument("tokenizer.json: model.merges must be a list");
  out.merges.reserve(merges.size());
  for (const json& merge : merges) {
    std::string text;
    if (merge.is_string()) {
      text = merge.get<std::string>();
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      text = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    }
    if (std::count(text.begin(), text.end(), ' ') != 1) {
      return InvalidArgument("tokenizer.json: model.merges[", out.merges.size(),
                             "] is not a pair of tokens without spaces");
    }
    out.merges.push_back(std::move(text));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufVocabulary> VocabularyFromTokenizerJson(std::string_view tokenizer_json, const Tokenizer& tokenizer,
                                                           int64_t vocab_size) {
  auto root = ParseJson(tokenizer_json, {.max_bytes = size_t{256} << 20});
  if (!root.ok()) return Annotate(root.status(), "tokenizer.json");
  const json model = Member(*root, "model");
  if (Member(model, "type") != "BPE" || Member(model, "byte_fallback") == true) {
    return Unimplemented("tokenizer.json: GGUF export writes byte-level BPE tokenizers only, this is ",
                         tokenizer.kind());
  }
  GgufVocabulary out;
  out.model = "gpt2";
  HONE_ASSIGN_OR_RETURN(out.pre, PreName(*root));
  out.tokens.resize(static_cast<size_t>(vocab_size));
  out.token_types.assign(static_cast<size_t>(vocab_size), kUnused);
  for (size_t i = 0; i < out.tokens.size(); ++i) out.tokens[i] = StrCat("[PAD", i, "]");
  HONE_RETURN_IF_ERROR(ReadTokens(*root, out));
  HONE_RETURN_IF_ERROR(ReadMerges(*root, out));
  out.bos = tokenizer.bos_id();
  out.eos = tokenizer.eos_id();
  out.pad = tokenizer.pad_id();
  // What the post-processor adds is seen best by letting it.
  HONE_ASSIGN_OR_RETURN(const Encoding plain, tokenizer.Encode("a", false));
  HONE_ASSIGN_OR_RETURN(const Encoding special, tokenizer.Encode("a", true));
  const size_t added = special.ids.size() - plain.ids.size();
  out.add_bos = added > 0 && out.bos && special.ids.front() == *out.bos;
  out.add_eos = added > (out.add_bos ? 1u : 0u) && out.eos && special.ids.back() == *out.eos;
  if (added != (out.add_bos ? 1u : 0u) + (out.add_eos ? 1u : 0u)) {
    return Unimplemented(
        "tokenizer.json: its post-processor adds tokens other than BOS and EOS, which GGUF cannot say");
  }
  return out;
}

}  // namespace hone
