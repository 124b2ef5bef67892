// How attention is cut for cuDNN, and that the plan's formula covers it.
#include "kernels/cuda/cudnn_budget.h"

#include <gtest/gtest.h>

#include <random>

namespace hone {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(CudnnBudget, ClassesHoldTheirDocuments) {
  int64_t shorter = 0;
  for (int64_t c = kCudnnShortestClass; c < 40000; c = CudnnNextClass(c)) {
    EXPECT_EQ(CudnnLengthClass(shorter + 1), c);
    EXPECT_EQ(CudnnLengthClass(c), c);
    EXPECT_LE(c, (shorter + 1) * 3 / 2 + kCudnnShortestClass);
    shorter = c;
  }
}

TEST(CudnnBudget, FewerHeadsWhereAllDoNotFit) {
  // 8192 tokens, 32 heads: 4 GiB for all, 512 MiB for one key-value head's four.
  EXPECT_EQ(CudnnCallShapeFor(32, 8, 8192, 4100 * kMiB).kv_heads, 8);
  EXPECT_EQ(CudnnCallShapeFor(32, 8, 8192, 1100 * kMiB).kv_heads, 2);
  EXPECT_EQ(CudnnCallShapeFor(32, 8, 8192, 520 * kMiB).kv_heads, 1);
  EXPECT_EQ(CudnnCallShapeFor(32, 8, 8192, 500 * kMiB).batch, 0);
  EXPECT_EQ(CudnnAttentionWorkspaceBytes(32, 8, 128, 8192, 8192, 1, 500 * kMiB), 0u);
}

// What Backward takes for a call, as cudnn_attention.cc lays it out.
uint64_t Taken(const std::vector<CudnnCall>& calls, int64_t heads, int64_t kv_heads, int64_t dim, int64_t tokens) {
  uint64_t most = 0;
  for (const CudnnCall& call : calls) {
    const int64_t call_heads = call.kv_heads * (heads / kv_heads);
    const uint64_t full = CudnnAligned(static_cast<uint64_t>(tokens * call_heads * dim) * 2);
    most = std::max(most, CudnnOffsetsEnd(calls) + CudnnAligned(static_cast<uint64_t>(tokens * heads) * 4) + 2 * full +
                              CudnnAligned(CudnnBackwardBytes(call.batch, call_heads, call.length)));
  }
  return most;
}

TEST(CudnnBudget, TheFormulaCoversEveryCut) {
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    const int64_t heads = 32, kv_heads = round % 3 == 0 ? 32 : 8, dim = 128;
    const uint64_t bytes = (100 + rng() % 3000) * kMiB;
    std::vector<Segment> documents;
    int64_t tokens = 0, longest = 0;
    for (int i = 0, n = 1 + static_cast<int>(rng() % 90); i < n; ++i) {
      const auto length = static_cast<int32_t>(1 + rng() % (round % 2 == 0 ? 300 : 1700));
      documents.push_back({static_cast<int32_t>(tokens), length, static_cast<int32_t>(tokens), length, 0, 0});
      tokens += length;
      longest = std::max<int64_t>(longest, length);
    }
    const auto calls = CudnnCalls(documents, heads, kv_heads, bytes);
    const uint64_t planned = CudnnAttentionWorkspaceBytes(heads, kv_heads, dim, longest, tokens,
                                                          static_cast<int64_t>(documents.size()), bytes);
    if (planned == 0) {
      EXPECT_TRUE(calls.empty());
      continue;
    }
    int64_t covered = 0;
    for (const CudnnCall& call : calls) {
      covered += call.documents;
      EXPECT_LE(call.documents, call.batch);
      EXPECT_EQ(kv_heads % call.kv_heads, 0);
    }
    EXPECT_EQ(covered, static_cast<int64_t>(documents.size()));
    EXPECT_LE(Taken(calls, heads, kv_heads, dim, tokens), planned);
  }
}

}  // namespace
}  // namespace hone
