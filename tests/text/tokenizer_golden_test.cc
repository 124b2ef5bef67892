// The same ids and the same decoded text as Hugging Face `tokenizers` 0.22.2, on 2,100 strings for each of five
// tokenizers. tests/golden/make_tokenizer.py made the digests and says what they are.
#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <sstream>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "tests/text/tokenizer_test_data.h"

namespace hone {
namespace {

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> Strings() {
  std::vector<std::string> strings;
  for (const std::string& line : Lines(GoldenText("tokenizer_strings.jsonl"))) {
    strings.push_back(nlohmann::json::parse(line).get<std::string>());
  }
  return strings;
}

std::string Nfc(const std::string& text) {
  utf8proc_uint8_t* out = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &out, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string result(reinterpret_cast<char*>(out), static_cast<size_t>(length));
  std::free(out);
  return result;
}

// SmolLM2's vocabulary has no token for these bytes; Hugging Face drops them too.
bool HasBytesSmolLm2Lacks(const std::string& text) {
  return text.find_first_of("\x04\x06\x13\x14\x16\x1d\xf1\xf2") != std::string::npos;
}

void CheckSpans(const std::string& text, const Encoding& encoding) {
  ASSERT_EQ(encoding.spans.size(), encoding.ids.size());
  uint32_t begin = 0;
  for (const auto& span : encoding.spans) {
    ASSERT_LE(begin, span.first);
    ASSERT_LE(span.first, span.second);
    ASSERT_LE(span.second, text.size());
    begin = span.first;
    if (span.first < text.size()) {
      ASSERT_NE(static_cast<uint8_t>(text[span.first]) & 0xC0, 0x80) << text;
    }
  }
}

class TokenizerGolden : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerGolden, GivesTheIdsAndTextOfHuggingFace) {
  const std::string name = GetParam();
  const std::unique_ptr<Tokenizer> tokenizer = LoadTestTokenizer(name);
  if (tokenizer == nullptr) GTEST_SKIP() << "HONE_TEST_DATA or HONE_TEST_SMOLLM2 is not set";
  const std::vector<std::string> strings = Strings();
  const std::vector<std::string> expected = Lines(GoldenText("tokenizer_" + name + ".txt"));
  ASSERT_GE(strings.size(), 2000u);
  ASSERT_EQ(strings.size(), expected.size());
  int wrong = 0, round_trips = 0;
  for (size_t i = 0; i < strings.size(); ++i) {
    const Encoding plain = tokenizer->Encode(strings[i], false).value();
    const Encoding special = tokenizer->Encode(strings[i], true).value();
    const std::string decoded = tokenizer->Decode(special.ids);
    if (TokenizerDigest(*tokenizer, strings[i]) != expected[i] && ++wrong < 10) {
      ADD_FAILURE() << "string " << i << ": " << nlohmann::json(strings[i]).dump(-1, ' ', true) << "\n ids "
                    << nlohmann::json(plain.ids).dump() << "\n decoded " << decoded;
    }
    CheckSpans(strings[i], plain);
    CheckSpans(strings[i], special);
    if (name == "mistral" || name == "stories260k") continue;
    if (name == "smollm2" && HasBytesSmolLm2Lacks(strings[i])) continue;
    EXPECT_EQ(decoded, tokenizer->normalizes() ? Nfc(strings[i]) : strings[i]);
    ++round_trips;
  }
  EXPECT_EQ(wrong, 0);
  RecordProperty("strings", static_cast<int>(strings.size()));
  RecordProperty("round_trips", round_trips);
}

TEST_P(TokenizerGolden, GivesTheVeryIds) {
  const std::string name = GetParam();
  const std::unique_ptr<Tokenizer> tokenizer = LoadTestTokenizer(name);
  if (tokenizer == nullptr) GTEST_SKIP() << "HONE_TEST_DATA or HONE_TEST_SMOLLM2 is not set";
  const nlohmann::json expected = nlohmann::json::parse(GoldenText("tokenizer_" + name + "_ids.json"));
  const std::vector<std::string> strings = Strings();
  ASSERT_GT(expected.size(), 50u);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(nlohmann::json(tokenizer->Encode(strings[i + 3], false)->ids), expected[i]) << strings[i + 3];
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGolden, testing::Values("smollm2", "qwen2", "qwen3", "mistral", "stories260k"),
                         [](const auto& info) { return std::string(info.param); });

// llama.cpp's own vectors: texts with a line between them, ids one line each.
TEST(Tokenizer, GivesQwen2sPublishedIds) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadTestTokenizer("qwen2");
  if (tokenizer == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  const std::string input = ReadFile(TestDataFolder() + "/token_ids/qwen2.inp").value();
  const std::vector<std::string> expected = Lines(ReadFile(TestDataFolder() + "/token_ids/qwen2.out").value());
  const std::string separator = "\n__ggml_vocab_test__\n";
  size_t begin = 0, checked = 0;
  while (checked < expected.size()) {
    const size_t end = input.find(separator, begin);
    if (end == std::string::npos) break;
    const std::string text = input.substr(begin, end - begin);
    const Encoding encoding = tokenizer->Encode(text, false).value();
    std::string ids;
    for (const int32_t id : encoding.ids) ids += StrCat(" ", id);
    EXPECT_EQ(ids, expected[checked]) << text;
    ++checked;
    begin = end + separator.size();
  }
  EXPECT_GE(checked, 40u);
}

}  // namespace
}  // namespace hone
