// What the kernels share: conversion between storage and fp32, 16-byte access, reductions in one fixed order, division
// by a constant of the launch, and dispatch from a DType to a C++ type. Not here: any kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/early.cuh"
#include "kernels/tensor.h"

namespace hone::cuda {

using bf16 = __nv_bfloat16;

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ inline float ToFloat(__half x) { return __half2float(x); }

template <typename T>
__device__ inline T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 FromFloat<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ inline float Silu(float x) { return x / (1.0f + expf(-x)); }

// V consecutive elements as fp32: V = 8 or 4 (both 16-byte aligned; V = 8 of fp32 is two accesses) or 1.
template <int V, typename T>
__device__ inline void Load(const T* p, float (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = ToFloat(*p);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(p + i);
      out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
    }
  } else {
    static_assert(V == 8);
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = ToFloat(values[i]);
  }
}

template <int V, typename T>
__device__ inline void Store(T* p, const float (&in)[V]) {
  if constexpr (V == 1) {
    *p = FromFloat<T>(in[0]);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < V; i += 4)
      *reinterpret_cast<float4*>(p + i) = make_float4(in[i], in[i + 1], in[i + 2], in[i + 3]);
  } else {
    static_assert(V == 8);
    uint4 raw;
    T* values = reinterpret_cast<T*>(&raw);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = FromFloat<T>(in[i]);
    *reinterpret_cast<uint4*>(p) = raw;
  }
}

// Elements in 16 bytes of the narrowest type: one access a thread, neighbouring threads on neighbouring addresses.
template <typename... T>
inline constexpr int kVector = 16 / std::min({sizeof(T)...});

// A pitched matrix inside a kernel.
template <typename T>
struct View {
  T* data;
  int64_t pitch;
  View() = default;
  explicit View(Tensor t) : data(static_cast<T*>(t.data)), pitch(t.pitch) {}
  __device__ T* At(int64_t row, int64_t col) const { return data + row * pitch + col; }
};

// n / d for 0 <= n < 2^31 by one multiplication (Granlund and Montgomery, 1994).
struct FastDivisor {
  uint32_t divisor = 1, multiplier = 1, shift = 0;
  FastDivisor() = default;
  explicit FastDivisor(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  __device__ uint32_t Divide(uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }
  __device__ void DivMod(uint32_t n, uint32_t& quotient, uint32_t& remainder) const {
    quotient = Divide(n);
    remainder = n - quotient * divisor;
  }
};

// Sums and maxima over the LANES neighbouring threads of a warp; every lane gets the result.
template <int LANES = 32>
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
template <int LANES = 32>
__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Over a whole block of full warps; every thread gets the result. `scratch` holds 32 floats and is free again on
// return.
__device__ inline float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  const int warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = WarpSum(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : 0.0f);
  __syncthreads();
  return x;
}
__device__ inline float BlockMax(float x, float* scratch) {
  x = WarpMax(x);
  const int warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = WarpMax(threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : scratch[0]);
  __syncthreads();
  return x;
}

// Whether every row of t starts on 16 bytes and holds a multiple of 8 elements.
inline bool Vectorises(Tensor t) {
  const int64_t bytes = BlockBytes(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.cols % 8 == 0 && (t.rows <= 1 || t.pitch * bytes % 16 == 0);
}

// Calls f with a value of the C++ type of an activation: fp32 or bf16.
template <typename F>
void WithType(DType dtype, F&& f) {
  if (dtype == DType::kF32) {
    f(float{});
  } else {
    f(bf16{});
  }
}

// One thread per V neighbouring elements of a [rows, cols] matrix: body.Run<V>(row, col).
template <int V, typename Body>
__global__ void RowsKernel(uint32_t units, FastDivisor units_per_row, Body body) {
  const uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x;
  LetNextKernelStart();
  WaitForEarlierKernels();
  if (unit >= units) return;
  uint32_t row, rest;
  units_per_row.DivMod(unit, row, rest);
  body.template Run<V>(static_cast<int64_t>(row), static_cast<int64_t>(rest) * V);
}

// Of a larger launch the start does not matter.
constexpr uint32_t kBlocksStartEarly = 512;

// V elements a thread where `vectorises` (a multiple of 8 columns, rows on 16 bytes), else one. Rows are launched in
// parts that keep every index below 2^31; body.Shift(rows) advances its views.
template <int V, typename Body>
void LaunchRows(int64_t rows, int64_t cols, bool vectorises, Body body, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t per_row = vectorises ? cols / V : cols;
  const int64_t part = (int64_t{1} << 30) / per_row > 0 ? (int64_t{1} << 30) / per_row : 1;
  for (int64_t begin = 0; begin < rows; begin += part) {
    const int64_t count = rows - begin < part ? rows - begin : part;
    const uint32_t units = static_cast<uint32_t>(count * per_row);
    const uint32_t blocks = (units + kThreads - 1) / kThreads;
    Body shifted = body;
    shifted.Shift(begin);
    const auto kernel = vectorises ? RowsKernel<V, Body> : RowsKernel<1, Body>;
    LaunchEarly(blocks <= kBlocksStartEarly && CardStartsEarly(), kernel, blocks, kThreads, 0, stream, units,
                FastDivisor(per_row), shifted);
  }
}

}  // namespace hone::cuda
