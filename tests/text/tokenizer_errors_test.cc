// What cannot be read is a clear error that names the place, and nothing a file says makes us hang or grow without
// bound.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nlohmann/json.hpp"
#include "proto/base/status.h"
#include "tests/text/tokenizer_test_data.h"

namespace hone {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json Minimal() {
  return json::parse(R"({"version": "1.0", "added_tokens": [
      {"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

std::string LoadError(const json& value) {
  const auto tokenizer = Tokenizer::FromJson(value.dump());
  return tokenizer.ok() ? "loaded" : std::string(ToStd(tokenizer.status().message()));
}

TEST(TokenizerErrors, TheMinimalFileLoads) { EXPECT_EQ(LoadError(Minimal()), "loaded"); }

TEST(TokenizerErrors, NameThePlaceAndWhatWasExpected) {
  struct Case {
    const char *pointer, *value, *message;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"/model", "[]", "tokenizer.json: model: expected an object, found an array"},
           {"/model/vocab", "[\"a\"]", "tokenizer.json: model.vocab: expected an object, found an array"},
           {"/model/vocab/a", "\"0\"", "model.vocab: the id of \"a\" is \"0\", not a whole number"},
           {"/model/vocab/a", "1.5", "not a whole number"},
           {"/model/vocab/a", "-1", "outside 0 ... 4194303"},
           {"/model/vocab/a", "99999999999999999999", "not a whole number"},
           {"/model/vocab/a", "1000000000", "outside 0 ... 4194303"},
           {"/model/vocab/a", "70000", "the id 70000 of \"a\" is outside 0 ... 65548 (for 3 tokens)"},
           {"/model/vocab/a", "1", "have the same id 1"},
           {"/model/merges", "{}", "model.merges: expected an array, found an object"},
           {"/model/merges/0", "7",
            "model.merges[0]: expected \"left right\" or [\"left\", \"right\"], found a number"},
           {"/model/merges/0", "\"ab\"", "model.merges[0]: expected two texts with one space between them"},
           {"/model/merges/0", "[\"a\"]", "model.merges[0]: expected \"left right\""},
           {"/model/merges/0", "\"a c\"", "merges[0]: \"c\" is not in the vocabulary"},
           {"/model/merges/0", "\"b a\"", "merges[0]: \"ba\" is not in the vocabulary"},
           {"/model/type", "\"Unigram\"", "model: the model \"Unigram\" is not implemented"},
           {"/model/type", "3", "model.type: expected a string, found a number"},
           {"/model/dropout", "0.1", "model.dropout: dropout is not implemented"},
           {"/model/unk_token", "\"x\"", "unk_token: \"x\" is not in the vocabulary"},
           {"/model/unk_token", "true", "model.unk_token: expected a string, found a boolean"},
           {"/model/fuse_unk", "\"yes\"", "model.fuse_unk: expected true or false, found a string"},
           {"/model/continuing_subword_prefix", "\"##\"", "\"continuing_subword_prefix\" is not implemented"},
           {"/model/surprise", "1", "model: \"surprise\" is not known"},
           {"/surprise", "1", "tokenizer.json: \"surprise\" is not known"},
           {"/version", "\"2.0\"", "version \"2.0\" is not implemented"},
           {"/added_tokens", "{}", "added_tokens: expected an array, found an object"},
           {"/added_tokens/0/id", "\"3\"",
            "added_tokens[0].id: expected a whole number from 0 to 4194303, found a string"},
           {"/added_tokens/0/id", "7",
            "added_tokens[0]: \"<s>\" has the id 7, but Hugging Face tokenizers would give it 3"},
           {"/added_tokens/0/content", "null", "added_tokens[0]: \"content\" is missing"},
           {"/added_tokens/0/content", "\"\"", "added_tokens[0]: \"content\" is empty"},
           {"/added_tokens/0/lstrip", "0", "added_tokens[0].lstrip: expected true or false, found a number"},
           {"/normalizer", "{\"type\": \"NFKC\"}", "normalizer: the normalizer \"NFKC\" is not implemented"},
           {"/normalizer",
            "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"Lowercase\"}]}",
            "normalizer.normalizers[1]: the normalizer \"Lowercase\" is not implemented"},
           {"/normalizer", "{}", "normalizer: \"type\" is missing"},
           {"/normalizer", "{\"type\": \"Prepend\"}", "normalizer: \"prepend\" is missing"},
           {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"Glob\": \"a\"}, \"content\": \"\"}",
            "normalizer.pattern: \"Glob\" is not known"},
           {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"\"}",
            "the pattern is empty"},
           {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"(\"}, \"content\": \"\"}",
            "normalizer.pattern: "},
           {"/pre_tokenizer", "{\"type\": \"Metaspace\"}",
            "pre_tokenizer: the pre-tokenizer \"Metaspace\" is not implemented"},
           {"/pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\b\"}, \"behavior\": \"Isolated\"}",
            "pre_tokenizer.pattern: regular expression: the escape \\b at byte 0 is not implemented"},
           {"/pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": \"Sometimes\"}",
            "pre_tokenizer.behavior: \"Sometimes\" is not known"},
           {"/pre_tokenizer",
            "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, {\"type\": \"Digits\"}]}",
            "pre_tokenizer.pretokenizers[1]: a pre-tokenizer after ByteLevel is not implemented"},
           {"/post_processor", "{\"type\": \"BertProcessing\"}",
            "post_processor: the post-processor \"BertProcessing\""},
           {"/post_processor",
            "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<x>\"}}], "
            "\"special_tokens\": {}}",
            "post_processor.single[0].SpecialToken: \"<x>\" is not in special_tokens"},
           {"/post_processor", "{\"type\": \"TemplateProcessing\", \"single\": [], \"special_tokens\": {}}",
            "the template has no sequence A"},
           {"/post_processor",
            "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<x>\"}}, {\"Sequence\": "
            "{\"id\": "
            "\"A\"}}], \"special_tokens\": {\"<x>\": {\"ids\": [99]}}}",
            "post_processor: the id 99 is not a token"},
           {"/decoder", "{\"type\": \"WordPiece\"}", "decoder: the decoder \"WordPiece\" is not implemented"},
           {"/decoder", "{\"type\": \"Strip\", \"content\": \"ab\", \"start\": 1, \"stop\": 0}",
            "must be one character"},
           {"/decoder", "{\"type\": \"Strip\", \"content\": \"a\", \"start\": -1, \"stop\": 0}",
            "decoder.start: expected a whole"},
       }) {
    json value = Minimal();
    value[json::json_pointer(c.pointer)] = json::parse(c.value);
    EXPECT_THAT(LoadError(value), HasSubstr(c.message)) << c.pointer << " = " << c.value;
  }
}

TEST(TokenizerErrors, NotJson) {
  EXPECT_THAT(ToStd(Tokenizer::FromJson("{\"model\":").status().message()), HasSubstr("tokenizer.json: "));
  EXPECT_THAT(ToStd(Tokenizer::FromJson("[]").status().message()), HasSubstr("expected an object, found an array"));
  EXPECT_FALSE(Tokenizer::FromJson("").ok());
}

TEST(TokenizerErrors, TheConfigNamesTokensThatExist) {
  const std::string file = Minimal().dump();
  EXPECT_THAT(ToStd(Tokenizer::FromJson(file, R"({"eos_token": "</s>"})").status().message()),
              HasSubstr("tokenizer_config.json: eos_token: \"</s>\" is not a token of tokenizer.json"));
  EXPECT_THAT(ToStd(Tokenizer::FromJson(file, R"({"eos_token": 5})").status().message()),
              HasSubstr("eos_token: expected a string, found a number"));
  const auto tokenizer =
      Tokenizer::FromJson(file, R"({"eos_token": {"content": "<s>"}, "bos_token": "a", "pad_token": null})");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->eos_id(), 3);
  EXPECT_EQ((*tokenizer)->bos_id(), 0);
  EXPECT_EQ((*tokenizer)->pad_id(), std::nullopt);
}

TEST(TokenizerErrors, TheConfigMayAddTokensThatFollow) {
  const std::string file = Minimal().dump();
  const auto tokenizer = Tokenizer::FromJson(
      file,
      R"({"added_tokens_decoder": {"3": {"content": "<s>", "special": true}, "5": {"content": "<u>", "rstrip": true},
                "4": {"content": "<t>", "special": true}}, "eos_token": "<t>"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->eos_id(), 4);
  EXPECT_EQ((*tokenizer)->vocab_size(), 6);
  EXPECT_THAT((*tokenizer)->Encode("ab<t><s><u>  a", false)->ids, testing::ElementsAre(2, 4, 3, 5, 0));
  EXPECT_THAT(
      ToStd(Tokenizer::FromJson(file, R"({"added_tokens_decoder": {"9": {"content": "<t>"}}})").status().message()),
      HasSubstr("added_tokens_decoder: \"<t>\" (9) is not in tokenizer.json, and the next free id there is 4"));
  EXPECT_THAT(
      ToStd(Tokenizer::FromJson(file, R"({"added_tokens_decoder": {"0": {"content": "<s>"}}})").status().message()),
      HasSubstr("added_tokens_decoder.0: \"<s>\" has the id 3 in tokenizer.json"));
  EXPECT_THAT(
      ToStd(Tokenizer::FromJson(file, R"({"added_tokens_decoder": {"x": {"content": "<t>"}}})").status().message()),
      HasSubstr("expected a token's id as the key"));
}

