// The running softmax of scores in registers (FlashAttention-2, arXiv 2307.08691, section 3.1), for the forward passes.
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

// The running softmax of a thread's 2 MT rows; sums are of this thread's columns only until the end.
template <int MT>
struct RunningSoftmax {
  float top[MT][2], sum[MT][2];
  __device__ RunningSoftmax() {
#pragma unroll
    for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0;
  }
  // s <- exp2(exponent * (s - top)), acc scaled to the new top.
  template <int N, int D8>
  __device__ void Update(float (&s)[MT][N][4], float (&acc)[MT][D8][4], float exponent) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float most = top[m][half];
#pragma unroll
        for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        most = WarpMax<4>(most);
        const float base = most == -INFINITY ? 0.0f : most * exponent;  // nothing seen yet: any finite number
        const float keep = Exp2(top[m][half] * exponent - base);
        top[m][half] = most;
        float total = 0;
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[m][n][i] = Exp2(s[m][n][i] * exponent - base);
            total += s[m][n][i];
          }
        }
        sum[m][half] = sum[m][half] * keep + total;
#pragma unroll
        for (int n = 0; n < D8; ++n) acc[m][n][2 * half] *= keep, acc[m][n][2 * half + 1] *= keep;
      }
    }
  }
};

}  // namespace hone::cuda::mma
