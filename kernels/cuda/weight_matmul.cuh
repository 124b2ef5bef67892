// What the kernels of WeightMatmul share. y[m, N] <- x[m, K] W^T + beta y for m <= 64, W read in its stored form:
// generation's products, whose time is that of reading W. The order of a row's sum depends on K alone: k is cut into
// kSlices pieces, each summed in order by one warp, and the pieces are added in order; so a token's result does not
// depend on how many are generated beside it.
//
// Tensor cores by mma.m16n8k16: 16 rows of W against 8 rows of x. A thread's part of a row is neighbouring elements of
// a block rather than the pairs that the instruction's layout names: the sum over k does not mind a permutation that
// both operands share.
#pragma once

#include "kernels/cuda/weight_groups.cuh"

namespace hone::cuda {

inline constexpr int kSlices = 8;  // warps of a block
inline constexpr int kWeightThreads = kSlices * 32;
inline constexpr int64_t kMostRows = 32;  // of x in one launch: more would not fit the registers

__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Loads issued where they stand: left to itself the compiler moves them down to their use and waits for each.
__device__ inline uint4 LoadNow(const uint4* p) {
  uint4 x;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
  return x;
}
__device__ inline uint2 LoadNow(const uint2* p) {
  uint2 x;
  asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
  return x;
}
__device__ inline uint32_t LoadNow(const uint32_t* p) {
  uint32_t x;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}
__device__ inline uint32_t LoadNow(const uint8_t* p) {
  uint32_t x;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}

// y[column][row] <- value + beta y.
__device__ inline void StoreSum(void* y, bool y_bf16, int64_t at, float value, float beta) {
  if (y_bf16) {
    bf16* to = static_cast<bf16*>(y) + at;
    *to = FromFloat<bf16>(beta == 0 ? value : value + beta * ToFloat(*to));
  } else {
    float* to = static_cast<float*>(y) + at;
    *to = beta == 0 ? value : value + beta * *to;
  }
}

// The slices' sums of 16 ROWS rows of W by 8 rows of x, added in order and stored; `first_row`: rows before it belong
// to another tile. Of two buffers, whoever writes one again has passed the barrier that follows its last reading.
template <int ROWS, int TILES, int kBuffers>
__device__ inline void FinishTile(float (&sums)[kBuffers][kSlices][16 * ROWS * 8], int& buffer,
                                  const float (&total)[ROWS][TILES][4], int row0, int first_row, int rows, int m,
                                  void* y, bool y_bf16, int64_t y_pitch, float beta) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    if constexpr (kBuffers == 1) __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float* out = sums[buffer][warp] + quad * 2 * (16 * ROWS) + r * 16 + group;
      out[0] = total[r][t][0], out[16 * ROWS] = total[r][t][1];
      out[8] = total[r][t][2], out[16 * ROWS + 8] = total[r][t][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * ROWS * 8; i += kWeightThreads) {
      const int column = t * 8 + i / (16 * ROWS), row = row0 + i % (16 * ROWS);
      if (column >= m || row >= rows || row < first_row) continue;
      float value = sums[buffer][0][i];
#pragma unroll
      for (int s = 1; s < kSlices; ++s) value += sums[buffer][s][i];
      StoreSum(y, y_bf16, column * y_pitch + row, value, beta);
    }
    buffer = (buffer + 1) % kBuffers;
  }
}

struct Card {
  int processors = 1, shared_bytes = 0;  // shared memory of one
  bool starts_early = false;             // LetNextKernelStart is known there
};
inline Card CurrentCard() {
  Card card;
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&card.processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&card.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  card.starts_early = major >= 9;
  return card;
}

// A kernel launched by LaunchEarly may begin while earlier kernels of the stream still run: before it reads or writes
// anything but weights it must wait for them; a weight is there long before. (Programmatic dependent launch, from
// compute capability 9.0 on.)
__device__ inline void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void WaitForEarlierKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
template <typename... Parameters, typename... Arguments>
void LaunchEarly(const Card& card, void (*kernel)(Parameters...), int grid, size_t shared_bytes, cudaStream_t stream,
                 Arguments... arguments) {
  if (shared_bytes > 0) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(kWeightThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = card.starts_early ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// True if it took the product: bf16 x, enough alignment, whole blocks.
bool WeightMatmulTiles(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream);  // NF4, bf16
bool WeightMatmulGguf(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream);   // Q8_0, Q4_0, Q4_1

}  // namespace hone::cuda
