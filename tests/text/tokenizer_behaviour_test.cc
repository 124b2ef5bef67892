// What Hone adds to Hugging Face's behaviour: spans, decoding that never fails, bounded time, threads, GGUF
// vocabularies that come out as a tokenizer.json, byte vocabularies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "tests/text/tokenizer_test_data.h"

namespace hone {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::Pair;

#define LOAD_OR_SKIP(variable, name)                                   \
  const std::unique_ptr<Tokenizer> variable = LoadTestTokenizer(name); \
  if (variable == nullptr) GTEST_SKIP() << "HONE_TEST_DATA or HONE_TEST_SMOLLM2 is not set"

std::unique_ptr<Tokenizer> FromText(const std::string& text) {
  auto tokenizer = Tokenizer::FromJson(text);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(TokenizerSpans, ArePlacesInTheInputWhateverTheNormalizerDoes) {
  // Letters are their own tokens; spaces become two characters, each text begins with one, and é is composed.
  const auto tokenizer =
      FromText(R"({"model": {"type": "BPE", "vocab": {"▁": 0, "a": 1, "é": 2, "▁a": 3, "<s>": 4, "b": 5},
      "merges": ["▁ a"]}, "added_tokens": [{"id": 4, "content": "<s>", "special": true, "rstrip": true}],
      "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"},
                     {"type": "Replace", "pattern": {"String": " "}, "content": "▁▁"}]},
      "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}},
                         {"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [4]}}}})");
  const Encoding encoding = tokenizer->Encode("ae\u0301 a<s>  b", true).value();
  EXPECT_THAT(encoding.ids, ElementsAre(4, 3, 2, 0, 3, 4, 0, 5, 4));
  EXPECT_THAT(encoding.spans, ElementsAre(Pair(0, 0), Pair(0, 1), Pair(1, 4), Pair(4, 5), Pair(4, 6), Pair(6, 11),
                                          Pair(11, 12), Pair(11, 12), Pair(12, 12)));
}

TEST(TokenizerSpans, CoverTheTextWhereNothingIsRemoved) {
  LOAD_OR_SKIP(tokenizer, "qwen2");
  const std::string text = "na\u00efve \U0001f468\u200d\U0001f469 <|im_end|>\n e\u0301x";
  const Encoding encoding = tokenizer->Encode(text, true).value();
  uint32_t covered = 0;
  for (const auto& [begin, end] : encoding.spans) {
    EXPECT_LE(begin, covered);
    covered = std::max(covered, end);
  }
  EXPECT_EQ(covered, text.size());
}

// Hugging Face's NFC knows Unicode 9: younger marks keep their place, and marks around them do not cross them.
TEST(TokenizerNormalize, NfcIsThatOfUnicode9) {
  LOAD_OR_SKIP(tokenizer, "qwen2");
  auto normalized = [&](const std::string& text) { return tokenizer->Decode(tokenizer->Encode(text, false)->ids); };
  EXPECT_EQ(normalized("a\u0301\u0323"), "\u1ea1\u0301");
  EXPECT_EQ(normalized("a\u08d3\u0301\u0323"), "a\u08d3\u0323\u0301");
  EXPECT_EQ(normalized("e\u0301\u0d3b\u0301x"), "\u00e9\u0d3b\u0301x");
  EXPECT_EQ(normalized("\U00011935\U00011930"), "\U00011935\U00011930");
}

TEST(TokenizerDecode, NeverFails) {
  LOAD_OR_SKIP(tokenizer, "stories260k");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{-1, 1 << 30}), "\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{}), "");
  const int32_t half = *tokenizer->TokenId("<0xE2>");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{half}), "\uFFFD");
  const auto byte_level = FromText(R"({"model": {"type": "BPE", "vocab": {"a": 0, "Ã": 1}, "merges": []},
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"}})");
  EXPECT_EQ(byte_level->Decode(std::vector<int32_t>{0, 1, 0, 5}), "a\uFFFDa\uFFFD");
}

