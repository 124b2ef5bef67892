// Groups of 8 neighbouring elements of a stored weight: what memory holds of them and how it is decoded, apart, so that
// a thread can have several fetches in flight. No block format splits such a group. Products are in fp32 without fused
// multiply-add, so that the one rounding to the output is the only one. Not here: kernels.
#pragma once

#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/nf4_codes.h"

namespace hone::cuda {

static __constant__ const Nf4Codes kCodes = kNf4Codes;

__device__ inline float Nf4Scale(const WeightView& w, int64_t block) {
  if (w.absmax_codes == nullptr) return __ldg(w.absmax + block);
  const float nested = __ldg(w.nested_absmax + block / kNf4NestedBlockSize);
  return __fadd_rn(__fmul_rn(__ldg(w.nested_code + __ldg(w.absmax_codes + block)), nested), w.nested_offset);
}

__device__ inline float HalfAt(const uint8_t* p) {  // block formats align to 2 bytes
  return __half2float(*reinterpret_cast<const __half*>(p));
}

// What memory holds of 8 neighbouring elements, [8 * group, 8 * group + 8) of the flat weight, and how it is decoded:
// apart, so that a thread can have several fetches in flight. `table`: kCodes.values in shared memory, where 16 values
// lie in 16 banks and any pattern of codes reads without conflict.
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

// Calls f with the dtype of a stored weight as a compile-time constant.
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

// One element, for rows that are no whole groups of 8.
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
    Group<D> group;  // rows are whole blocks here: only a misaligned operand leads to this path
    group.Fetch(w, index / 8);
    float values[8];
    group.Decode(table, values);
    float value = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) value = index % 8 == i ? values[i] : value;
    return value;
  }
}

}  // namespace hone::cuda
