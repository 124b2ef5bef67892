// RMSNorm and its backward. Each element is read once: a group's values stay in registers between the sum and the
// result. Narrow groups (heads, small models) take part of a warp or a whole one, wide ones a block; widths that are
// not a multiple of 8, or wider than 32,768, a plain kernel that reads twice.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

template <typename T>
struct Norm {
  View<T> x, y;         // y: output (forward), dx (backward)
  View<T> dy;           // backward only
  const float* weight;  // [width]
  View<float> rstd;     // [rows, groups]
  int64_t count;        // rows * groups
  FastDivisor groups;   // per row
  int width;
  float eps;
  bool accumulate;  // dx += ...
};

// A group's numbers, spread over its threads: vector j of thread t holds elements 8 * (j * threads + t) ... A thread
// without a group (active false) only takes part in the sum.
template <bool kBackward, typename T, int VECTORS, typename Sum>
__device__ inline void NormGroup(const Norm<T>& n, int64_t index, bool active, int thread, int threads, Sum sum) {
  uint32_t row = 0, group = 0;
  if (active) n.groups.DivMod(static_cast<uint32_t>(index), row, group);
  const int width = active ? n.width : 0;
  const int64_t col = int64_t{group} * n.width;
  const T* x = n.x.At(row, col);
  T* y = n.y.At(row, col);
  const T* dy = n.dy.At(row, col);
  float a[VECTORS][8], b[kBackward ? VECTORS : 1][8];
  float partial = 0;
#pragma unroll
  for (int j = 0; j < VECTORS; ++j) {
    const int at = (j * threads + thread) * 8;
    if (at < width) {
      Load<8>(x + at, a[j]);
      if constexpr (kBackward) Load<8>(dy + at, b[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < VECTORS; ++j) {
    const int at = (j * threads + thread) * 8;
    if (at < width) {
      if constexpr (kBackward) {
        float w[8];
        Load<8>(n.weight + at, w);
#pragma unroll
        for (int i = 0; i < 8; ++i) b[j][i] *= w[i], partial += b[j][i] * a[j][i];
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) partial += a[j][i] * a[j][i];
      }
    }
  }
  const float mean = sum(partial) / static_cast<float>(n.width);
  float rstd = 0;
  if (active) rstd = kBackward ? *n.rstd.At(row, group) : __frsqrt_rn(mean + n.eps);
  if (!kBackward && active && thread == 0) *n.rstd.At(row, group) = rstd;
  const float pull = rstd * rstd * mean;
#pragma unroll
  for (int j = 0; j < VECTORS; ++j) {
    const int at = (j * threads + thread) * 8;
    if (at < width) {
      float out[8];
      if constexpr (kBackward) {
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = 0;
        if (n.accumulate) Load<8>(y + at, out);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] += rstd * (b[j][i] - a[j][i] * pull);
      } else {
        Load<8>(n.weight + at, out);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] *= a[j][i] * rstd;
      }
      Store<8>(y + at, out);
    }
  }
}

// In a decoding step every weight comes from memory; of more rows only the first would gain.
template <bool kBackward, typename T>
__device__ inline void AskForWeight(const Norm<T>& n) {
  if constexpr (!kBackward) {
    constexpr int kLine = 128 / sizeof(float);
    if (gridDim.x > 64) return;
    for (int at = static_cast<int>(threadIdx.x) * kLine; at < n.width; at += static_cast<int>(blockDim.x) * kLine) {
      PrefetchLineToL2(n.weight + at);
    }
  }
}

template <bool kBackward, typename T, int LANES, int VECTORS>
__global__ void __launch_bounds__(256) NormLanes(Norm<T> n) {
  LetNextKernelStart();
  AskForWeight<kBackward>(n);
  WaitForEarlierKernels();
  const int64_t index = (int64_t{blockIdx.x} * 256 + threadIdx.x) / LANES;
  NormGroup<kBackward, T, VECTORS>(n, index, index < n.count, threadIdx.x % LANES, LANES,
                                   [](float x) { return WarpSum<LANES>(x); });
}

template <bool kBackward, typename T, int VECTORS>
__global__ void __launch_bounds__(1024) NormBlock(Norm<T> n) {
  __shared__ float scratch[32];
  LetNextKernelStart();
  AskForWeight<kBackward>(n);
  WaitForEarlierKernels();
  NormGroup<kBackward, T, VECTORS>(n, blockIdx.x, true, threadIdx.x, blockDim.x,
                                   [](float x) { return BlockSum(x, scratch); });
}

