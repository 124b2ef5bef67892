// The kernels of the CUDA back end as plain host functions: enqueue on the stream, return nothing. Shapes and dtypes
// were checked by the caller (kernels/checks.h) and no tensor is empty; launch errors are left for cudaGetLastError.
// Formulas and aliasing: kernels/ops.h. Not here: matrix products (gemm.h).
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

// elementwise.cu
void Add(Tensor x, Tensor y, cudaStream_t stream);
void AddBias(Tensor bias, Tensor y, cudaStream_t stream);
void ScaleRows(Tensor x, Tensor factors, cudaStream_t stream);
void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin, cudaStream_t stream);
void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction, cudaStream_t stream);
void Glu(Tensor gate_up, Activation activation, Tensor out, cudaStream_t stream);
void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, cudaStream_t stream);

// norm.cu
void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd, cudaStream_t stream);
void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta, cudaStream_t stream);

// attention.cu
void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
               Tensor lse, cudaStream_t stream);
void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                       const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv, cudaStream_t stream);

// head.cu
void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode, Tensor log_probs,
             cudaStream_t stream);

// optimizer.cu; partials: kCudaReductionBlocks floats
void SumSquares(Tensor x, float* partials, Tensor out, cudaStream_t stream);
void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
           const AdamWConstants& constants, cudaStream_t stream);

// skinny.cu: narrow bf16 products; whether they fit never depends on the number of rows
bool SkinnyFits(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c);
void SkinnyMatmul(Tensor a, Tensor b, Transpose tb, Tensor c, float alpha, float beta, cudaStream_t stream);

// matmul_plain.cu: any pitch and alignment, slowly; for the shapes that cuBLASLt declines and for k = 0
void PlainMatmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta,
                 cudaStream_t stream);

}  // namespace hone::cuda
