// A GGUF's vocabulary as a tokenizer.json, which the one interpreter then reads: what runs and what is exported cannot
// differ. The pre-tokenisers are those of the models that `tokenizer.ggml.pre` names, as their own tokenizer.json has
// them.
#include <array>
#include <unordered_set>

#include "engine/text/pretokenizer.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_json.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

enum TokenType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlamaPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Json ByteLevel(bool use_regex, bool trim_offsets = true) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", trim_offsets}, {"use_regex", use_regex}};
}

Json SplitThenByteLevel(std::string_view pattern) {
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", std::string(pattern)}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, ByteLevel(false)})}};
}

struct PreTokenizer {
  Json normalizer, pre_tokenizer;
  bool ignore_merges = false;
};

absl::StatusOr<PreTokenizer> FindPreTokenizer(const std::string& pre) {
  if (pre == "smollm") {
    const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
    return PreTokenizer{nullptr, {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, ByteLevel(true)})}}};
  }
  if (pre == "gpt-2") return PreTokenizer{nullptr, ByteLevel(true)};
  if (pre == "qwen2") return PreTokenizer{{{"type", "NFC"}}, SplitThenByteLevel(kQwen2Pattern)};
  if (pre == "llama-bpe") return PreTokenizer{nullptr, SplitThenByteLevel(kLlamaPattern), true};
  return Unimplemented("tokenizer.ggml.pre: \"", pre, "\" is not implemented (smollm, gpt-2, llama-bpe and qwen2 are)");
}

absl::Status CheckId(std::string_view key, const std::optional<int32_t>& id, size_t count) {
  if (!id || (*id >= 0 && static_cast<size_t>(*id) < count)) return absl::OkStatus();
  return InvalidArgument(key, ": ", *id, " is outside the ", count, " tokens");
}

absl::Status CheckVocabulary(const GgufVocabulary& vocabulary) {
  if (vocabulary.model != "gpt2") {
    return Unimplemented("tokenizer.ggml.model: \"", vocabulary.model,
                         "\" is not implemented (gpt2, byte-level BPE, is)");
  }
  const size_t count = vocabulary.tokens.size();
  if (count == 0) return InvalidArgument("tokenizer.ggml.tokens: empty");
  if (count > static_cast<size_t>(kMaxTokenId))
    return InvalidArgument("tokenizer.ggml.tokens: ", count, " entries are too many");
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count) {
    return InvalidArgument("tokenizer.ggml.token_type: ", vocabulary.token_types.size(), " entries for ", count,
                           " tokens");
  }
  std::unordered_set<std::string_view> seen;
  for (size_t i = 0; i < count; ++i) {
    size_t offset = 0;
    if (!IsValidUtf8(vocabulary.tokens[i], &offset)) {
      return InvalidArgument("tokenizer.ggml.tokens[", i, "]: not valid UTF-8 at byte ", offset);
    }
    if (!seen.insert(vocabulary.tokens[i]).second) {
      return InvalidArgument("tokenizer.ggml.tokens[", i, "]: \"", vocabulary.tokens[i], "\" is there twice");
    }
  }
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    if (!IsValidUtf8(vocabulary.merges[i])) return InvalidArgument("tokenizer.ggml.merges[", i, "]: not valid UTF-8");
  }
  HONE_RETURN_IF_ERROR(CheckId("tokenizer.ggml.bos_token_id", vocabulary.bos, count));
  HONE_RETURN_IF_ERROR(CheckId("tokenizer.ggml.eos_token_id", vocabulary.eos, count));
  HONE_RETURN_IF_ERROR(CheckId("tokenizer.ggml.padding_token_id", vocabulary.pad, count));
  HONE_RETURN_IF_ERROR(CheckId("tokenizer.ggml.unknown_token_id", vocabulary.unk, count));
  if (vocabulary.add_bos && !vocabulary.bos)
    return InvalidArgument("tokenizer.ggml.add_bos_token: there is no BOS token");
  if (vocabulary.add_eos && !vocabulary.eos)
    return InvalidArgument("tokenizer.ggml.add_eos_token: there is no EOS token");
  return absl::OkStatus();
}

// Control and user-defined tokens are searched for in every text; llama.cpp does the same.
absl::StatusOr<Json> AddedTokens(const GgufVocabulary& vocabulary) {
  Json added = Json::array();
  for (size_t id = 0; id < vocabulary.token_types.size(); ++id) {
    const int32_t type = vocabulary.token_types[id];
    if (type < kNormal || type > kByte)
      return InvalidArgument("tokenizer.ggml.token_type[", id, "]: ", type, " is not known");
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    if (vocabulary.tokens[id].empty()) continue;
    added.push_back({{"id", id},
                     {"content", vocabulary.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  return added;
}

Json PostProcessor(const GgufVocabulary& vocabulary) {
  if (!vocabulary.add_bos && !vocabulary.add_eos) return ByteLevel(true, false);
  Json single = Json::array(), pair = Json::array(), special = Json::object();
  auto add_token = [&](bool add, const std::optional<int32_t>& id, Json& list, int type_id) {
    if (!add) return;
    const std::string& text = vocabulary.tokens[*id];
    list.push_back({{"SpecialToken", {{"id", text}, {"type_id", type_id}}}});
    special[text] = {{"id", text}, {"ids", Json::array({*id})}, {"tokens", Json::array({text})}};
  };
  auto add_text = [&](const char* name, Json& list, int type_id) {
    add_token(vocabulary.add_bos, vocabulary.bos, list, type_id);
    list.push_back({{"Sequence", {{"id", name}, {"type_id", type_id}}}});
    add_token(vocabulary.add_eos, vocabulary.eos, list, type_id);
  };
  add_text("A", single, 0);
  add_text("A", pair, 0);
  add_text("B", pair, 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

absl::StatusOr<std::string> WriteTokenizerJson(const GgufVocabulary& vocabulary) {
  HONE_ASSIGN_OR_RETURN(const PreTokenizer pre, FindPreTokenizer(vocabulary.pre));
  HONE_ASSIGN_OR_RETURN(Json added, AddedTokens(vocabulary));
  nlohmann::json tokens = nlohmann::json::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) tokens[vocabulary.tokens[id]] = id;
  Json json = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", std::move(added)},
               {"normalizer", pre.normalizer},
               {"pre_tokenizer", pre.pre_tokenizer},
               {"post_processor", PostProcessor(vocabulary)},
               {"decoder", ByteLevel(true)}};
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", pre.ignore_merges}};
  std::string text = json.dump();
  // The vocabulary goes in by text: ordered_json would search it at every insertion.
  text.resize(text.size() - 2);
  text += StrCat(R"(,"vocab":)", tokens.dump(), R"(,"merges":)", nlohmann::json(vocabulary.merges).dump(), "}}");
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const GgufVocabulary& vocabulary) {
  HONE_RETURN_IF_ERROR(CheckVocabulary(vocabulary));
  HONE_ASSIGN_OR_RETURN(const std::string json, WriteTokenizerJson(vocabulary));
  absl::StatusOr<std::unique_ptr<TokenizerModel>> model = ReadTokenizerJson(json);
  if (!model.ok()) return Annotate(model.status(), "the GGUF's vocabulary as a tokenizer.json");
  (*model)->bos = vocabulary.bos;
  (*model)->eos = vocabulary.eos;
  (*model)->pad = vocabulary.pad;
  return std::unique_ptr<Tokenizer>(new Tokenizer(*std::move(model)));
}

}  // namespace hone
