// Scores in registers whose rows are queries and whose columns are keys: which of them count, and the softcap. For the
// forward passes and the gradient of queries.
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

// What a warp knows about its MT x 16 queries when it meets the keys [key, key + keys).
template <int MT>
struct Visible {
  int first[MT];  // the position of each group's first query
  int window;

  // Groups wholly beyond the segment's queries see nothing.
  template <typename RowOf>
  __device__ Visible(int offset, int begin, int q_len, int window_size, RowOf row_of) : window(window_size) {
#pragma unroll
    for (int m = 0; m < MT; ++m) first[m] = begin + row_of(m) < q_len ? offset + begin + row_of(m) : -kNoWindow;
  }
  __device__ bool None(int m, int key, int keys) const {
    return key > first[m] + 15 || key + keys - 1 <= first[m] - window;
  }
  __device__ bool All(int m, int key, int keys) const {
    return key + keys - 1 <= first[m] && key > first[m] + 15 - window;
  }
  __device__ bool None(int key, int keys) const { return None(0, key, keys) && None(MT - 1, key, keys); }
  __device__ bool All(int key, int keys) const { return All(0, key, keys) && All(MT - 1, key, keys); }
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
__device__ inline void Mask(float (&s)[MT][N][4], int key, const Visible<MT>& visible) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = key + n * 8 + lane % 4 * 2 + i % 2, row = visible.first[m] + i / 2 * 8 + lane / 4;
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
