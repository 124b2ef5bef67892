// Stored weights to fp32 or bf16 in one launch: the product in fp32, no fused multiply-add, one rounding to the output.
// Both levels of double-quantised NF4 are undone here, so absmax never reaches memory. A thread decodes groups of 8
// neighbouring elements (no block format splits such a group); rows that are not a multiple of 8 wide take an
// element-wise path.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
// Fetches in flight. Measured on an H100, NF4: to bf16 1, 2 and 4 within 2%, to fp32 103, 106 and 124 us.
template <typename T>
inline constexpr int kGroupsPerThread = sizeof(T) == 4 ? 1 : 2;

// bitsandbytes' NF4 values (quantiles of a normal distribution; QLoRA, arXiv 2305.14314, appendix E).
__constant__ const float kNf4Values[16] = {-1.0f,
                                           -0.6961928009986877f,
                                           -0.5250730514526367f,
                                           -0.39491748809814453f,
                                           -0.28444138169288635f,
                                           -0.18477343022823334f,
                                           -0.09105003625154495f,
                                           0.0f,
                                           0.07958029955625534f,
                                           0.16093020141124725f,
                                           0.24611230194568634f,
                                           0.33791524171829224f,
                                           0.44070982933044434f,
                                           0.5626170039176941f,
                                           0.7229568362236023f,
                                           1.0f};

__device__ inline float Nf4Scale(const WeightView& w, int64_t block) {
  if (w.absmax_codes == nullptr) return __ldg(w.absmax + block);
  const float nested = __ldg(w.nested_absmax + block / kNf4NestedBlockSize);
  return __fadd_rn(__fmul_rn(__ldg(w.nested_code + __ldg(w.absmax_codes + block)), nested), w.nested_offset);
}

__device__ inline float HalfAt(const uint8_t* p) {  // block formats align to 2 bytes
  return __half2float(*reinterpret_cast<const __half*>(p));
}

// What memory holds of 8 neighbouring elements, [8 * group, 8 * group + 8) of the flat weight, and how it is decoded:
// apart, so that a thread can have several fetches in flight. `table`: kNf4Values in shared memory, where 16 values lie
// in 16 banks and any pattern of codes reads without conflict.
template <DType D>
struct Group {
  using T = std::conditional_t<D == DType::kF32, float, std::conditional_t<D == DType::kBF16, bf16, __half>>;
  uint4 raw[sizeof(T) / 2];
  __device__ void Fetch(const WeightView& w, int64_t group) {
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 2; ++i)
      raw[i] = __ldg(static_cast<const uint4*>(w.data) + group * (sizeof(T) / 2) + i);
  }
  __device__ void Decode(const float*, float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = ToFloat(reinterpret_cast<const T*>(raw)[i]);
  }
};

template <>
struct Group<DType::kNf4> {
  uint32_t codes;
  float scale;
  __device__ void Fetch(const WeightView& w, int64_t group) {
    codes = __ldg(static_cast<const uint32_t*>(w.data) + group);
    scale = Nf4Scale(w, group / (kNf4BlockSize / 8));
  }
  __device__ void Decode(const float* table, float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // byte i / 2 of the word, high nibble first
      out[i] = __fmul_rn(table[codes >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15], scale);
    }
  }
};

template <>
struct Group<DType::kQ8_0> {
  float d;
  uint16_t pairs[4];
  __device__ void Fetch(const WeightView& w, int64_t group) {
    const uint8_t* block = static_cast<const uint8_t*>(w.data) + group / 4 * 34;
    d = HalfAt(block);
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __ldg(reinterpret_cast<const uint16_t*>(block + 2 + group % 4 * 8) + i);
  }
  __device__ void Decode(const float*, float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = __fmul_rn(d, static_cast<int8_t>(pairs[i / 2] >> (i % 2 * 8)));
  }
};

// Q4_0 and Q4_1: byte j of a block holds elements j (low nibble) and j + 16 (high).
template <bool kMinimum>
struct GroupQ4 {
  float d, m = 0;
  uint16_t pairs[4];
  bool high;
  __device__ void Fetch(const WeightView& w, int64_t group) {
    const uint8_t* block = static_cast<const uint8_t*>(w.data) + group / 4 * (kMinimum ? 20 : 18);
    d = HalfAt(block);
    if (kMinimum) m = HalfAt(block + 2);
    const uint8_t* bytes = block + (kMinimum ? 4 : 2) + group % 2 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __ldg(reinterpret_cast<const uint16_t*>(bytes) + i);
    high = group % 4 >= 2;
  }
  __device__ void Decode(const float*, float (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int q = pairs[i / 2] >> (i % 2 * 8 + (high ? 4 : 0)) & 15;
      out[i] = kMinimum ? __fadd_rn(__fmul_rn(d, q), m) : __fmul_rn(d, q - 8);
    }
  }
};
template <>
struct Group<DType::kQ4_0> : GroupQ4<false> {};
template <>
struct Group<DType::kQ4_1> : GroupQ4<true> {};

template <DType D>
__device__ inline float DecodeOne(const WeightView& w, const float* table, int64_t index) {
  if constexpr (D == DType::kF32) {
    return static_cast<const float*>(w.data)[index];
  } else if constexpr (D == DType::kBF16) {
    return ToFloat(static_cast<const bf16*>(w.data)[index]);
  } else if constexpr (D == DType::kF16) {
    return ToFloat(static_cast<const __half*>(w.data)[index]);
  } else if constexpr (D == DType::kNf4) {
    const int byte = static_cast<const uint8_t*>(w.data)[index / 2];
    return __fmul_rn(table[index % 2 == 0 ? byte >> 4 : byte & 15], Nf4Scale(w, index / kNf4BlockSize));
  } else {
    Group<D> group;  // rows are whole blocks here: only a misaligned output leads to this path
    group.Fetch(w, index / 8);
    float values[8];
    group.Decode(table, values);
    float value = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) value = index % 8 == i ? values[i] : value;
    return value;
  }
}

template <DType D>
__device__ inline void LoadTable(float* table) {
  if constexpr (D == DType::kNf4) {
    if (threadIdx.x < 16) table[threadIdx.x] = kNf4Values[threadIdx.x];
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

template <typename F>
void WithWeightType(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(std::integral_constant<DType, DType::kF32>{});
    case DType::kF16:
      return f(std::integral_constant<DType, DType::kF16>{});
    case DType::kBF16:
      return f(std::integral_constant<DType, DType::kBF16>{});
    case DType::kNf4:
      return f(std::integral_constant<DType, DType::kNf4>{});
    case DType::kQ8_0:
      return f(std::integral_constant<DType, DType::kQ8_0>{});
    case DType::kQ4_0:
      return f(std::integral_constant<DType, DType::kQ4_0>{});
    case DType::kQ4_1:
      return f(std::integral_constant<DType, DType::kQ4_1>{});
    default:
      return;  // refused by checks.h
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
