// NF4 with double quantisation, to the bits of kernels/nf4.h: every product and quotient rounded to nearest, sums in
// the order that file defines. Three launches: codes and largest magnitudes; partial sums of those; scales.
#include <algorithm>

#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/dynamic_map.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/nf4.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMeanGroups = kNf4MeanLanes / kNf4MeanGroup;
static_assert(kNf4MeanGroup == kThreads);
static_assert((kMeanGroups + 1) * sizeof(double) <= kCudaReductionBytes);

__constant__ const Nf4Codes kCodes = kNf4Codes;

// The number of thresholds below x, by halving. `thresholds`: the 15 in shared memory, where they lie in 15 banks.
__device__ inline uint32_t Nf4Code(float x, const float* thresholds) {
  uint32_t code = x > kCodes.thresholds[7] ? 8 : 0;
#pragma unroll
  for (uint32_t half = 4; half > 0; half /= 2) code += x > thresholds[code + half - 1] ? half : 0;
  return code;
}

// Eight neighbouring elements a thread, so that eight threads hold a block.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    EncodeCodes(const T* in, int64_t elements, bool aligned, uint8_t* codes, float* absmax) {
  __shared__ float thresholds[16];
  if (threadIdx.x < 15) thresholds[threadIdx.x] = kCodes.thresholds[threadIdx.x];
  __syncthreads();
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  float x[8];
  if (aligned && first + 8 <= elements) {
    Load<8>(in + first, x);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = first + i < elements ? ToFloat(in[first + i]) : 0.0f;
  }
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
  largest = WarpMax<8>(largest);
  if (first >= elements) return;
  if (threadIdx.x % 8 == 0) absmax[first / kNf4BlockSize] = largest;
  const float inverse = largest == 0 ? 0.0f : __frcp_rn(largest);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    word |= Nf4Code(__fmul_rn(x[i], inverse), thresholds) << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
  if (aligned && first + 8 <= elements) {
    *reinterpret_cast<uint32_t*>(codes + first / 2) = word;
  } else {
    for (int i = 0; i < 8 && first + i < elements; i += 2) codes[(first + i) / 2] = word >> (i / 2 * 8) & 255;
  }
}

__global__ void __launch_bounds__(kThreads) SumAbsmax(const float* absmax, int64_t blocks, double* partials) {
  __shared__ double lanes[kThreads];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < blocks; i += kNf4MeanLanes) {
    sum = __dadd_rn(sum, absmax[i]);
  }
  lanes[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) lanes[threadIdx.x] = __dadd_rn(lanes[threadIdx.x], lanes[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) partials[blockIdx.x] = lanes[0];
}

__global__ void __launch_bounds__(kThreads) EncodeAbsmax(const float* absmax, int64_t blocks, const double* partials,
                                                         const __grid_constant__ DynamicMap256 values, uint8_t* codes,
                                                         float* nested_absmax, float* offset_out) {
  static_assert(kThreads == kNf4NestedBlockSize);
  __shared__ float map[256], scratch[32];
  map[threadIdx.x] = values.v[threadIdx.x];
  double sum = 0;
  for (int i = 0; i < kMeanGroups; ++i) sum = __dadd_rn(sum, partials[i]);
  const float offset = static_cast<float>(__ddiv_rn(sum, static_cast<double>(blocks)));
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const float centred = block < blocks ? __fsub_rn(absmax[block], offset) : 0.0f;
  const float largest = BlockMax(fabsf(centred), scratch);  // also orders the writes to map
  const float inverse = largest == 0 ? 0.0f : __frcp_rn(largest);
  if (block < blocks) codes[block] = NearestCode(__fmul_rn(centred, inverse), map);
  if (threadIdx.x != 0) return;
  nested_absmax[blockIdx.x] = largest;
  if (blockIdx.x == 0) *offset_out = offset;
}

}  // namespace

const float* EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch, float* workspace, cudaStream_t stream) {
  double* partials = reinterpret_cast<double*>(workspace);
  float* offset = reinterpret_cast<float*>(partials + kMeanGroups);
  const int64_t elements = in.elements(), blocks = scratch.cols;
  const unsigned grid = static_cast<unsigned>((elements + kThreads * 8 - 1) / (kThreads * 8));
  const bool aligned =
      reinterpret_cast<uintptr_t>(in.data) % 16 == 0 && reinterpret_cast<uintptr_t>(out.codes) % 4 == 0;
  float* absmax = scratch.as<float>();
  const auto encode = [&](auto t) {
    using T = decltype(t);
    EncodeCodes<T><<<grid, kThreads, 0, stream>>>(in.as<T>(), elements, aligned, out.codes, absmax);
  };
  if (in.dtype == DType::kF16) {
    encode(__half{});
  } else {
    WithType(in.dtype, encode);
  }
  SumAbsmax<<<kMeanGroups, kThreads, 0, stream>>>(absmax, blocks, partials);
  const unsigned nested = static_cast<unsigned>((blocks + kThreads - 1) / kThreads);
  EncodeAbsmax<<<nested, kThreads, 0, stream>>>(absmax, blocks, partials, DynamicMap256(Nf4DynamicMap()),
                                                out.absmax_codes, out.nested_absmax, offset);
  return offset;
}

}  // namespace hone::cuda
