// Ids, masks and KL ids equal TRL 0.24's (tests/golden/make_data.py).
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "engine/data/dataset.h"
#include "engine/data/kl_pairs.h"
#include "nlohmann/json.hpp"

namespace hone {
namespace {

using Json = nlohmann::json;

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

std::unique_ptr<Tokenizer> Stories(bool bos) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) return nullptr;
  const std::string folder = std::string(data) + "/models/stories260K/";
  const std::string config =
      bos ? ReadText(folder + "tokenizer_config.json") : R"({"eos_token": "</s>", "unk_token": "<unk>"})";
  auto tokenizer = Tokenizer::FromJson(ReadText(folder + "tokenizer.json"), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<Row> RowsOf(const Json& rows) {
  std::string lines;
  for (const Json& row : rows) lines += row.dump() + "\n";
  auto parsed = ParseRows(lines, "golden");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : std::vector<Row>{};
}

// TRL's labels: -100 where nothing is predicted. Our mask leaves out the first token, which TRL's shift drops.
void ExpectKto(const Example& example, const Json& expected, const std::string& what) {
  EXPECT_EQ(example.ids, expected["ids"].get<std::vector<int32_t>>()) << what;
  const auto labels = expected["labels"].get<std::vector<int32_t>>();
  ASSERT_EQ(labels.size(), example.trained.size()) << what;
  for (size_t i = 1; i < labels.size(); ++i)
    EXPECT_EQ(example.trained[i] != 0, labels[i] != -100) << what << " token " << i;
}

TEST(Trl, Kto) {
  const Json golden = Json::parse(ReadText(std::string(HONE_GOLDEN) + "/data/kto_trl.json"));
  const std::vector<Row> rows = RowsOf(golden["rows"]);
  int compared = 0;
  for (const Json& expected : golden["cases"]) {
    const auto tokenizer = Stories(expected["bos"]);
    if (tokenizer == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
    DataOptions options;
    options.example = {DataObjective::kKto, expected["max_length"], expected["max_prompt_length"]};
    options.kl_group_size = expected["kl_group_size"];
    auto built = BuildDataset(rows, {tokenizer.get(), nullptr}, options, 512);
    ASSERT_TRUE(built.ok()) << built.status();
    ASSERT_EQ(built->examples.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::string what = "max_length " + expected["max_length"].dump() + " row " + std::to_string(i + 1);
      ExpectKto(built->examples[i], expected["examples"][i], what);
      EXPECT_NE(built->kl_partner[i], i);
      if (rows.size() % options.kl_group_size == 1 && i + 1 == rows.size()) {
        EXPECT_EQ(built->kl_partner[i], i - 1);  // TRL pairs a last group of one with itself
        continue;
      }
      ExpectKto(built->kl[i], expected["kl"][i], "KL " + what);
      ++compared;
    }
  }
  EXPECT_GT(compared, 75);
}

TEST(Trl, Sft) {
  const auto tokenizer = Stories(true);
  if (tokenizer == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  const Json golden = Json::parse(ReadText(std::string(HONE_GOLDEN) + "/data/sft_trl.json"));
  const std::vector<Row> rows = RowsOf(golden["rows"]);
  for (const Json& expected : golden["cases"]) {
    for (size_t i = 0; i < rows.size(); ++i) {
      auto example =
          MakeSftExample(rows[i], {tokenizer.get(), nullptr}, {DataObjective::kSft, expected["max_length"], 512});
      ASSERT_TRUE(example.ok()) << example.status();
      EXPECT_EQ(example->ids, expected["examples"][i]["ids"].get<std::vector<int32_t>>()) << i;
      auto mask = expected["examples"][i]["mask"].get<std::vector<uint8_t>>();
      mask[0] = 0;
      EXPECT_EQ(example->trained, mask) << i;
    }
  }
}

}  // namespace
}  // namespace hone
