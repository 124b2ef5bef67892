// Stored weights to fp32 or bf16 in one launch: the product in fp32, no fused multiply-add, one rounding to the output.
// Both levels of double-quantised NF4 are undone here, so absmax never reaches memory. A thread decodes groups of 8
// neighbouring elements (no block format splits such a group); rows that are not a multiple of 8 wide take an
// element-wise path.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_groups.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
// Fetches in flight. Measured on an H100, NF4: to bf16 1, 2 and 4 within 2%, to fp32 103, 106 and 124 us.
template <typename T>
inline constexpr int kGroupsPerThread = sizeof(T) == 4 ? 1 : 2;

template <DType D>
__device__ inline void LoadTable(float* table) {
  if constexpr (D == DType::kNf4) {
    if (threadIdx.x < 16) table[threadIdx.x] = kCodes.values[threadIdx.x];
    __syncthreads();
  }
}

template <DType D, typename T, int N = kGroupsPerThread<T>>
__global__ void __launch_bounds__(kThreads)
    DecodeGroups(WeightView w, const int32_t* row_ids, View<T> out, uint32_t groups, int64_t first_group,
                 FastDivisor groups_per_row) {
  __shared__ float table[16];
  LoadTable<D>(table);
  const uint32_t first = blockIdx.x * (kThreads * N) + threadIdx.x;
  Group<D> group[N];
  T* target[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const uint32_t index = min(first + j * kThreads, groups - 1);  // no branch between the loads
    uint32_t row, rest;
    groups_per_row.DivMod(index, row, rest);
    target[j] = out.At(row, int64_t{rest} * 8);
    const int64_t source =
        row_ids == nullptr ? first_group + index : int64_t{row_ids[row]} * groups_per_row.divisor + rest;
    group[j].Fetch(w, source);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    float values[8];
    group[j].Decode(table, values);
    if (first + j * kThreads < groups) Store<8>(target[j], values);
  }
}

template <DType D, typename T>
__global__ void __launch_bounds__(kThreads)
    DecodeElements(WeightView w, const int32_t* row_ids, View<T> out, int64_t rows) {
  __shared__ float table[16];
  LoadTable<D>(table);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t source = (row_ids == nullptr ? row : int64_t{row_ids[row]}) * w.cols;
    for (int64_t col = threadIdx.x; col < w.cols; col += kThreads) {
      *out.At(row, col) = FromFloat<T>(DecodeOne<D>(w, table, source + col));
    }
  }
}

}  // namespace

void DecodeRows(const WeightView& weight, const int32_t* row_ids, Tensor out, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
  const bool grouped = aligned && weight.cols % 8 == 0 && Vectorises(out);
  WithWeightType(weight.dtype, [&](auto d) {
    WithType(out.dtype, [&](auto t) {
      using T = decltype(t);
      constexpr DType D = decltype(d)::value;
      if (!grouped) {
        const int blocks = static_cast<int>(std::min<int64_t>(out.rows, 65535));
        DecodeElements<D, T><<<blocks, kThreads, 0, stream>>>(weight, row_ids, View<T>(out), out.rows);
        return;
      }
      const int64_t per_row = weight.cols / 8;
      const int64_t part = std::max<int64_t>((int64_t{1} << 30) / per_row, 1);
      // One launch, unless the matrix has 2^33 elements or more.
      for (int64_t begin = 0; begin < out.rows; begin += part) {
        const Tensor rows = out.Rows(begin, std::min(part, out.rows - begin));
        const uint32_t groups = static_cast<uint32_t>(rows.rows * per_row);
        const uint32_t blocks = (groups + kThreads * kGroupsPerThread<T> - 1) / (kThreads * kGroupsPerThread<T>);
        DecodeGroups<D, T><<<blocks, kThreads, 0, stream>>>(weight, row_ids == nullptr ? nullptr : row_ids + begin,
                                                            View<T>(rows), groups, begin * per_row,
                                                            FastDivisor(per_row));
      }
    });
  });
}

}  // namespace hone::cuda