TEST(TokenizerSpeed, AMegabyteWithoutABreakIsNotQuadratic) {
  for (const char* name : {"qwen2", "mistral"}) {
    LOAD_OR_SKIP(tokenizer, name);
    for (const char c : {'a', ' ', '=', '\n'}) {
      const auto start = std::chrono::steady_clock::now();
      const auto encoding = tokenizer->Encode(std::string(1 << 20, c), false);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      ASSERT_TRUE(encoding.ok()) << encoding.status();
      EXPECT_LT(seconds.count(), 20.0) << name << " on a million of '" << c << "'";  // quadratic: hours
      EXPECT_EQ(encoding->spans.back().second, 1u << 20);
    }
  }
}

TEST(Tokenizer, IsSharedByThreads) {
  LOAD_OR_SKIP(tokenizer, "mistral");
  const std::string text = "The quick brown fox, 1234 \u4f60\u597d \U0001f600 <s> again and again";
  const std::vector<int32_t> expected = tokenizer->Encode(text, true)->ids;
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        const auto encoding = tokenizer->Encode(text, true);
        if (!encoding.ok() || encoding->ids != expected || tokenizer->Decode(expected).empty()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, SaysWhatItIs) {
  LOAD_OR_SKIP(tokenizer, "qwen3");
  EXPECT_EQ(tokenizer->kind(), "byte-level BPE");
  EXPECT_TRUE(tokenizer->normalizes());
  EXPECT_EQ(tokenizer->vocab_size(), 151669);
  EXPECT_EQ(tokenizer->eos_id(), 151645);
  EXPECT_EQ(tokenizer->pad_id(), 151643);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->TokenId("<|im_end|>"), 151645);
  EXPECT_EQ(tokenizer->TokenText(151645), "<|im_end|>");
  EXPECT_EQ(tokenizer->TokenId("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer->TokenText(1 << 30), "");
  EXPECT_TRUE(tokenizer->IsSpecial(151645));
  EXPECT_FALSE(tokenizer->IsSpecial(151667));  // <think> is added, but not special
  EXPECT_EQ(tokenizer->added_tokens().size(), 26u);
  EXPECT_EQ(LoadTestTokenizer("mistral")->kind(), "byte-fallback BPE");
}

TEST(TokenizerGguf, ComesOutAsATokenizerJsonThatReadsTheSame) {
  LOAD_OR_SKIP(tokenizer, "smollm2");
  EXPECT_EQ(tokenizer->kind(), "byte-level BPE");
  EXPECT_FALSE(tokenizer->normalizes());
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_TRUE(tokenizer->IsSpecial(2));
  const auto again = FromText(tokenizer->ToTokenizerJson());
  const std::string text = "<|im_start|>user\nWhat is 12345?<|im_end|>\n";
  EXPECT_EQ(again->Encode(text, true)->ids, tokenizer->Encode(text, true)->ids);
  EXPECT_EQ(again->ToTokenizerJson(), tokenizer->ToTokenizerJson());
}

// Qwen2's own vocabulary as a GGUF would hold it must read as its tokenizer.json does.
TEST(TokenizerGguf, Qwen2sPreTokenizerIsThatOfItsTokenizerJson) {
  LOAD_OR_SKIP(original, "qwen2");
  const json file = json::parse(original->ToTokenizerJson());
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "qwen2";
  vocabulary.tokens.resize(151646);
  vocabulary.token_types.assign(151646, 1);
  for (const auto& [token, id] : file["model"]["vocab"].items()) vocabulary.tokens[id.get<size_t>()] = token;
  for (const json& token : file["added_tokens"]) {
    vocabulary.tokens[token["id"].get<size_t>()] = token["content"];
    vocabulary.token_types[token["id"].get<size_t>()] = 3;
  }
  vocabulary.merges = file["model"]["merges"].get<std::vector<std::string>>();
  const auto tokenizer = Tokenizer::FromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::istringstream lines(GoldenText("tokenizer_strings.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto text = json::parse(line).get<std::string>();
    ASSERT_EQ((*tokenizer)->Encode(text, true)->ids, original->Encode(text, true)->ids) << line;
  }
}

GgufVocabulary Letters(const std::string& pre) {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = pre;
  vocabulary.tokens = {"1", "2",       "3",       "4", "12", "123", "1234", "\u0120",
                       "a", "\u0120a", "<|end|>", "'", "S",  "'S",  "aS",   "u"};
  vocabulary.token_types = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 4};
  vocabulary.merges = {"1 2", "12 3", "123 4", "\u0120 a", "' S"};
  vocabulary.bos = 10;
  return vocabulary;
}

std::vector<int32_t> Ids(const GgufVocabulary& vocabulary, const std::string& text) {
  const auto tokenizer = Tokenizer::FromGguf(vocabulary);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return (*tokenizer)->Encode(text, true)->ids;
}

TEST(TokenizerGguf, PreTokenizersDifferAsTheyShould) {
  EXPECT_THAT(Ids(Letters("smollm"), "1234 a"), ElementsAre(0, 1, 2, 3, 9));  // every digit alone
  EXPECT_THAT(Ids(Letters("gpt-2"), "1234 a"), ElementsAre(6, 9));            // digits together
  EXPECT_THAT(Ids(Letters("llama-bpe"), "1234 a"), ElementsAre(5, 3, 9));     // three at a time
  EXPECT_THAT(Ids(Letters("qwen2"), "1234 a"), ElementsAre(0, 1, 2, 3, 9));
  EXPECT_THAT(Ids(Letters("gpt-2"), "a'S"), ElementsAre(8, 11, 12));  // contractions are lower case only
  EXPECT_THAT(Ids(Letters("llama-bpe"), "a'S"), ElementsAre(8, 13));  // of any case
  EXPECT_THAT(Ids(Letters("gpt-2"), "aS"), ElementsAre(8, 12));       // no merge makes "aS"
  EXPECT_THAT(Ids(Letters("llama-bpe"), "aS"), ElementsAre(14));      // ignore_merges
  EXPECT_THAT(Ids(Letters("gpt-2"), "a<|end|>a"), ElementsAre(8, 10, 8));
}

TEST(TokenizerGguf, AddsBosAndEosWhereTheFileSaysSo) {
  GgufVocabulary vocabulary = Letters("llama-bpe");
  vocabulary.eos = 10;
  vocabulary.add_bos = vocabulary.add_eos = true;
  EXPECT_THAT(Ids(vocabulary, "a"), ElementsAre(10, 8, 10));
  const auto tokenizer = Tokenizer::FromGguf(vocabulary);
  EXPECT_THAT((*tokenizer)->Encode("a", false)->ids, ElementsAre(8));
  EXPECT_TRUE((*tokenizer)->IsSpecial(10));
  EXPECT_FALSE((*tokenizer)->IsSpecial(15));  // user defined
}

TEST(TokenizerBytes, AreBytesModuloTheVocabulary) {
  const auto tokenizer = Tokenizer::Bytes(100);
  const Encoding encoding = tokenizer->Encode("ae\u0301", true).value();
  EXPECT_THAT(encoding.ids, ElementsAre(97, 1, 0xCC % 100, 0x81 % 100));
  EXPECT_THAT(encoding.spans, ElementsAre(Pair(0, 1), Pair(1, 2), Pair(2, 4), Pair(2, 4)));
  EXPECT_EQ(tokenizer->kind(), "bytes");
  EXPECT_TRUE(tokenizer->normalizes());
  EXPECT_EQ(tokenizer->vocab_size(), 100);
  EXPECT_EQ(tokenizer->ToTokenizerJson(), "");
  const auto wide = Tokenizer::Bytes(512);
  const std::string text = "a\u00e9\U0001f600";
  EXPECT_EQ(wide->Decode(wide->Encode(text, true)->ids), text);
  EXPECT_EQ(wide->Decode(std::vector<int32_t>{97, 300}), "a\uFFFD");
}

}  // namespace
}  // namespace hone
