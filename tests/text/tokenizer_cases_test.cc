// Every option of tokenizer.json by small tokenizers, against Hugging Face `tokenizers` 0.22.2
// (tests/golden/make_tokenizer_cases.py).
#include <gtest/gtest.h>

#include <set>

#include "nlohmann/json.hpp"
#include "tests/text/tokenizer_test_data.h"

namespace hone {
namespace {

using nlohmann::json;

// As build() in make_tokenizer_cases.py.
json BuildTokenizer(json value, const json& test_case) {
  value.update(test_case["set"]);
  json& model = value["model"];
  model.update(test_case["model"]);
  model["vocab"].update(test_case["add"]);
  if (test_case["remove"].empty()) return value;
  for (const auto& token : test_case["remove"]) model["vocab"].erase(token.get<std::string>());
  const json& vocab = model["vocab"];
  json merges = json::array();
  for (const auto& merge : model["merges"]) {
    const std::string left = merge[0], right = merge[1];
    if (vocab.contains(left) && vocab.contains(right) && vocab.contains(left + right)) merges.push_back(merge);
  }
  model["merges"] = merges;
  return value;
}

TEST(TokenizerCases, EveryOptionGivesTheIdsAndTextOfHuggingFace) {
  const json fixture = json::parse(GoldenText("tokenizer_cases.json"));
  const auto texts = fixture["texts"].get<std::vector<std::string>>();
  ASSERT_GE(fixture["cases"].size(), 80u);
  int compared = 0;
  for (const json& test_case : fixture["cases"]) {
    const std::string name = test_case["name"];
    const json value = BuildTokenizer(fixture["bases"][test_case["base"].get<std::string>()], test_case);
    const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::FromJson(value.dump());
    ASSERT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
    int wrong = 0;
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::string expected = test_case["expected"][i];
      const std::string digest = TokenizerDigest(**tokenizer, texts[i]);
      if (expected == "panic") continue;  // Hugging Face's code panics; ours must only not crash
      ++compared;
      if (digest == expected || ++wrong > 3) continue;
      const Encoding encoding = (*tokenizer)->Encode(texts[i], true).value();
      ADD_FAILURE() << name << ": " << json(texts[i]).dump() << "\n ids " << json(encoding.ids).dump() << "\n decoded "
                    << json((*tokenizer)->Decode(encoding.ids)).dump();
    }
    EXPECT_EQ(wrong, 0) << name;
  }
  EXPECT_GT(compared, 3000);
}

}  // namespace
}  // namespace hone
