// What the kernels of WeightMatmul share. y[m, N] <- x[m, K] W^T + beta y for m <= 64, W read in its stored form:
// generation's products, whose time is that of reading W. The order of a row's sum depends on K alone: k is cut into
// kSlices pieces, each summed in order by one warp, and the pieces are added in order; so a token's result does not
// depend on how many are generated beside it.
//
// Tensor cores by mma.m16n8k16: 16 rows of W against 8 rows of x. A thread's part of a row is neighbouring elements of
// a block rather than the pairs that the instruction's layout names: the sum over k does not mind a permutation that
// both operands share.
#pragma once

#include <span>

#include "kernels/cuda/early.cuh"
#include "kernels/cuda/weight_groups.cuh"
#include "kernels/ops.h"

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

// Where a product goes: y[column][row] <- value (+ addend).
struct ProductOutput {
  void* y = nullptr;
  const void* addend = nullptr;  // as y; may be y
  int64_t y_pitch = 0, addend_pitch = 0;
  bool half = false;  // bf16, else fp32
  ProductOutput() = default;
  ProductOutput(Tensor to, Tensor add)
      : y(to.data),
        addend(add.empty() ? nullptr : add.data),
        y_pitch(to.pitch),
        addend_pitch(add.pitch),
        half(to.dtype == DType::kBF16) {}
  __device__ void StoreRounded(int column, int64_t row, float value) const {  // bf16, no addend
    static_cast<bf16*>(y)[column * y_pitch + row] = FromFloat<bf16>(value);
  }
  __device__ void Store(int column, int64_t row, float value) const {
    if (half) {
      if (addend != nullptr) value += ToFloat(static_cast<const bf16*>(addend)[column * addend_pitch + row]);
      static_cast<bf16*>(y)[column * y_pitch + row] = FromFloat<bf16>(value);
    } else {
      if (addend != nullptr) value += static_cast<const float*>(addend)[column * addend_pitch + row];
      static_cast<float*>(y)[column * y_pitch + row] = value;
    }
  }
};
inline Tensor RowsOf(Tensor t, int64_t begin, int64_t count) { return t.empty() ? t : t.Rows(begin, count); }
inline Tensor ColsOf(Tensor t, int64_t begin, int64_t count) { return t.empty() ? t : t.Cols(begin, count); }

// The slices' sums of 16 ROWS rows of W by 8 rows of x, added in order and stored; `first_row`: rows before it belong
// to another tile. Of two buffers, whoever writes one again has passed the barrier that follows its last reading.
template <int ROWS, int TILES, int kBuffers>
__device__ inline void FinishTile(float (&sums)[kBuffers][kSlices][16 * ROWS * 8], int& buffer,
                                  const float (&total)[ROWS][TILES][4], int row0, int first_row, int rows, int m,
                                  const ProductOutput& out) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    if constexpr (kBuffers == 1) __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float* part = sums[buffer][warp] + quad * 2 * (16 * ROWS) + r * 16 + group;
      part[0] = total[r][t][0], part[16 * ROWS] = total[r][t][1];
      part[8] = total[r][t][2], part[16 * ROWS + 8] = total[r][t][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * ROWS * 8; i += kWeightThreads) {
      const int column = t * 8 + i / (16 * ROWS), row = row0 + i % (16 * ROWS);
      if (column >= m || row >= rows || row < first_row) continue;
      float value = sums[buffer][0][i];
#pragma unroll
      for (int s = 1; s < kSlices; ++s) value += sums[buffer][s][i];
      out.Store(column, row, value);
    }
    buffer = (buffer + 1) % kBuffers;
  }
}

// The same of a tile whose upper 8 rows in 16 are the gate's: y <- silu(gate) * up, both rounded as if they had been
// stored.
template <int ROWS, int TILES, int kBuffers>
__device__ inline void FinishGluTile(float (&sums)[kBuffers][kSlices][16 * ROWS * 8], int& buffer,
                                     const float (&total)[ROWS][TILES][4], int row0, int rows, int m,
                                     const ProductOutput& out) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    if constexpr (kBuffers == 1) __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float* part = sums[buffer][warp] + quad * 2 * (16 * ROWS) + r * 16 + group;
      part[0] = total[r][t][0], part[16 * ROWS] = total[r][t][1];
      part[8] = total[r][t][2], part[16 * ROWS + 8] = total[r][t][3];
    }
    __syncthreads();
    const int i = threadIdx.x, column = t * 8 + i / (8 * ROWS), place = i % (8 * ROWS), row = row0 + place;
    if (i < 8 * ROWS * 8 && column < m && row < rows) {
      const int at = i / (8 * ROWS) * (16 * ROWS) + place / 8 * 16 + place % 8;
      float gate = sums[buffer][0][at], up = sums[buffer][0][at + 8];
#pragma unroll
      for (int s = 1; s < kSlices; ++s) gate += sums[buffer][s][at], up += sums[buffer][s][at + 8];
      out.StoreRounded(column, row, Silu(ToFloat(FromFloat<bf16>(gate))) * ToFloat(FromFloat<bf16>(up)));
    }
    buffer = (buffer + 1) % kBuffers;
  }
}

// True if it took the product: bf16 x, enough alignment, whole blocks. Several weights: whole tiles of rows too.
bool WeightMatmulTiles(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, cudaStream_t stream);
bool WeightMatmulGguf(Tensor x, const WeightView& w, Tensor y, Tensor addend, cudaStream_t stream);

}  // namespace hone::cuda
