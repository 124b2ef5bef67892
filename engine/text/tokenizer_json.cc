#include "engine/text/tokenizer_json.h"

#include <map>
#include <string>

#include "engine/text/json_node.h"
#include "engine/text/unicode.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxFileBytes = size_t{128} << 20;
constexpr size_t kMaxSteps = 64;  // of a normaliser, pre-tokeniser or decoder
constexpr size_t kMaxStringBytes = 64 * 1024;

template <typename Step>
absl::Status Append(const JsonNode& node, std::vector<Step>& steps, Step step) {
  if (steps.size() >= kMaxSteps) return node.Error(StrCat("more than ", kMaxSteps, " steps"));
  steps.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ShortString(const JsonNode& node, std::string_view key) {
  HONE_ASSIGN_OR_RETURN(const JsonNode member, node.Member(key));
  HONE_ASSIGN_OR_RETURN(std::string text, member.String());
  if (text.size() > kMaxStringBytes) return member.Error(StrCat("longer than ", kMaxStringBytes, " bytes"));
  return text;
}

// {"String": "..."} or {"Regex": "..."}.
absl::StatusOr<Pattern> ReadPattern(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"String", "Regex"}));
  if (node.value().size() != 1) return node.Error("expected one of \"String\" and \"Regex\"");
  if (node.value().contains("String")) {
    HONE_ASSIGN_OR_RETURN(std::string literal, ShortString(node, "String"));
    if (literal.empty()) return node.Error("the pattern is empty");
    return Pattern(std::move(literal));
  }
  HONE_ASSIGN_OR_RETURN(const std::string regex, ShortString(node, "Regex"));
  absl::StatusOr<SplitRegex> compiled = SplitRegex::Compile(regex);
  if (!compiled.ok()) {
    const std::string message = StrCat(ToStd(compiled.status().message()), ", in \"", regex, "\"");
    return absl::IsUnimplemented(compiled.status()) ? node.NotImplemented(message) : node.Error(message);
  }
  return Pattern(*std::move(compiled));
}

absl::StatusOr<ReplaceStep> ReadReplace(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "pattern", "content"}));
  HONE_ASSIGN_OR_RETURN(const JsonNode pattern_node, node.Member("pattern"));
  HONE_ASSIGN_OR_RETURN(Pattern pattern, ReadPattern(pattern_node));
  HONE_ASSIGN_OR_RETURN(std::string content, ShortString(node, "content"));
  return ReplaceStep{std::move(pattern), std::move(content)};
}

// Calls read(element) for each element of the list `key`.
template <typename Read>
absl::Status ReadSequence(const JsonNode& node, std::string_view key, Read read) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"type", key}));
  HONE_ASSIGN_OR_RETURN(const JsonNode list, node.Member(key));
  HONE_RETURN_IF_ERROR(list.CheckArray());
  for (size_t i = 0; i < list.value().size(); ++i) HONE_RETURN_IF_ERROR(read(list.Element(i)));
  return absl::OkStatus();
}

absl::Status ReadNormalizer(const JsonNode& node, std::vector<NormalizerStep>& steps) {
  HONE_ASSIGN_OR_RETURN(const std::string type, node.StringMember("type"));
  if (type == "Sequence") {
    return ReadSequence(node, "normalizers", [&](const JsonNode& element) { return ReadNormalizer(element, steps); });
  }
  if (type == "NFC") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type"}));
    return Append<NormalizerStep>(node, steps, NfcStep{});
  }
  if (type == "Prepend") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "prepend"}));
    HONE_ASSIGN_OR_RETURN(std::string prepend, ShortString(node, "prepend"));
    return Append<NormalizerStep>(node, steps, PrependStep{std::move(prepend)});
  }
  if (type == "Replace") {
    HONE_ASSIGN_OR_RETURN(ReplaceStep replace, ReadReplace(node));
    return Append<NormalizerStep>(node, steps, std::move(replace));
  }
  return node.NotImplemented(
      StrCat("the normalizer \"", type, "\" is not implemented (NFC, Prepend, Replace, Sequence are)"));
}

