// Scores in registers whose rows are queries and whose columns are keys: which of them count, and the softcap. For the
// forward pass and the gradient of queries.
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

// What a warp knows about its queries when it meets the tile of keys [key, key + Keys).
struct Visible {
  int first, last;  // positions of the warp's first and last query
  int window;
  __device__ bool None(int key, int keys) const { return key > last || key + keys - 1 <= first - window; }
  __device__ bool All(int key, int keys) const { return key + keys - 1 <= first && key > last - window; }
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

// Rows are queries, columns keys: what a query must not see becomes -infinity.
template <int MT, int N>
__device__ inline void Mask(float (&s)[MT][N][4], int key, int position, int window) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = key + n * 8 + lane % 4 * 2 + i % 2, row = position + m * 16 + i / 2 * 8 + lane / 4;
        if (column > row || column <= row - window) s[m][n][i] = -INFINITY;
      }
    }
  }
}

}  // namespace hone::cuda::mma
