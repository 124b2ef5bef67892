#include "engine/io/tokenizer_to_gguf.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// Two tokens, one merge, one special token: enough for everything but the pre-tokeniser.
json Tiny() {
  return json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 3, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})");
}

absl::StatusOr<GgufVocabulary> Convert(const json& tokenizer, int64_t vocab_size = 5) {
  const std::string text = tokenizer.dump();
  auto opened = Tokenizer::FromJson(text, R"({"eos_token": "<end>"})");
  if (!opened.ok()) return opened.status();
  return VocabularyFromTokenizerJson(text, **opened, vocab_size);
}

TEST(TokenizerToGguf, TokensTypesMergesAndPadding) {
  auto vocabulary = Convert(Tiny());
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->model, "gpt2");
  EXPECT_EQ(vocabulary->pre, "gpt-2");
  EXPECT_THAT(vocabulary->tokens, ElementsAre("a", "b", "ab", "<end>", "[PAD4]"));
  EXPECT_THAT(vocabulary->token_types, ElementsAre(1, 1, 1, 3, 5));
  EXPECT_THAT(vocabulary->merges, ElementsAre("a b"));
  EXPECT_EQ(vocabulary->eos, 3);
  EXPECT_FALSE(vocabulary->add_bos);
  EXPECT_FALSE(vocabulary->add_eos);
  EXPECT_THAT(ErrorOf(Convert(Tiny(), 3)), HasSubstr("'<end>' has an id outside the model's 3 embeddings"));
}

TEST(TokenizerToGguf, RecognisesPreTokenisersAndRefusesOthers) {
  json smollm = Tiny();
  smollm["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]})");
  EXPECT_EQ(Convert(smollm)->pre, "smollm");
  json grouped = smollm;
  grouped["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_THAT(ErrorOf(Convert(grouped)), HasSubstr("none of those"));
  json normalised = Tiny();
  normalised["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(ErrorOf(Convert(normalised)), HasSubstr("none of those"));
  json spaced = Tiny();
  spaced["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_FALSE(Convert(spaced).ok());
  json whole_words = Tiny();
  whole_words["model"]["ignore_merges"] = true;
  EXPECT_THAT(ErrorOf(Convert(whole_words)), HasSubstr("none of those"));
}

TEST(TokenizerToGguf, RealTokenizersKeepTheirIds) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  for (const char* name : {"qwen2", "qwen3"}) {
    const std::string folder = StrCat(data, "/tokenizers/", name);
    const std::string text = ReadFile(folder + "/tokenizer.json").value();
    const auto original = Tokenizer::FromJson(text, ReadFile(folder + "/tokenizer_config.json").value()).value();
    auto vocabulary = VocabularyFromTokenizerJson(text, *original, 151936);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    EXPECT_EQ(vocabulary->pre, "qwen2");
    auto again = Tokenizer::FromGguf(*std::move(vocabulary));
    ASSERT_TRUE(again.ok()) << again.status();
    for (const char* sample :
         {"Hello 12345 wörld", "<|im_start|>user\n你好<|im_end|>\n", "  def f(x):\n\treturn x's", "e\u0301"}) {
      EXPECT_EQ(original->Encode(sample, true)->ids, (*again)->Encode(sample, true)->ids) << name << ": " << sample;
    }
    EXPECT_EQ((*again)->eos_id(), original->eos_id());
  }
  const std::string folder = StrCat(data, "/tokenizers/mistral-7b-instruct-v0.2");
  const std::string text = ReadFile(folder + "/tokenizer.json").value();
  const auto mistral = Tokenizer::FromJson(text).value();
  EXPECT_THAT(ErrorOf(VocabularyFromTokenizerJson(text, *mistral, 32000)), HasSubstr("byte-level BPE tokenizers only"));
}

}  // namespace
}  // namespace hone
