// Products with one narrow side in bf16 (skinny.cu): x A^T, dY B, dA, dB. Not here: what they are used for (gemm.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/ops.h"

namespace hone::cuda {

inline constexpr int64_t kSkinnyColumns = 192;  // the narrow side

// How a product is cut: rows (64; 128 too for sums over tokens) and columns (16, 32, 64) of a block's tile, and how
// many blocks share a tile along k (for x A^T and dY B 1, 2 or 4, 1 where k is below 1024; no effect on their bits).
struct SkinnyShape {
  int rows = 64, columns = 64, split = 1;
};

struct SkinnyWorkspace {
  float* partials = nullptr;
  int64_t partial_bytes = 0;    // at least 8 MiB
  unsigned* tickets = nullptr;  // kCudaTicketBytes, zero; left zero
};

// Whether it fits never depends on the number of rows.
bool SkinnyFits(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c);
SkinnyShape SkinnyShapeFor(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c);
void SkinnyMatmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta, SkinnyShape shape,
                  const SkinnyWorkspace& workspace, cudaStream_t stream);

// The same in fp32 (skinny_f32.cu), for checking: slower, any alignment.
bool SkinnyFitsF32(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c);
void SkinnyMatmulF32(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta,
                     const SkinnyWorkspace& workspace, cudaStream_t stream);

}  // namespace hone::cuda
