#include "engine/data/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "engine/data/reference_cache.h"

namespace hone {
namespace {

using testing::HasSubstr;

TEST(Report, CountsByHand) {
  auto rows = ParseRows(R"({"prompt_ids":[97,98],"completion_ids":[99,100],"label":true}
{"prompt_ids":[97,98],"completion_ids":[99,100],"label":true}
{"prompt_ids":[97,98,99,100,101,102],"completion_ids":[49,50,51,52],"label":true}
{"prompt_ids":[97],"completion_ids":[120],"label":false})",
                        "test");
  ASSERT_TRUE(rows.ok());
  DataOptions options;
  options.example = {DataObjective::kKto, 7, 4};
  auto built = BuildTrainEval(*rows, {}, options, 256);
  ASSERT_TRUE(built.ok()) << built.status();
  const auto tokenizer = Tokenizer::Bytes(256);
  ReportOptions report_options;
  report_options.kto = true;
  report_options.previews = 2;
  report_options.preview_tokens = 3;
  const DataReport report = MakeReport(*rows, *built, tokenizer.get(), report_options);
  EXPECT_EQ(report.rows, 4u);
  EXPECT_EQ(report.tokens, 4u + 4 + 7 + 2);
  EXPECT_EQ(report.supervised_tokens, 2u + 2 + 3 + 1);
  EXPECT_EQ(report.truncated_examples, 1u);
  EXPECT_EQ(report.cut_prompt_tokens, 2u);
  EXPECT_EQ(report.cut_completion_tokens, 1u);
  EXPECT_EQ(report.duplicate_examples, 1u);
  EXPECT_EQ(report.shortest, 2);
  EXPECT_EQ(report.longest, 7);
  EXPECT_EQ(report.histogram, (std::vector<uint64_t>{0, 1, 2, 1}));
  ASSERT_TRUE(report.labels.has_value());
  EXPECT_EQ(report.labels->desirable, 3u);
  const auto json = ReportToJson(report);
  EXPECT_DOUBLE_EQ(json["supervised_share"].get<double>(), 8.0 / 17);
  EXPECT_EQ(json["preview"].size(), 2u);
  EXPECT_EQ(
      json["preview"][0]["tokens"].dump(),
      R"([{"id":97,"text":"a","trained":false},{"id":98,"text":"b","trained":false},{"id":99,"text":"c","trained":true}])");
  EXPECT_EQ(json["preview"][0]["shortened"], true);
  EXPECT_EQ(json["histogram"].dump(),
            R"([{"up_to":2,"examples":1},{"up_to":4,"examples":2},{"up_to":8,"examples":1}])");
  EXPECT_EQ(json["warnings"].size(), 3u);
}

// trl/trainer/kto_trainer.py's bounds, evaluated in Python for these counts and weights.
TEST(Report, WeightAdviceAsTrl) {
  const LabelBalance balance = AdviseWeights(30, 10, 1.0, 1.0);
  EXPECT_TRUE(balance.advised);
  EXPECT_DOUBLE_EQ(balance.desirable_range.low, 0.33);
  EXPECT_DOUBLE_EQ(balance.desirable_range.high, 0.44);
  EXPECT_DOUBLE_EQ(balance.undesirable_range.low, 2.26);
  EXPECT_DOUBLE_EQ(balance.undesirable_range.high, 3.0);
  EXPECT_FALSE(AdviseWeights(30, 10, 1.0, 3.0).advised);
  EXPECT_FALSE(AdviseWeights(30, 10, 0.4, 1.0).advised);
  EXPECT_FALSE(AdviseWeights(10, 10, 5.0, 1.0).advised);
}

TEST(ReferenceCache, SavesAndRefusesDamage) {
  const std::string folder = testing::TempDir() + "/hone_reference_cache";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string path = folder + "/reference.bin";
  auto empty = ReferenceCache::Load(path);
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->size(), 0u);
  Example a;
  a.ids = {1, 2};
  a.trained = {0, 1};
  Example b = a;
  b.trained = {0, 0};
  EXPECT_NE(MakeReferenceKey("m", a), MakeReferenceKey("m", b));
  EXPECT_NE(MakeReferenceKey("m", a), MakeReferenceKey("n", a));
  empty->Put(MakeReferenceKey("m", a), -1.25);
  empty->Put(MakeReferenceKey("m", b), 0.1);
  ASSERT_TRUE(empty->Save(path).ok());
  auto loaded = ReferenceCache::Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->size(), 2u);
  EXPECT_EQ(loaded->Find(MakeReferenceKey("m", a)), -1.25);
  EXPECT_EQ(loaded->Find(MakeReferenceKey("m", b)), 0.1);
  EXPECT_FALSE(loaded->Find(MakeReferenceKey("x", b)).has_value());

  const auto size = std::filesystem::file_size(path);
  for (const uint64_t at : {uint64_t{0}, uint64_t{9}, uint64_t{20}, size - 1}) {
    ASSERT_TRUE(empty->Save(path).ok());
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<long>(at));
    file.put('\x7e');
    file.close();
    EXPECT_THAT(std::string(ReferenceCache::Load(path).status().message()), HasSubstr("reference cache")) << at;
  }
  for (const uint64_t cut : {uint64_t{5}, uint64_t{30}, size - 1}) {
    ASSERT_TRUE(empty->Save(path).ok());
    std::filesystem::resize_file(path, cut);
    EXPECT_FALSE(ReferenceCache::Load(path).ok()) << cut;
  }
}

}  // namespace
}  // namespace hone