absl::StatusOr<SplitBehavior> ReadBehavior(const JsonNode& node) {
  HONE_ASSIGN_OR_RETURN(const std::string name, node.String());
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return node.NotImplemented(StrCat("\"", name,
                                    "\" is not known; expected Removed, Isolated, MergedWithPrevious, "
                                    "MergedWithNext or Contiguous"));
}

absl::StatusOr<ByteLevelStep> ReadByteLevel(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  HONE_ASSIGN_OR_RETURN(const bool add_prefix_space, node.BoolMember("add_prefix_space", true));
  HONE_RETURN_IF_ERROR(node.BoolMember("trim_offsets", true).status());  // only moves offsets
  HONE_ASSIGN_OR_RETURN(const bool use_regex, node.BoolMember("use_regex", true));
  ByteLevelStep step{add_prefix_space, {}};
  if (use_regex) {
    HONE_ASSIGN_OR_RETURN(SplitRegex regex, SplitRegex::Compile(kGpt2Pattern));
    step.regex.push_back(std::move(regex));
  }
  return step;
}

absl::Status ReadPreTokenizer(const JsonNode& node, std::vector<PreTokenizerStep>& steps) {
  HONE_ASSIGN_OR_RETURN(const std::string type, node.StringMember("type"));
  if (type == "Sequence") {
    return ReadSequence(node, "pretokenizers",
                        [&](const JsonNode& element) { return ReadPreTokenizer(element, steps); });
  }
  if (!steps.empty() && std::holds_alternative<ByteLevelStep>(steps.back())) {
    return node.NotImplemented("a pre-tokenizer after ByteLevel is not implemented");
  }
  if (type == "Split") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "pattern", "behavior", "invert"}));
    HONE_ASSIGN_OR_RETURN(const JsonNode pattern_node, node.Member("pattern"));
    HONE_ASSIGN_OR_RETURN(Pattern pattern, ReadPattern(pattern_node));
    HONE_ASSIGN_OR_RETURN(const JsonNode behavior_node, node.Member("behavior"));
    HONE_ASSIGN_OR_RETURN(const SplitBehavior behavior, ReadBehavior(behavior_node));
    HONE_ASSIGN_OR_RETURN(const bool invert, node.BoolMember("invert", false));
    return Append<PreTokenizerStep>(node, steps, SplitStep{std::move(pattern), behavior, invert});
  }
  if (type == "Digits") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "individual_digits"}));
    HONE_ASSIGN_OR_RETURN(const bool individual, node.BoolMember("individual_digits", false));
    return Append<PreTokenizerStep>(node, steps, DigitsStep{individual});
  }
  if (type == "ByteLevel") {
    HONE_ASSIGN_OR_RETURN(ByteLevelStep step, ReadByteLevel(node));
    return Append<PreTokenizerStep>(node, steps, std::move(step));
  }
  return node.NotImplemented(
      StrCat("the pre-tokenizer \"", type, "\" is not implemented (Split, Digits, ByteLevel, Sequence are)"));
}

absl::StatusOr<StripStep> ReadStrip(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "content", "start", "stop"}));
  HONE_ASSIGN_OR_RETURN(const std::string content, ShortString(node, "content"));
  if (content.empty() || DecodeUtf8(content, 0).length != content.size()) {
    return node.Error("\"content\" must be one character");
  }
  HONE_ASSIGN_OR_RETURN(const JsonNode start_node, node.Member("start"));
  HONE_ASSIGN_OR_RETURN(const JsonNode stop_node, node.Member("stop"));
  HONE_ASSIGN_OR_RETURN(const int64_t start, start_node.Integer(0, INT32_MAX));
  HONE_ASSIGN_OR_RETURN(const int64_t stop, stop_node.Integer(0, INT32_MAX));
  return StripStep{DecodeUtf8(content, 0).value, static_cast<size_t>(start), static_cast<size_t>(stop)};
}

