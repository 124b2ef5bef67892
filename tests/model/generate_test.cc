#include "engine/model/generate.h"

#include <cmath>
#include <map>

#include "gtest/gtest.h"

namespace hone {
namespace {

TEST(SampleToken, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {0, 3, -1, 3};
  EXPECT_EQ(SampleToken(logits, {}, 0), 1);
}

TEST(SampleToken, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  SamplingOptions options;
  options.temperature = 1;
  options.seed = 9;
  std::map<int32_t, int> counts;
  for (int i = 0; i < 20000; ++i) ++counts[SampleToken(logits, options, i)];
  EXPECT_NEAR(counts[0] / 20000.0, 0.5, 0.015);
  EXPECT_NEAR(counts[1] / 20000.0, 0.3, 0.015);
  EXPECT_NEAR(counts[2] / 20000.0, 0.2, 0.015);
}

TEST(SampleToken, TopKAndTopPKeepTheHead) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 2;
  for (int i = 0; i < 2000; ++i) EXPECT_NE(SampleToken(logits, options, i), 2);
  options.top_k = 0;
  options.top_p = 0.5;  // the first token alone reaches it
  for (int i = 0; i < 2000; ++i) EXPECT_EQ(SampleToken(logits, options, i), 0);
}

TEST(SampleToken, ASeedAndAPositionGiveOneToken) {
  const std::vector<float> logits(50, 0.0f);
  SamplingOptions options;
  options.temperature = 1;
  options.seed = 4;
  for (int i = 0; i < 50; ++i) EXPECT_EQ(SampleToken(logits, options, i), SampleToken(logits, options, i));
}

}  // namespace
}  // namespace hone
