// The kernels of the CUDA back end as plain host functions: enqueue on the stream, return nothing. Shapes and dtypes
// were checked by the caller (kernels/checks.h) and no tensor is empty; launch errors are left for cudaGetLastError.
// Formulas and aliasing: kernels/ops.h. Not here: matrix products (gemm.h), attention
// (attention.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/ops.h"

namespace hone::cuda {

// data.cu
void Fill(Tensor out, float value, cudaStream_t stream);
void Copy(Tensor in, Tensor out, cudaStream_t stream);
void GatherRows(Tensor in, Tensor row_ids, Tensor out, cudaStream_t stream);
void ScatterRows(Tensor in, Tensor row_ids, Tensor out, cudaStream_t stream);

// decode.cu: out[i] <- decoded row (row_ids ? row_ids[i] : i) of the weight
void DecodeRows(const WeightView& weight, const int32_t* row_ids, Tensor out, cudaStream_t stream);

// augment.cu: Ops::AugmentWeight in one launch, where it fits (widths and addresses that 16 bytes divide)
bool AugmentFits(std::span<const AugmentPart> parts, Tensor a, Tensor out);
void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out, cudaStream_t stream);
// The rest of such weights, several in a launch, where each fits.
void RefreshAdapters(std::span<const AdapterRefresh> weights, cudaStream_t stream);

// encode.cu; workspace: kCudaReductionBytes. Returns where the nested offset will lie on the device.
const float* EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch, float* workspace, cudaStream_t stream);

// elementwise.cu
void Add(Tensor x, Tensor y, cudaStream_t stream);
void AddBias(Tensor bias, Tensor y, cudaStream_t stream);
void ScaleRows(Tensor x, Tensor factors, cudaStream_t stream);
void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin, cudaStream_t stream);
void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction, cudaStream_t stream);
void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache,
                 cudaStream_t stream);
void Glu(Tensor gate_up, Activation activation, Tensor out, cudaStream_t stream);
void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out,
                 cudaStream_t stream);

// norm.cu
void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd, cudaStream_t stream);
void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta, cudaStream_t stream);

// head.cu
void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode, Tensor log_probs,
             cudaStream_t stream);

// optimizer.cu; partials: kCudaReductionBlocks floats
void SumSquares(Tensor x, float* partials, Tensor out, cudaStream_t stream);
void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
           const AdamWConstants& constants, cudaStream_t stream);
void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
               Tensor step, const AdamWConstants& constants, cudaStream_t stream);

// weight_matmul.cu: x by stored weights, at most kWeightMatmulRows rows
void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, cudaStream_t stream);
// The same for two of them behind a gated unit, to the same bits; false: nothing was done, for shapes and activations
// that have no such kernel.
bool WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor out,
                     cudaStream_t stream);

// argmax.cu
void ArgMax(Tensor logits, Tensor out, cudaStream_t stream);

// matmul_plain.cu: any pitch and alignment, slowly; for the shapes that cuBLASLt declines and for k = 0
void PlainMatmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta,
                 cudaStream_t stream);

}  // namespace hone::cuda
