#include "kernels/cuda/tuning_cache.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace hone::cuda {
namespace {

TuningTable Table() {
  TuningTable table;
  for (int64_t i = 0; i < 3; ++i) {
    TunedAlgorithm tuned;
    for (size_t j = 0; j < tuned.bytes.size(); ++j) tuned.bytes[j] = static_cast<uint8_t>(17 * i + 5 * j);
    tuned.workspace_bytes = static_cast<uint64_t>(i) << 20;
    tuned.microseconds = 100.25 + static_cast<double>(i) / 3;
    tuned.description = "id66,tile197";
    TuningKey key{};
    key[0] = 4096 - i, key[3] = -1;
    table[key] = tuned;
  }
  return table;
}

void ExpectEqual(const TuningTable& got, const TuningTable& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [key, tuned] : expected) {
    ASSERT_TRUE(got.contains(key));
    const TunedAlgorithm& other = got.at(key);
    EXPECT_EQ(other.bytes, tuned.bytes);
    EXPECT_EQ(other.workspace_bytes, tuned.workspace_bytes);
    EXPECT_EQ(other.microseconds, tuned.microseconds);
    EXPECT_EQ(other.description, tuned.description);
  }
}

TEST(TuningCache, ReadsWhatItWrote) {
  ExpectEqual(ParseTuning(FormatTuning("card, driver 1", Table()), "card, driver 1"), Table());
  ExpectEqual(ParseTuning(FormatTuning("card", {}), "card"), {});
}

TEST(TuningCache, IgnoresAnotherMachinesFile) {
  EXPECT_TRUE(ParseTuning(FormatTuning("card, driver 1", Table()), "card, driver 2").empty());
}

TEST(TuningCache, IgnoresEveryDamage) {
  const std::string text = FormatTuning("card", Table());
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_TRUE(ParseTuning(text.substr(0, length), "card").empty()) << length;
  }
  for (size_t at = 0; at < text.size(); ++at) {
    std::string damaged = text;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    EXPECT_TRUE(ParseTuning(damaged, "card").empty()) << at;
  }
  EXPECT_TRUE(ParseTuning(text + text, "card").empty());
}

TEST(TuningCache, LivesInAFile) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / "tuning.txt").string();
  std::filesystem::remove(path);
  EXPECT_TRUE(LoadTuning(path, "card").empty());
  ASSERT_TRUE(SaveTuning(path, "card", Table()).ok());
  ExpectEqual(LoadTuning(path, "card"), Table());
  EXPECT_FALSE(SaveTuning("/nonexistent/folder/tuning.txt", "card", Table()).ok());
}

}  // namespace
}  // namespace hone::cuda
