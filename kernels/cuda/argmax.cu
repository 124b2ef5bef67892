// The first place of a row's largest value, for greedy decoding: a block a row.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 1024;

struct Best {
  float value;
  int at;
  __device__ void Meet(float other, int place) {
    if (other > value || (other == value && place < at)) value = other, at = place;
  }
};

__device__ inline Best WarpBest(Best best) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(~0u, best.value, offset);
    const int at = __shfl_xor_sync(~0u, best.at, offset);
    best.Meet(value, at);
  }
  return best;
}

// V: 4 where rows begin on 16 bytes, else 1. NaN compares false and never counts.
template <int V>
__global__ void __launch_bounds__(kThreads) ArgMaxKernel(View<float> logits, int width, int32_t* out) {
  constexpr int kInFlight = V == 4 ? 8 : 4, kStride = kThreads * V;
  __shared__ Best bests[32];
  LetNextKernelStart();
  WaitForEarlierKernels();
  const float* row = logits.At(blockIdx.x, 0);
  Best best{-INFINITY, INT32_MAX};
  for (int base = static_cast<int>(threadIdx.x) * V; base < width; base += kStride * kInFlight) {
    float values[kInFlight][V];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (base + j * kStride < width) Load<V>(row + base + j * kStride, values[j]);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (base + j * kStride >= width) break;
#pragma unroll
      for (int i = 0; i < V; ++i) best.Meet(values[j][i], base + j * kStride + i);
    }
  }
  best = WarpBest(best);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) bests[warp] = best;
  __syncthreads();
  if (warp != 0) return;
  best = WarpBest(bests[lane]);
  if (lane == 0) out[blockIdx.x] = best.at == INT32_MAX ? 0 : best.at;
}

}  // namespace

void ArgMax(Tensor logits, Tensor out, cudaStream_t stream) {
  const bool vectors = Vectorises(logits);
  LaunchEarly(CardStartsEarly(), vectors ? ArgMaxKernel<4> : ArgMaxKernel<1>, static_cast<unsigned>(logits.rows),
              kThreads, 0, stream, View<float>(logits), static_cast<int>(logits.cols), out.as<int32_t>());
}

}  // namespace hone::cuda