template <bool kBackward, typename T>
__global__ void __launch_bounds__(256) NormPlain(Norm<T> n) {
  __shared__ float scratch[32];
  uint32_t row, group;
  n.groups.DivMod(blockIdx.x, row, group);
  const int64_t col = int64_t{group} * n.width;
  const T* x = n.x.At(row, col);
  T* y = n.y.At(row, col);
  const T* dy = kBackward ? n.dy.At(row, col) : nullptr;
  float partial = 0;
  for (int i = threadIdx.x; i < n.width; i += blockDim.x) {
    const float xi = ToFloat(x[i]);
    partial += kBackward ? n.weight[i] * ToFloat(dy[i]) * xi : xi * xi;
  }
  const float mean = BlockSum(partial, scratch) / static_cast<float>(n.width);
  const float rstd = kBackward ? *n.rstd.At(row, group) : __frsqrt_rn(mean + n.eps);
  if (!kBackward && threadIdx.x == 0) *n.rstd.At(row, group) = rstd;
  for (int i = threadIdx.x; i < n.width; i += blockDim.x) {
    const float xi = ToFloat(x[i]);
    float out;
    if (kBackward) {
      out = (n.accumulate ? ToFloat(y[i]) : 0.0f) + rstd * (n.weight[i] * ToFloat(dy[i]) - xi * (rstd * rstd * mean));
    } else {
      out = xi * rstd * n.weight[i];
    }
    y[i] = FromFloat<T>(out);
  }
}

template <bool kBackward, typename T, int LANES, int VECTORS>
void LaunchLanes(const Norm<T>& n, cudaStream_t stream) {
  const int64_t per_block = 256 / LANES;
  const auto blocks = static_cast<unsigned>((n.count + per_block - 1) / per_block);
  LaunchEarly(blocks <= kBlocksStartEarly && CardStartsEarly(), NormLanes<kBackward, T, LANES, VECTORS>, blocks, 256, 0,
              stream, n);
}

template <bool kBackward, typename T>
void LaunchNorm(const Norm<T>& n, bool vectorises, cudaStream_t stream) {
  const int width = n.width;
  const auto threads = [&](int vectors) { return (width / 8 + vectors * 32 - 1) / (vectors * 32) * 32; };
  if (!vectorises || width > 16384) {  // wider than any model, whose registers would spill
    NormPlain<kBackward, T><<<n.count, 256, 0, stream>>>(n);
  } else if (width <= 64) {
    LaunchLanes<kBackward, T, 8, 1>(n, stream);
  } else if (width <= 128) {
    LaunchLanes<kBackward, T, 16, 1>(n, stream);
  } else if (width <= 256) {
    LaunchLanes<kBackward, T, 32, 1>(n, stream);
  } else if (width <= 1024) {
    LaunchLanes<kBackward, T, 32, 4>(n, stream);
  } else {
    const auto blocks = static_cast<unsigned>(n.count);
    LaunchEarly(blocks <= kBlocksStartEarly && CardStartsEarly(), NormBlock<kBackward, T, 2>, blocks,
                static_cast<unsigned>(threads(2)), 0, stream, n);
  }
}

template <typename T>
Norm<T> Describe(Tensor x, Tensor weight, Tensor y, Tensor rstd) {
  Norm<T> n;
  n.x = View<T>(x), n.y = View<T>(y), n.dy = View<T>(x), n.weight = weight.as<float>(), n.rstd = View<float>(rstd);
  n.count = rstd.rows * rstd.cols, n.groups = FastDivisor(rstd.cols), n.width = static_cast<int>(weight.cols);
  n.eps = 0, n.accumulate = false;
  return n;
}

}  // namespace

void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd, cudaStream_t stream) {
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    Norm<T> n = Describe<T>(x, weight, y, rstd);
    n.eps = eps;
    LaunchNorm<false>(n, Vectorises(x) && Vectorises(y) && Vectorises(weight), stream);
  });
}

void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta, cudaStream_t stream) {
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    Norm<T> n = Describe<T>(x, weight, dx, rstd);
    n.dy = View<T>(dy), n.accumulate = beta != 0;
    LaunchNorm<true>(n, Vectorises(dy) && Vectorises(x) && Vectorises(dx) && Vectorises(weight), stream);
  });
}

}  // namespace hone::cuda