absl::Status ReadDecoder(const JsonNode& node, std::vector<DecoderStep>& steps) {
  HONE_ASSIGN_OR_RETURN(const std::string type, node.StringMember("type"));
  if (type == "Sequence") {
    return ReadSequence(node, "decoders", [&](const JsonNode& element) { return ReadDecoder(element, steps); });
  }
  if (type == "ByteFallback" || type == "Fuse") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type"}));
    return Append<DecoderStep>(node, steps, type == "Fuse" ? DecoderStep(FuseStep{}) : DecoderStep(ByteFallbackStep{}));
  }
  if (type == "Strip") {
    HONE_ASSIGN_OR_RETURN(const StripStep step, ReadStrip(node));
    return Append<DecoderStep>(node, steps, step);
  }
  if (type == "Replace") {
    HONE_ASSIGN_OR_RETURN(ReplaceStep replace, ReadReplace(node));
    return Append<DecoderStep>(node, steps, std::move(replace));
  }
  if (type == "ByteLevel") {
    HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    return Append<DecoderStep>(node, steps, ByteLevelDecodeStep{});
  }
  return node.NotImplemented(StrCat(
      "the decoder \"", type, "\" is not implemented (ByteFallback, Fuse, Strip, Replace, ByteLevel, Sequence are)"));
}

// The ids that special_tokens gives to one {"SpecialToken": {"id": NAME}} of a template.
absl::Status ReadTemplateToken(const JsonNode& node, const JsonNode& special_tokens, std::vector<int32_t>& out) {
  HONE_ASSIGN_OR_RETURN(const std::string name, node.StringMember("id"));
  if (!special_tokens.value().contains(name)) return node.Error(StrCat("\"", name, "\" is not in special_tokens"));
  HONE_ASSIGN_OR_RETURN(const JsonNode entry, special_tokens.Member(name));
  HONE_ASSIGN_OR_RETURN(const JsonNode ids, entry.Member("ids"));
  HONE_RETURN_IF_ERROR(ids.CheckArray());
  if (ids.value().size() > kMaxSteps) return ids.Error(StrCat("more than ", kMaxSteps, " ids"));
  for (size_t i = 0; i < ids.value().size(); ++i) {
    HONE_ASSIGN_OR_RETURN(const int64_t id, ids.Element(i).Integer(0, kMaxTokenId));
    out.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status ReadTemplate(const JsonNode& node, TokenizerModel& model) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"type", "single", "pair", "special_tokens"}));
  HONE_ASSIGN_OR_RETURN(const JsonNode special_tokens, node.Member("special_tokens"));
  HONE_RETURN_IF_ERROR(special_tokens.CheckObject());
  HONE_ASSIGN_OR_RETURN(const JsonNode single, node.Member("single"));
  HONE_RETURN_IF_ERROR(single.CheckArray());
  if (single.value().size() > kMaxSteps) return single.Error(StrCat("more than ", kMaxSteps, " elements"));
  std::vector<int32_t> prefix, suffix;
  bool seen_text = false;
  for (size_t i = 0; i < single.value().size(); ++i) {
    const JsonNode element = single.Element(i);
    HONE_RETURN_IF_ERROR(element.CheckKeys({"SpecialToken", "Sequence"}));
    HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> token, element.OptionalMember("SpecialToken"));
    if (token) {
      HONE_RETURN_IF_ERROR(ReadTemplateToken(*token, special_tokens, seen_text ? suffix : prefix));
      continue;
    }
    HONE_ASSIGN_OR_RETURN(const JsonNode sequence, element.Member("Sequence"));
    HONE_ASSIGN_OR_RETURN(const std::string id, sequence.StringMember("id"));
    if (id != "A" || seen_text)
      return sequence.NotImplemented("a template for one text must have sequence A exactly once");
    seen_text = true;
  }
  if (!seen_text) return single.Error("the template has no sequence A");
  // A later processor of a sequence works on what the earlier one made.
  model.prefix.insert(model.prefix.begin(), prefix.begin(), prefix.end());
  model.suffix.insert(model.suffix.end(), suffix.begin(), suffix.end());
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const JsonNode& node, TokenizerModel& model) {
  HONE_ASSIGN_OR_RETURN(const std::string type, node.StringMember("type"));
  if (type == "Sequence") {
    return ReadSequence(node, "processors", [&](const JsonNode& element) { return ReadPostProcessor(element, model); });
  }
  if (type == "TemplateProcessing") return ReadTemplate(node, model);
  // ByteLevel only moves offsets, off the spaces in front of words; ours keep them.
  if (type == "ByteLevel") return node.CheckKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  return node.NotImplemented(
      StrCat("the post-processor \"", type, "\" is not implemented (TemplateProcessing, ByteLevel, Sequence are)"));
}

