// WeightMatmul: which kernel takes a product, and the one for what tensor cores do not take (fp32 x, other stored
// forms, odd shapes): a warp per row of W, 8 elements a lane, fp32 products, in an order that depends on K alone.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_matmul.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = kWeightThreads;

// A warp per row of W; V elements of it a lane, at most 8 rows of x at a time.
template <DType D, typename T, int V>
__global__ void __launch_bounds__(kThreads) WeightRows(View<T> x, int m, WeightView w, ProductOutput out) {
  constexpr int kAtOnce = 8;
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = kCodes.values[threadIdx.x];
  __syncthreads();
  const int64_t row = int64_t{blockIdx.x} * kSlices + threadIdx.x / 32;
  if (row >= w.rows) return;
  const int lane = threadIdx.x % 32;
  for (int begin = 0; begin < m; begin += kAtOnce) {
    float sums[kAtOnce] = {};
    for (int64_t k = lane * V; k < w.cols; k += 32 * V) {
      float values[V];
      if constexpr (V == 8) {
        Group<D> part;
        part.Fetch(w, (row * w.cols + k) / 8);
        part.Decode(table, values);
      } else {
        values[0] = DecodeOne<D>(w, table, row * w.cols + k);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = ToFloat(FromFloat<T>(values[i]));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i >= m) continue;
        float xs[V];
        Load<V>(x.At(begin + i, k), xs);
#pragma unroll
        for (int j = 0; j < V; ++j) sums[i] += values[j] * xs[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float value = WarpSum(sums[i]);
      if (begin + i >= m || lane != 0) continue;
      out.Store(begin + i, row, value);
    }
  }
}

void OneWeight(Tensor x, const WeightView& weight, Tensor y, Tensor addend, cudaStream_t stream) {
  if (WeightMatmulTiles(x, {&weight, 1}, y, addend, stream) || WeightMatmulGguf(x, weight, y, addend, stream)) return;
  const bool grouped = reinterpret_cast<uintptr_t>(weight.data) % 16 == 0 && weight.cols % 8 == 0 && Vectorises(x);
  const unsigned grid = static_cast<unsigned>((weight.rows + kSlices - 1) / kSlices);
  WithWeightType(weight.dtype, [&](auto d) {
    WithType(x.dtype, [&](auto t) {
      using T = decltype(t);
      constexpr DType D = decltype(d)::value;
      const auto kernel = grouped ? WeightRows<D, T, 8> : WeightRows<D, T, 1>;
      kernel<<<grid, kThreads, 0, stream>>>(View<T>(x), static_cast<int>(x.rows), weight, ProductOutput(y, addend));
    });
  });
}

}  // namespace

void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, cudaStream_t stream) {
  if (weights.size() > 1 && WeightMatmulTiles(x, weights, y, addend, stream)) return;
  int64_t column = 0;
  for (const WeightView& weight : weights) {
    const int64_t n = weight.rows;
    if (n > 0) OneWeight(x, weight, y.Cols(column, n), ColsOf(addend, column, n), stream);
    column += n;
  }
}

}  // namespace hone::cuda
