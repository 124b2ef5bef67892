// Attention's parts inside the CUDA back end: the choice between the tensor core kernels for bf16
// (attention_forward.cuh, attention_dq.cuh, attention_dkv.cuh, one .cu file per width of tile) and the plain fp32 ones
// (attention_plain.cu). Formulas and aliasing: kernels/ops.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/ops.h"

namespace hone::cuda {

// Tiles for cards whose blocks may have 160 KiB of shared memory and more (sm_80, sm_90), or 99 KiB (sm_86, sm_89);
// kHopper: as kLarge, but warpgroup products where there are kernels with them (sm_90; heads of 97 to 128 columns).
enum class AttentionProfile : uint8_t { kLarge, kSmall, kHopper };
AttentionProfile CurrentAttentionProfile();  // of the current device

struct AttentionResources {
  AttentionProfile profile = AttentionProfile::kSmall;
  float* partials = nullptr;  // scratch of this one call: parts of long caches, decoded by several blocks
  int64_t partial_bytes = 0;  // a constant of the back end; results depend on it only where a segment's parts exceed it
};

// attention.cu. A document's results depend on nothing but the document and the profile.
void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
               Tensor lse, const AttentionResources& resources, cudaStream_t stream);
void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                       const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv,
                       const AttentionResources& resources, cudaStream_t stream);

// attention_plain.cu: fp32 arithmetic, fp32 or bf16 storage, any pitch, head_dim to kCudaMaxHeadDim
void PlainAttention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                    Tensor lse, cudaStream_t stream);
void PlainAttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                            const Segments& segments, const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk,
                            Tensor dv, cudaStream_t stream);

}  // namespace hone::cuda