absl::StatusOr<BpeOptions> ReadBpeOptions(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(
      node.CheckKeys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                      "byte_fallback", "ignore_merges", "vocab", "merges"}));
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> dropout, node.OptionalMember("dropout"));
  if (dropout && dropout->value() != 0) return dropout->NotImplemented("dropout is not implemented; expected null");
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    HONE_ASSIGN_OR_RETURN(const std::string text, node.StringMember(key, ""));
    if (!text.empty()) return node.NotImplemented(StrCat("\"", key, "\" is not implemented; expected null"));
  }
  BpeOptions options;
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> unk, node.OptionalMember("unk_token"));
  if (unk) {
    HONE_ASSIGN_OR_RETURN(options.unk_token, unk->String());
  }
  HONE_ASSIGN_OR_RETURN(options.fuse_unk, node.BoolMember("fuse_unk", false));
  HONE_ASSIGN_OR_RETURN(options.byte_fallback, node.BoolMember("byte_fallback", false));
  HONE_ASSIGN_OR_RETURN(options.ignore_merges, node.BoolMember("ignore_merges", false));
  return options;
}

absl::StatusOr<std::vector<std::pair<std::string, int32_t>>> ReadVocabulary(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckObject());
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  vocabulary.reserve(node.value().size());
  for (const auto& [text, value] : node.value().items()) {
    if (!value.is_number_integer())
      return node.Error(StrCat("the id of \"", text, "\" is ", value.dump(), ", not a whole number"));
    const bool in_range = value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(kMaxTokenId);
    if (!in_range)
      return node.Error(StrCat("the id ", value.dump(), " of \"", text, "\" is outside 0 ... ", kMaxTokenId));
    vocabulary.emplace_back(text, value.get<int32_t>());
  }
  return vocabulary;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckArray());
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(node.value().size());
  for (size_t i = 0; i < node.value().size(); ++i) {
    const nlohmann::json& entry = node.value()[i];
    if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      merges.emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
      continue;
    }
    if (!entry.is_string()) return node.Element(i).Expected("\"left right\" or [\"left\", \"right\"]");
    const std::string& text = entry.get_ref<const std::string&>();
    if (text.starts_with("#version")) continue;
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return node.Element(i).Error(StrCat("expected two texts with one space between them, found \"", text, "\""));
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

absl::Status ReadModel(const JsonNode& node, TokenizerModel& model) {
  HONE_ASSIGN_OR_RETURN(const std::string type, node.StringMember("type", "BPE"));
  if (type != "BPE") return node.NotImplemented(StrCat("the model \"", type, "\" is not implemented (BPE is)"));
  HONE_ASSIGN_OR_RETURN(BpeOptions options, ReadBpeOptions(node));
  options.byte_level =
      !model.pre_tokenizer.empty() && std::holds_alternative<ByteLevelStep>(model.pre_tokenizer.back());
  HONE_ASSIGN_OR_RETURN(const JsonNode vocab_node, node.Member("vocab"));
  HONE_ASSIGN_OR_RETURN(auto vocabulary, ReadVocabulary(vocab_node));
  HONE_ASSIGN_OR_RETURN(const JsonNode merges_node, node.Member("merges"));
  HONE_ASSIGN_OR_RETURN(const auto merges, ReadMerges(merges_node));
  absl::StatusOr<BpeModel> bpe = BpeModel::Create(std::move(vocabulary), merges, std::move(options));
  if (!bpe.ok()) return node.Error(ToStd(bpe.status().message()));
  model.bpe.emplace(*std::move(bpe));
  return absl::OkStatus();
}

