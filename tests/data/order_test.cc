#include "engine/data/order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/data/kl_pairs.h"
#include "engine/data/split.h"

namespace hone {
namespace {

using testing::HasSubstr;

// Known answers of the authors' Random123 distribution (kat_vectors, philox 4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Order, PermutationsArePermutationsAndDiffer) {
  std::set<std::vector<uint32_t>> seen;
  for (uint64_t seed : {0ull, 1ull, 3407ull, ~0ull}) {
    for (uint64_t epoch : {0ull, 1ull, 1ull << 40}) {
      std::vector<uint32_t> order = Permutation(100, seed, epoch);
      EXPECT_TRUE(seen.insert(order).second);
      std::sort(order.begin(), order.end());
      for (uint32_t i = 0; i < 100; ++i) ASSERT_EQ(order[i], i);
    }
  }
  EXPECT_EQ(Permutation(100, 1, 2), Permutation(100, 1, 2));
  EXPECT_NE(Permutation(100, 1, 2, 0), Permutation(100, 1, 2, 1));
  EXPECT_EQ(Permutation(1, 1, 1), std::vector<uint32_t>{0});
}

TEST(Order, EveryPositionIsReachedEqually) {
  int counts[5][5] = {};
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const auto order = Permutation(5, seed, 0);
    for (int i = 0; i < 5; ++i) ++counts[i][order[static_cast<size_t>(i)]];
  }
  for (const auto& row : counts) {
    for (int count : row) EXPECT_NEAR(count, 1000, 150);  // 5 standard deviations
  }
}

TEST(Order, BatchesResumeExactly) {
  for (const EpochOrder kind : {EpochOrder::kShuffled, EpochOrder::kSequential}) {
    BatchOrder order(10, 4, kind, 7);
    EXPECT_EQ(order.steps_per_epoch(), 3u);
    DataCursor cursor;
    std::vector<std::vector<uint32_t>> batches;
    for (uint64_t step = 0; step < 9; ++step) {
      EXPECT_EQ(cursor, order.CursorAfter(step));
      // A fresh object at a saved cursor gives the same batch.
      BatchOrder resumed(10, 4, kind, 7);
      DataCursor saved = cursor;
      batches.push_back(order.Next(&cursor));
      EXPECT_EQ(resumed.Next(&saved), batches.back());
      EXPECT_EQ(saved, cursor);
      EXPECT_EQ(batches.back().size(), step % 3 == 2 ? 2u : 4u);
    }
    for (int epoch = 0; epoch < 3; ++epoch) {
      std::vector<uint32_t> all;
      for (int b = 0; b < 3; ++b)
        all.insert(all.end(), batches[static_cast<size_t>(3 * epoch + b)].begin(),
                   batches[static_cast<size_t>(3 * epoch + b)].end());
      if (kind == EpochOrder::kSequential) {
        EXPECT_EQ(all, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
      }
      std::sort(all.begin(), all.end());
      EXPECT_EQ(all, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
    }
    if (kind == EpochOrder::kShuffled) {
      EXPECT_NE(batches[0], batches[3]);
    }
  }
}

TEST(Split, SizesAndErrors) {
  auto split = SplitRows(10, 0.25, 1);
  ASSERT_TRUE(split.ok());
  EXPECT_EQ(split->eval.size(), 3u);  // 2.5 rounds away from zero
  std::vector<uint32_t> all = split->train;
  all.insert(all.end(), split->eval.begin(), split->eval.end());
  EXPECT_TRUE(std::is_sorted(split->train.begin(), split->train.end()));
  std::sort(all.begin(), all.end());
  for (uint32_t i = 0; i < 10; ++i) EXPECT_EQ(all[i], i);
  EXPECT_EQ(SplitRows(10, 0.25, 1)->eval, split->eval);
  EXPECT_EQ(SplitRows(10, 0, 1)->train.size(), 10u);
  EXPECT_EQ(SplitRows(10, 0.001, 1)->eval.size(), 1u);
  EXPECT_EQ(SplitRows(10, 0.999, 1)->train.size(), 1u);
  EXPECT_FALSE(SplitRows(1, 0.5, 1).ok());
  EXPECT_EQ(SplitRows(10, 0.1, 1, 2)->eval.size(), 2u);
  EXPECT_EQ(SplitRows(10, 0.99, 1, 2)->train.size(), 2u);
  EXPECT_FALSE(SplitRows(3, 0.5, 1, 2).ok());
  for (double bad : {-0.1, 1.0, std::nan("")})
    EXPECT_THAT(std::string(SplitRows(10, bad, 1).status().message()), HasSubstr("data.eval_fraction"));
}

TEST(KlPartners, RotateInsideGroups) {
  EXPECT_EQ(*KlPartners(4, 4), (std::vector<uint32_t>{3, 0, 1, 2}));
  EXPECT_EQ(*KlPartners(6, 4), (std::vector<uint32_t>{3, 0, 1, 2, 5, 4}));
  EXPECT_EQ(*KlPartners(5, 4), (std::vector<uint32_t>{3, 0, 1, 2, 3}));  // not itself, as TRL would
  EXPECT_EQ(*KlPartners(3, 8), (std::vector<uint32_t>{2, 0, 1}));
  EXPECT_EQ(*KlPartners(3, 0xffffffff), (std::vector<uint32_t>{2, 0, 1}));
  EXPECT_FALSE(KlPartners(1, 4).ok());
  EXPECT_FALSE(KlPartners(4, 1).ok());
}

TEST(KlPairs, UseTheTruncatedPromptAndTheWholeOtherAnswer) {
  KtoParts a, b;
  a.prompt = {1, 2, 3, 4, 5, 6};
  a.answer = {10, 11, 12};
  a.answer_trained = {1, 1, 1};
  b.answer = {20, 21, 22, 23, 24};
  b.answer_trained = {1, 1, 0, 1, 1};
  const ExampleOptions options{DataObjective::kKto, 6, 3};
  auto example = MakeKtoExample(a, options);
  ASSERT_TRUE(example.ok());
  EXPECT_EQ(example->ids, (std::vector<int32_t>{4, 5, 6, 10, 11, 12}));
  auto kl = MakeKlExample(a, *example, b, options);
  ASSERT_TRUE(kl.ok());
  EXPECT_EQ(kl->ids, (std::vector<int32_t>{4, 5, 6, 20, 21, 22}));
  EXPECT_EQ(kl->trained, (std::vector<uint8_t>{0, 0, 0, 1, 1, 0}));
}

}  // namespace
}  // namespace hone
