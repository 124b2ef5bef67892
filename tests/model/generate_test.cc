#include "engine/model/generate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

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

// Beside the plain way: everything sorted.
TEST(SampleToken, EqualsTheDrawFromAFullSort) {
  constexpr int kTokens = 3000;
  std::vector<float> logits(kTokens);
  for (int i = 0; i < kTokens; ++i) logits[i] = static_cast<float>((i * 7919) % 97) * 0.05f;
  std::vector<int32_t> order(kTokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  for (const auto& [top_k, top_p] :
       {std::pair<int64_t, double>{0, 1}, {0, 0.9}, {0, 0.3}, {1, 1}, {50, 1}, {700, 0.5}}) {
    SamplingOptions options;
    options.temperature = 0.7;
    options.top_k = top_k, options.top_p = top_p;
    const int keep = top_k > 0 ? static_cast<int>(top_k) : kTokens;
    std::vector<double> weights;
    for (int i = 0; i < keep; ++i) weights.push_back(std::exp((logits[order[i]] - logits[order[0]]) / 0.7));
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    double mass = 0;
    int head = 0;
    while (head < keep && (head == 0 || mass < top_p * sum)) mass += weights[head++];
    int in_last_place = 0;
    std::map<int32_t, int> places;
    for (int i = 0; i < kTokens; ++i) places[order[i]] = i;
    double mean = 0, expected = 0;
    constexpr int kDraws = 600;
    for (int i = 0; i < kDraws; ++i) {
      options.seed = static_cast<uint64_t>(i);
      const int place = places[SampleToken(logits, options, 3)];
      ASSERT_LT(place, head) << top_k << " " << top_p;
      in_last_place += place == head - 1;
      mean += static_cast<double>(place) / kDraws;
    }
    for (int i = 0; i < head; ++i) expected += i * weights[i] / mass;
    EXPECT_NEAR(mean, expected, 0.05 * head + 1e-9) << top_k << " " << top_p;
    EXPECT_LE(in_last_place, head == 1 ? kDraws : kDraws / 10);
  }
}

}  // namespace
}  // namespace hone
