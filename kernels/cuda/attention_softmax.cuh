// The running softmax of scores in registers (FlashAttention-2, arXiv 2307.08691, section 3.1), for the forward passes.
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

// Of a thread's 2 MT rows; sums are of this thread's columns only until the end. `top` follows the maximum only when it
// is left behind by more than a factor of 2^kSlack: any reference near the maximum will do, and outputs are rescaled
// seldom.
template <int MT>
struct RunningSoftmax {
  static constexpr float kSlack = 8;
  float top[MT][2], sum[MT][2];
  __device__ RunningSoftmax() {
#pragma unroll
    for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0;
  }
  // s <- exp2(exponent * (s - top)) for the m-th 16 rows, acc scaled to the new top.
  template <int N, int D8>
  __device__ void Update(int m, float (&s)[N][4], float (&acc)[D8][4], float exponent) {
    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = s[0][2 * half];
#pragma unroll
      for (int n = 0; n < N; ++n) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      most = WarpMax<4>(most);
      keep[half] = 1;
      if ((most - top[m][half]) * exponent > kSlack) {
        keep[half] = Exp2((top[m][half] - most) * exponent);
        top[m][half] = most;
      }
      const float base = top[m][half] == -INFINITY ? 0.0f : top[m][half] * exponent;  // nothing seen yet: any number
      float total = 0;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = Exp2(s[n][i] * exponent - base);
          total += s[n][i];
        }
      }
      sum[m][half] = sum[m][half] * keep[half] + total;
    }
    if (!__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int n = 0; n < D8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] *= keep[i / 2];
    }
  }
};

}  // namespace hone::cuda::mma
