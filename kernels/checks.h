// The shape rules of ops.h, written once and run by every back end on every call. A violation is a broken invariant.
#pragma once

#include "kernels/ops.h"

namespace hone::checks {

void Fill(Tensor out);
void Copy(Tensor in, Tensor out);
void Dense(Tensor t);                    // Upload, Download
void HasData(const WeightView& weight);  // for back ends that read: a dry run's weights may be shapes only
void DecodeWeight(const WeightView& weight, Tensor out);
void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out, DType act);
void EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch);
void Transfer(Tensor t, const void* pinned, int slot);
void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out);
void GatherRows(Tensor in, Tensor row_ids, Tensor out);
void ScatterRows(Tensor in, Tensor row_ids, Tensor out);
void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c);
void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c);
void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, DType act);
void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, Tensor du, DType act);
void Add(Tensor x, Tensor y, DType act);
void AddBias(Tensor bias, Tensor y, DType act);
void ScaleRows(Tensor x, Tensor factors, DType act);
void RmsNorm(Tensor x, Tensor weight, Tensor y, Tensor rstd, DType act);
void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta, DType act);
void RopeTable(Tensor positions, Tensor inv_freq, Tensor cos, Tensor sin);
void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, DType act);
void Glu(Tensor gate_up, Tensor out, DType act);
void GluBackward(Tensor d_out, Tensor gate_up, Tensor d_gate_up, Tensor out, DType act);
void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
               Tensor lse, DType act);
void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                       const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv, DType act);
void LogProb(Tensor logits, Tensor targets, Tensor log_probs, DType act);
void ArgMax(Tensor logits, Tensor out);
void WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Tensor gate_up, Tensor out, DType act);
void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache, DType act);
void SumSquares(Tensor x, Tensor out);
void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step);
void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
               Tensor step);

// Ops::AdapterColumns of each back end: how wide the spare columns beside a weight or activation are.
int64_t AdapterColumns(BackendKind backend, int64_t sum_r);

}  // namespace hone::checks