// All but the id.
absl::StatusOr<AddedToken> ReadAddedTokenFlags(const JsonNode& node) {
  AddedToken token;
  HONE_ASSIGN_OR_RETURN(token.content, node.StringMember("content"));
  if (token.content.empty()) return node.Error("\"content\" is empty");
  if (token.content.size() > kMaxAddedTokenBytes) {
    return node.Error(StrCat("\"content\" is longer than ", kMaxAddedTokenBytes, " bytes"));
  }
  HONE_ASSIGN_OR_RETURN(token.special, node.BoolMember("special", false));
  HONE_ASSIGN_OR_RETURN(token.single_word, node.BoolMember("single_word", false));
  HONE_ASSIGN_OR_RETURN(token.lstrip, node.BoolMember("lstrip", false));
  HONE_ASSIGN_OR_RETURN(token.rstrip, node.BoolMember("rstrip", false));
  HONE_ASSIGN_OR_RETURN(token.normalized, node.BoolMember("normalized", !token.special));
  return token;
}

absl::StatusOr<AddedToken> ReadAddedToken(const JsonNode& node) {
  HONE_RETURN_IF_ERROR(node.CheckKeys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  HONE_ASSIGN_OR_RETURN(AddedToken token, ReadAddedTokenFlags(node));
  HONE_ASSIGN_OR_RETURN(const JsonNode id_node, node.Member("id"));
  HONE_ASSIGN_OR_RETURN(const int64_t id, id_node.Integer(0, kMaxTokenId));
  token.id = static_cast<int32_t>(id);
  return token;
}

// Hugging Face gives an added token the model's id of its text, else the next free one, whatever "id" says. A file
// where that differs from "id" means something else than it does: refused.
absl::Status ReadAddedTokens(const JsonNode& node, TokenizerModel& model) {
  HONE_RETURN_IF_ERROR(node.CheckArray());
  const auto vocabulary_size = static_cast<int32_t>(model.bpe->token_count());
  std::unordered_map<std::string, int32_t> ids;
  int32_t next = vocabulary_size;
  for (size_t i = 0; i < node.value().size(); ++i) {
    HONE_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(node.Element(i)));
    std::optional<int32_t> id = model.bpe->TokenId(token.content);
    if (const auto it = ids.find(token.content); it != ids.end()) id = it->second;
    if (!id) id = next;
    if (*id != token.id) {
      return node.Element(i).Error(
          StrCat("\"", token.content, "\" has the id ", token.id, ", but Hugging Face tokenizers would give it ", *id));
    }
    if (*id >= next) next = *id + 1;
    if (!ids.emplace(token.content, token.id).second) {
      return node.Element(i).Error(StrCat("\"", token.content, "\" is there twice"));
    }
    model.added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// Calls read(member) where the member is there and not null.
template <typename Read>
absl::Status IfPresent(const JsonNode& root, std::string_view key, Read read) {
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> member, root.OptionalMember(key));
  return member ? read(*member) : absl::OkStatus();
}

absl::Status ReadRoot(const JsonNode& root, TokenizerModel& model) {
  HONE_RETURN_IF_ERROR(root.CheckKeys({"version", "truncation", "padding", "added_tokens", "normalizer",
                                       "pre_tokenizer", "post_processor", "decoder", "model"}));
  HONE_ASSIGN_OR_RETURN(const std::string version, root.StringMember("version", "1.0"));
  if (version != "1.0") return root.NotImplemented(StrCat("version \"", version, "\" is not implemented (1.0 is)"));
  HONE_RETURN_IF_ERROR(
      IfPresent(root, "normalizer", [&](const JsonNode& node) { return ReadNormalizer(node, model.normalizer); }));
  HONE_RETURN_IF_ERROR(IfPresent(root, "pre_tokenizer",
                                 [&](const JsonNode& node) { return ReadPreTokenizer(node, model.pre_tokenizer); }));
  HONE_ASSIGN_OR_RETURN(const JsonNode model_node, root.Member("model"));
  HONE_RETURN_IF_ERROR(ReadModel(model_node, model));
  HONE_RETURN_IF_ERROR(
      IfPresent(root, "added_tokens", [&](const JsonNode& node) { return ReadAddedTokens(node, model); }));
  HONE_RETURN_IF_ERROR(
      IfPresent(root, "post_processor", [&](const JsonNode& node) { return ReadPostProcessor(node, model); }));
  return IfPresent(root, "decoder", [&](const JsonNode& node) {
    model.has_decoder = true;
    return ReadDecoder(node, model.decoder);
  });
}

// "added_tokens_decoder": {"151643": {"content": ..., flags}}. Most repeat tokenizer.json.
absl::Status ReadAddedTokensDecoder(const JsonNode& node, TokenizerModel& model) {
  HONE_RETURN_IF_ERROR(node.CheckObject());
  std::map<int32_t, AddedToken> missing;
  for (const auto& [key, value] : node.value().items()) {
    HONE_ASSIGN_OR_RETURN(const JsonNode entry, node.Member(key));
    HONE_ASSIGN_OR_RETURN(AddedToken token, ReadAddedTokenFlags(entry));
    const bool digits = !key.empty() && key.size() <= 7 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits) return entry.Error("expected a token's id as the key");
    token.id = std::stoi(key);
    const auto it = model.added_ids.find(token.content);
    const std::optional<int32_t> known = it != model.added_ids.end() ? it->second : model.bpe->TokenId(token.content);
    if (known && *known != token.id) {
      return entry.Error(StrCat("\"", token.content, "\" has the id ", *known, " in tokenizer.json"));
    }
    if (!known) missing.emplace(token.id, std::move(token));
  }
  for (auto& [id, token] : missing) {
    if (id != model.id_count) {
      return node.Error(StrCat("\"", token.content, "\" (", id,
                               ") is not in tokenizer.json, and the next free id there is ", model.id_count));
    }
    model.added.push_back(std::move(token));
    ++model.id_count;
  }
  return missing.empty() ? absl::OkStatus() : model.Finish();
}

