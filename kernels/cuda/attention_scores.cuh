// Scores in registers whose rows are queries and whose columns are keys: which of them count, and the softcap. For the
// forward passes and the gradient of queries.
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

// What a warp knows about its `rows` queries when it meets the keys [key, key + keys).
struct Visible {
  int first, last;  // positions of its first and last query
  int window;
  __device__ bool None(int key, int keys) const { return key > last || key + keys - 1 <= first - window; }
  __device__ bool All(int key, int keys) const { return key + keys - 1 <= first && key > last - window; }
};

// Which queries a warp owns: a tile holds rows / pack queries of each of `pack` heads that share their keys, so that
// all warps of a block meet the end of a causal row together.
struct OwnQueries {
  int first;  // row of the tile
  int head;
  int begin;  // of the segment
  __device__ OwnQueries(const Problem& problem, int place, int warp_rows, int tile_rows, int first_head,
                        int tile_begin) {
    const int queries = tile_rows / problem.pack;
    first = place * warp_rows;
    head = first_head + first / queries;
    begin = tile_begin + first % queries;
  }
};

// s <- tanh(cap_scale * s)
template <int MT, int N>
__device__ inline void Cap(float (&s)[MT][N][4], float cap_scale) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = Tanh(s[m][n][i] * cap_scale);
    }
  }
}

// What a query must not see becomes -infinity.
template <int MT, int N>
__device__ inline void Mask(float (&s)[MT][N][4], int key, const Visible& visible) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = key + n * 8 + lane % 4 * 2 + i % 2, row = visible.first + m * 16 + i / 2 * 8 + lane / 4;
        if (column > row || column <= row - visible.window) s[m][n][i] = -INFINITY;
      }
    }
  }
}

// Two neighbouring C tiles of 8 columns, rounded, are one A tile.
template <int MT, int N>
__device__ inline void PackScores(const float (&s)[MT][N][4], uint32_t (&p)[MT][N / 2][4]) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[m][n][i] = Pack(s[m][2 * n + i / 2][i % 2 * 2], s[m][2 * n + i / 2][i % 2 * 2 + 1]);
    }
  }
}

}  // namespace hone::cuda::mma
