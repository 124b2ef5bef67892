#include "engine/data/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "engine/data/order.h"

namespace hone {
namespace {

std::vector<std::vector<uint32_t>> Documents(const std::vector<MicroBatch>& batches) {
  std::vector<std::vector<uint32_t>> result;
  for (const MicroBatch& batch : batches) {
    result.emplace_back();
    for (const DocumentRange& range : batch.documents) result.back().push_back(range.document);
  }
  return result;
}

TEST(Packing, Modes) {
  const std::vector<int32_t> lengths = {3, 9, 4, 2, 0, 5};
  using D = std::vector<std::vector<uint32_t>>;
  EXPECT_EQ(Documents(PackDocuments(lengths, 8, PackingMode::kOff)), (D{{0}, {1}, {2}, {3}, {5}}));
  EXPECT_EQ(Documents(PackDocuments(lengths, 8, PackingMode::kInOrder)), (D{{0}, {1}, {2, 3}, {5}}));
  EXPECT_EQ(Documents(PackDocuments(lengths, 8, PackingMode::kFirstFitDecreasing)), (D{{1}, {5, 0}, {2, 3}}));
  EXPECT_EQ(PackDocuments(lengths, 8, PackingMode::kFirstFitDecreasing)[0].tokens,
            9);  // longer than the limit: its own size
  EXPECT_TRUE(PackDocuments({}, 8, PackingMode::kInOrder).empty());
}

TEST(Packing, CoupledDocumentsStayTogether) {
  const std::vector<int32_t> lengths = {3, 3, 4, 4, 1, 1};
  const auto batches = PackDocuments(lengths, 8, PackingMode::kFirstFitDecreasing, 2);
  EXPECT_EQ(Documents(batches), (std::vector<std::vector<uint32_t>>{{2, 3}, {0, 1, 4, 5}}));
  EXPECT_EQ(batches[1].documents[2], (DocumentRange{4, 6, 1}));
}

TEST(Packing, EveryDocumentOnceWithoutGaps) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::vector<int32_t> lengths;
    for (uint32_t v : Permutation(60, seed, 0)) lengths.push_back(static_cast<int32_t>(v * v % 50));
    for (PackingMode mode : {PackingMode::kOff, PackingMode::kInOrder, PackingMode::kFirstFitDecreasing}) {
      std::set<uint32_t> seen;
      for (const MicroBatch& batch : PackDocuments(lengths, 40, mode)) {
        int32_t at = 0;
        for (const DocumentRange& range : batch.documents) {
          EXPECT_EQ(range.begin, at);
          EXPECT_EQ(range.length, lengths[range.document]);
          EXPECT_TRUE(seen.insert(range.document).second);
          at += range.length;
        }
        EXPECT_EQ(batch.tokens, at);
        EXPECT_TRUE(at <= 40 || batch.documents.size() == 1);
        EXPECT_TRUE(mode != PackingMode::kOff || batch.documents.size() == 1);
      }
      EXPECT_EQ(seen.size(),
                static_cast<size_t>(std::count_if(lengths.begin(), lengths.end(), [](int32_t n) { return n > 0; })));
    }
  }
}

}  // namespace
}  // namespace hone
