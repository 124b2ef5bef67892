// Ops::AdapterBackward in bf16 in one pass over dY (adapter_backward.cu). Not here: other narrow products (skinny.h).
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/cuda/skinny.h"
#include "kernels/ops.h"

namespace hone::cuda {

// How dY is cut, 0: as its shape and the card suggest. Slabs of so many times 128 columns decide the order in which du
// is added up, blocks that in which dB is.
struct AdapterBackwardShape {
  int chunks = 0, blocks = 0;
};

// Whether it fits never depends on the number of rows, nor on whether u or du is given.
bool AdapterBackwardFits(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, Tensor du);
void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                     Tensor du, AdapterBackwardShape shape, const SkinnyWorkspace& workspace, cudaStream_t stream);

}  // namespace hone::cuda
