// What the kernels of narrow products share: bf16 tensor-core products (mma.m16n8k16), their fragments from shared
// memory by ldmatrix, and copies into it by cp.async (sm_80 and later). Chunks of 16 bytes lie permuted within their
// row so that ldmatrix meets no bank conflict. Not here: any kernel; attention has its own (attention_mma.cuh).
#pragma once

#include "kernels/cuda/device.cuh"

namespace hone::cuda {

using Fragment = float[4];  // rows lane / 4 (0, 1) and 8 below (2, 3), columns 2 * (lane % 4) and the next

__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <bool kTranspose>
__device__ inline void LoadMatrices(uint32_t (&x)[4], uint32_t address) {
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ inline void CopyAsync(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

// Where chunk `chunk` of 16 bytes of row `row` lies in a matrix of WIDTH elements a row.
template <int WIDTH>
__device__ inline uint32_t Place(int row, int chunk) {
  constexpr int kChunks = WIDTH / 8, kMask = kChunks < 8 ? kChunks - 1 : 7,
                kRowsPerLine = kChunks < 8 ? 8 / kChunks : 1;
  return static_cast<uint32_t>(row * kChunks + (chunk ^ (row / kRowsPerLine & kMask))) * 16;
}

}  // namespace hone::cuda