// "bos_token": a text, or an object whose "content" is one.
absl::StatusOr<std::optional<int32_t>> ReadTokenName(const JsonNode& root, std::string_view key,
                                                     const TokenizerModel& model) {
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> node, root.OptionalMember(key));
  if (!node) return std::optional<int32_t>();
  absl::StatusOr<std::string> name = node->value().is_object() ? node->StringMember("content") : node->String();
  if (!name.ok()) return name.status();
  if (const auto it = model.added_ids.find(*name); it != model.added_ids.end())
    return std::optional<int32_t>(it->second);
  if (const std::optional<int32_t> id = model.bpe->TokenId(*name)) return id;
  return node->Error(StrCat("\"", *name, "\" is not a token of tokenizer.json"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenizerModel>> ReadTokenizerJson(std::string_view tokenizer_json) {
  absl::StatusOr<nlohmann::json> json = ParseJson(tokenizer_json, {.max_bytes = kMaxFileBytes});
  if (!json.ok()) return Annotate(json.status(), "tokenizer.json");
  auto model = std::make_unique<TokenizerModel>();
  HONE_RETURN_IF_ERROR(ReadRoot(JsonNode(*json, "", "tokenizer.json"), *model));
  HONE_RETURN_IF_ERROR(model->Finish());
  model->json = std::string(tokenizer_json);
  return model;
}

absl::Status ReadTokenizerConfigJson(std::string_view tokenizer_config_json, TokenizerModel& model) {
  absl::StatusOr<nlohmann::json> json = ParseJson(tokenizer_config_json);
  if (!json.ok()) return Annotate(json.status(), "tokenizer_config.json");
  const JsonNode root(*json, "", "tokenizer_config.json");
  HONE_RETURN_IF_ERROR(root.CheckObject());
  HONE_RETURN_IF_ERROR(IfPresent(root, "added_tokens_decoder",
                                 [&](const JsonNode& node) { return ReadAddedTokensDecoder(node, model); }));
  HONE_ASSIGN_OR_RETURN(model.bos, ReadTokenName(root, "bos_token", model));
  HONE_ASSIGN_OR_RETURN(model.eos, ReadTokenName(root, "eos_token", model));
  HONE_ASSIGN_OR_RETURN(model.pad, ReadTokenName(root, "pad_token", model));
  return absl::OkStatus();
}

}  // namespace hone