TEST(TokenizerErrors, InvalidUtf8SaysWhere) {
  const auto tokenizer = Tokenizer::FromJson(Minimal().dump());
  EXPECT_THAT(ToStd((*tokenizer)->Encode("ab\xFFz", true).status().message()), HasSubstr("byte 2"));
  EXPECT_THAT(ToStd(Tokenizer::Bytes(256)->Encode("\xC3", true).status().message()), HasSubstr("byte 0"));
}

TEST(TokenizerErrors, ReplacementsThatGrowWithoutBoundAreRefused) {
  json value = Minimal();
  json steps = json::array();
  for (int i = 0; i < 60; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  value["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  auto tokenizer = Tokenizer::FromJson(value.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE(absl::IsResourceExhausted((*tokenizer)->Encode("a", false).status()));
  value["normalizer"] = nullptr;
  value["decoder"] = {{"type", "Sequence"}, {"decoders", steps}};
  tokenizer = Tokenizer::FromJson(value.dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_LT((*tokenizer)->Decode(std::vector<int32_t>{0, 0}).size(), size_t{1} << 20);
}

GgufVocabulary SmallVocabulary() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "smollm";
  vocabulary.tokens = {"a", "b", "ab", "<s>"};
  vocabulary.token_types = {1, 1, 1, 3};
  vocabulary.merges = {"a b"};
  return vocabulary;
}

TEST(TokenizerErrors, Gguf) {
  EXPECT_TRUE(Tokenizer::FromGguf(SmallVocabulary()).ok());
  auto error = [](auto change) {
    GgufVocabulary vocabulary = SmallVocabulary();
    change(vocabulary);
    return std::string(ToStd(Tokenizer::FromGguf(std::move(vocabulary)).status().message()));
  };
  EXPECT_THAT(error([](auto& v) { v.model = "llama"; }),
              HasSubstr("tokenizer.ggml.model: \"llama\" is not implemented"));
  EXPECT_THAT(error([](auto& v) { v.pre = "tekken"; }), HasSubstr("tokenizer.ggml.pre: \"tekken\" is not implemented"));
  EXPECT_THAT(error([](auto& v) { v.tokens.clear(); }), HasSubstr("tokenizer.ggml.tokens: empty"));
  EXPECT_THAT(error([](auto& v) { v.tokens[1] = "a"; }), HasSubstr("tokenizer.ggml.tokens[1]: \"a\" is there twice"));
  EXPECT_THAT(error([](auto& v) { v.tokens[1] = "\xFF"; }), HasSubstr("tokenizer.ggml.tokens[1]: not valid UTF-8"));
  EXPECT_THAT(error([](auto& v) { v.token_types.pop_back(); }),
              HasSubstr("tokenizer.ggml.token_type: 3 entries for 4"));
  EXPECT_THAT(error([](auto& v) { v.token_types[0] = 9; }), HasSubstr("tokenizer.ggml.token_type[0]: 9 is not known"));
  EXPECT_THAT(error([](auto& v) { v.merges[0] = "a c"; }), HasSubstr("merges[0]: \"c\" is not in the vocabulary"));
  EXPECT_THAT(error([](auto& v) { v.bos = 4; }), HasSubstr("tokenizer.ggml.bos_token_id: 4 is outside the 4 tokens"));
  EXPECT_THAT(error([](auto& v) { v.add_eos = true; }),
              HasSubstr("tokenizer.ggml.add_eos_token: there is no EOS token"));
}

}  // namespace
}  // namespace hone
