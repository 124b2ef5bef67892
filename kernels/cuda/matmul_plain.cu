// A matrix product for shapes and alignments that cuBLASLt declines, and for k = 0: 16 x 16 tiles, fp32 sums over k in
// one ascending order. Slow; the op tests report when a case lands here.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kTile = 16;

template <typename T, typename C>
__global__ void __launch_bounds__(kTile* kTile)
    Plain(const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t b_row, int64_t b_col, View<C> c, int64_t m,
          int64_t n, int64_t k, float alpha, float beta) {
  __shared__ float as[kTile][kTile + 1], bs[kTile][kTile + 1];
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t row = int64_t{blockIdx.x} * kTile + y;
  for (int64_t col0 = int64_t{blockIdx.y} * kTile; col0 < n; col0 += int64_t{gridDim.y} * kTile) {
    const int64_t col = col0 + x;
    float sum = 0;
    for (int64_t k0 = 0; k0 < k; k0 += kTile) {
      as[y][x] = row < m && k0 + x < k ? ToFloat(a[row * a_row + (k0 + x) * a_col]) : 0.0f;
      bs[y][x] = k0 + y < k && col < n ? ToFloat(b[(k0 + y) * b_row + col * b_col]) : 0.0f;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTile; ++i) sum += as[y][i] * bs[i][x];
      __syncthreads();
    }
    if (row < m && col < n) {
      C* out = c.At(row, col);
      *out = FromFloat<C>(alpha * sum + (beta != 0 ? beta * ToFloat(*out) : 0.0f));
    }
  }
}

}  // namespace

void PlainMatmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta,
                 cudaStream_t stream) {
  const bool at = ta == Transpose::kYes, bt = tb == Transpose::kYes;
  const int64_t k = at ? a.rows : a.cols;
  const dim3 grid(static_cast<unsigned>((c.rows + kTile - 1) / kTile),
                  static_cast<unsigned>(c.cols / kTile < 65535 ? c.cols / kTile + 1 : 65535));
  WithType(a.dtype, [&](auto t) {
    WithType(c.dtype, [&](auto out) {
      using T = decltype(t);
      using C = decltype(out);
      Plain<T, C><<<grid, dim3(kTile, kTile), 0, stream>>>(a.as<T>(), at ? 1 : a.pitch, at ? a.pitch : 1, b.as<T>(),
                                                           bt ? 1 : b.pitch, bt ? b.pitch : 1, View<C>(c), c.rows,
                                                           c.cols, k, alpha, beta);
    });
  });
}

}  // namespace hone::cuda
