// Attention on the CPU as small matrix products over tiles of scores: each thread takes its share of (segment, head,
// block of queries), computes S = q k^T for at most kTileRows queries and kTileCols keys in scratch that stays in the
// second-level cache, and folds the tile into the output. Memory does not grow with the length of a document.
#pragma once

#include <span>

#include "kernels/cpu/isa/kernels.h"
#include "kernels/ops.h"

namespace hone {

inline constexpr int64_t kTileRows = 64;
inline constexpr int64_t kTileCols = 512;
inline constexpr int64_t kTilePitch = kTileCols + 16;  // off the power of two that would map all rows to one cache set
inline constexpr int64_t kScratchAlignment = 64;
// Per thread: two tiles (scores and their gradient), and two statistics per row.
inline constexpr int64_t kScratchFloats = 2 * kTileRows * kTilePitch + 2 * kTileRows;

struct AttentionCall {
  RowsF32 q, k, v, out, lse;
  std::span<const Segment> segments;
  AttentionShape shape;
};
struct AttentionGradients {
  RowsF32 d_out, delta, dq, dk, dv;
};

// Part `part` of `parts`; all parts together are the operation, in any order and at any number of parts the same bits.
void AttentionPart(const CpuKernels& kernels, const AttentionCall& call, int part, int parts, float* scratch);
// dq, dk, dv are zero before.
void AttentionBackwardPart(const CpuKernels& kernels, const AttentionCall& call, const AttentionGradients& gradients,
                           int part, int parts, float* scratch);

}  // namespace hone
