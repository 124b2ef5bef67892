#include "kernels/cuda/cuda_ops.h"

#include <utility>

#include "kernels/adapter_pieces.h"
#include "kernels/augment_pieces.h"
#include "kernels/checks.h"
#include "kernels/cuda/adapter_backward.h"
#include "kernels/cuda/budget.h"
#include "kernels/cuda/launch.h"
#include "proto/base/status.h"

namespace hone {
namespace {

void Require(cudaError_t error, const char* operation) {
  HONE_CHECK(error == cudaSuccess, operation, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

void Launched(const char* operation) { Require(cudaGetLastError(), operation); }

size_t DenseBytes(Tensor t) { return static_cast<size_t>(t.elements() * BlockBytes(t.dtype)); }

void CheckSegments(const Segments& segments, const AttentionShape& shape) {
  HONE_CHECK(shape.head_dim <= kCudaMaxHeadDim, "head_dim ", shape.head_dim, " above ", kCudaMaxHeadDim);
  if (segments.host.empty()) return;
  const Tensor device = segments.device;
  HONE_CHECK(device.dtype == DType::kI32 && device.cols == 6 && device.pitch == 6 &&
                 device.rows == static_cast<int64_t>(segments.host.size()) && device.data != nullptr,
             "segments on the device [", device.rows, ", ", device.cols, "] pitch ", device.pitch);
}

}  // namespace

CudaOps::CudaOps(DType activation_dtype, cudaStream_t stream, std::unique_ptr<cuda::Gemm> gemm,
                 const CudaWorkspace& workspace)
    : activation_dtype_(activation_dtype),
      stream_(stream),
      gemm_(std::move(gemm)),
      workspace_(workspace),
      transfers_(stream) {}

int64_t CudaOps::AdapterColumns(int64_t sum_r) const { return checks::AdapterColumns(BackendKind::kCuda, sum_r); }

void CudaOps::Fill(Tensor out, float value) {
  checks::Fill(out);
  if (out.empty()) return;
  cuda::Fill(out, value, stream_);
  Launched("Fill");
}

void CudaOps::Copy(Tensor in, Tensor out) {
  checks::Copy(in, out);
  if (in.empty() || (in.data == out.data && in.dtype == out.dtype && in.pitch == out.pitch)) return;
  cuda::Copy(in, out, stream_);
  Launched("Copy");
}

void CudaOps::Upload(const void* host, Tensor out) {
  checks::Dense(out);
  if (out.empty()) return;
  Require(cudaMemcpyAsync(out.data, host, DenseBytes(out), cudaMemcpyHostToDevice, stream_), "Upload");
}

void CudaOps::Download(Tensor in, void* host) {
  checks::Dense(in);
  if (!in.empty()) Require(cudaMemcpyAsync(host, in.data, DenseBytes(in), cudaMemcpyDeviceToHost, stream_), "Download");
  Require(cudaStreamSynchronize(stream_), "Download");
}

void CudaOps::Synchronize() {
  Require(cudaStreamSynchronize(stream_), "Synchronize");
  transfers_.Synchronize();
}

void CudaOps::DecodeWeight(const WeightView& weight, Tensor out) {
  checks::DecodeWeight(weight, out);
  if (out.empty()) return;
  cuda::DecodeRows(weight, nullptr, out, stream_);
  Launched("DecodeWeight");
}

void CudaOps::EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) {
  checks::EmbeddingRows(table, ids, out);
  if (out.empty()) return;
  cuda::DecodeRows(table, ids.as<int32_t>(), out, stream_);
  Launched("EmbeddingRows");
}

void CudaOps::GatherRows(Tensor in, Tensor row_ids, Tensor out) {
  checks::GatherRows(in, row_ids, out);
  if (out.empty()) return;
  cuda::GatherRows(in, row_ids, out, stream_);
  Launched("GatherRows");
}

void CudaOps::ScatterRows(Tensor in, Tensor row_ids, Tensor out) {
  checks::ScatterRows(in, row_ids, out);
  if (in.empty()) return;
  cuda::ScatterRows(in, row_ids, out, stream_);
  Launched("ScatterRows");
}

void CudaOps::Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) {
  checks::Matmul(a, ta, b, tb, c);
  if (c.empty()) return;
  if (!a.empty() && Skinny(a, ta, b, tb, c, alpha, beta)) return;
  if (!a.empty() && gemm_->Run({a, b, c, c, ta, tb, alpha, beta}, stream_)) return;
  ++plain_matmuls_;
  cuda::PlainMatmul(a, ta, b, tb, c, alpha, beta, stream_);
  Launched("Matmul");
}

// True if the product has a narrow side and was enqueued.
bool CudaOps::Skinny(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) {
  if (cuda::SkinnyFits(a, ta, b, tb, c)) {
    const cuda::SkinnyShape shape = cuda::SkinnyShapeFor(a, ta, b, tb, c);
    cuda::SkinnyMatmul(a, ta, b, tb, c, alpha, beta, shape, workspace_.skinny, stream_);
  } else if (cuda::SkinnyFitsF32(a, ta, b, tb, c)) {
    cuda::SkinnyMatmulF32(a, ta, b, tb, c, alpha, beta, workspace_.skinny, stream_);
  } else {
    return false;
  }
  Launched("Matmul");
  return true;
}

void CudaOps::Add(Tensor x, Tensor y) {
  checks::Add(x, y, activation_dtype_);
  if (y.empty()) return;
  cuda::Add(x, y, stream_);
  Launched("Add");
}

void CudaOps::AddBias(Tensor bias, Tensor y) {
  checks::AddBias(bias, y, activation_dtype_);
  if (y.empty()) return;
  cuda::AddBias(bias, y, stream_);
  Launched("AddBias");
}

void CudaOps::ScaleRows(Tensor x, Tensor factors) {
  checks::ScaleRows(x, factors, activation_dtype_);
  if (x.empty()) return;
  cuda::ScaleRows(x, factors, stream_);
  Launched("ScaleRows");
}

void CudaOps::RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd) {
  checks::RmsNorm(x, weight, y, rstd, activation_dtype_);
  if (x.empty()) return;
  cuda::RmsNorm(x, weight, eps, y, rstd, stream_);
  Launched("RmsNorm");
}

void CudaOps::RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) {
  checks::RmsNormBackward(dy, x, weight, rstd, dx, beta, activation_dtype_);
  if (x.empty()) return;
  cuda::RmsNormBackward(dy, x, weight, rstd, dx, beta, stream_);
  Launched("RmsNormBackward");
}

void CudaOps::RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin) {
  checks::RopeTable(positions, inv_freq, cos, sin);
  if (cos.empty()) return;
  cuda::RopeTable(positions, inv_freq, scaling, cos, sin, stream_);
  Launched("RopeTable");
}

void CudaOps::Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction) {
  checks::Rope(x, head_dim, cos, sin, activation_dtype_);
  if (x.empty()) return;
  cuda::Rope(x, head_dim, cos, sin, direction, stream_);
  Launched("Rope");
}

void CudaOps::Glu(Tensor gate_up, Activation activation, Tensor out) {
  checks::Glu(gate_up, out, activation_dtype_);
  if (out.empty()) return;
  cuda::Glu(gate_up, activation, out, stream_);
  Launched("Glu");
}

void CudaOps::GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out) {
  checks::GluBackward(d_out, gate_up, d_gate_up, out, activation_dtype_);
  if (d_out.empty()) return;
  cuda::GluBackward(d_out, gate_up, activation, d_gate_up, out, stream_);
  Launched("GluBackward");
}

void CudaOps::Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                        Tensor lse) {
  checks::Attention(q, k, v, segments, shape, out, lse, activation_dtype_);
  CheckSegments(segments, shape);
  cuda::Attention(q, k, v, segments, shape, out, lse, AttentionParts(), stream_);
  Launched("Attention");
}

void CudaOps::AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                                const Segments& segments, const AttentionShape& shape, Tensor delta, Tensor dq,
                                Tensor dk, Tensor dv) {
  checks::AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv, activation_dtype_);
  CheckSegments(segments, shape);
  cuda::AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv, AttentionParts(), stream_);
  Launched("AttentionBackward");
}

void CudaOps::LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode,
                      Tensor log_probs) {
  checks::LogProb(logits, targets, log_probs, activation_dtype_);
  if (logits.empty()) return;
  cuda::LogProb(logits, targets, transform, mode, log_probs, stream_);
  Launched("LogProb");
}

void CudaOps::SumSquares(Tensor x, Tensor out) {
  checks::SumSquares(x, out);
  cuda::SumSquares(x, workspace_.partials, out, stream_);
  Launched("SumSquares");
}

void CudaOps::AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
                    const AdamWConstants& constants) {
  checks::AdamW(param, grad, m, v, sum_squares, step);
  if (param.empty()) return;
  cuda::AdamW(param, grad, m, v, sum_squares, step, constants, stream_);
  Launched("AdamW");
}

void CudaOps::StartOffload(Tensor in, void* pinned, int slot) {
  checks::Transfer(in, pinned, slot);
  if (!in.empty()) transfers_.Start(pinned, in.data, DenseBytes(in), cudaMemcpyDeviceToHost, slot);
}

void CudaOps::StartFetch(const void* pinned, Tensor out, int slot) {
  checks::Transfer(out, pinned, slot);
  if (!out.empty()) transfers_.Start(out.data, pinned, DenseBytes(out), cudaMemcpyHostToDevice, slot);
}

void CudaOps::FinishTransfer(int slot) {
  HONE_CHECK(slot >= 0 && slot < kTransferSlots, "transfer slot ", slot);
  transfers_.Finish(slot);
}

void CudaOps::AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out) {
  checks::AugmentWeight(parts, a, out, activation_dtype());
  if (out.empty()) return;
  if (cuda::AugmentFits(parts, a, out)) {
    cuda::AugmentWeight(parts, a, out, stream_);
    Launched("AugmentWeight");
    return;
  }
  AugmentInPieces(*this, parts, a, out);  // widths that are no multiple of 8, which no model has
}

void CudaOps::RefreshAdapters(std::span<const AdapterRefresh> weights) {
  bool fits = true;
  for (const AdapterRefresh& w : weights) {
    checks::AugmentWeight(w.parts, w.a, w.out, activation_dtype());
    fits = fits && cuda::AugmentFits(w.parts, w.a, w.out);
  }
  if (!fits) {
    for (const AdapterRefresh& w : weights) RefreshInPieces(*this, w);
    return;
  }
  cuda::RefreshAdapters(weights, stream_);
  Launched("RefreshAdapters");
}

void CudaOps::MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) {
  checks::MatmulAdd(a, ta, b, tb, addend, c);
  if (c.empty()) return;
  const bool skinny = !a.empty() && (cuda::SkinnyFits(a, ta, b, tb, c) || cuda::SkinnyFitsF32(a, ta, b, tb, c));
  if (!a.empty() && !skinny && gemm_->Run({a, b, c, addend, ta, tb, alpha, 1}, stream_)) return;
  Copy(addend, c);
  Matmul(a, ta, b, tb, c, alpha, 1);
}

float CudaOps::EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch) {
  checks::EncodeNf4(in, out, scratch);
  if (in.empty()) return 0;
  const float* on_device = cuda::EncodeNf4(in, out, scratch, workspace_.partials, stream_);
  Launched("EncodeNf4");
  float offset = 0;
  Require(cudaMemcpyAsync(&offset, on_device, sizeof(offset), cudaMemcpyDeviceToHost, stream_), "EncodeNf4");
  Require(cudaStreamSynchronize(stream_), "EncodeNf4");
  return offset;
}

void CudaOps::AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha,
                              float beta, Tensor du) {
  checks::AdapterBackward(parts, dy, b, u, du, activation_dtype_);
  if (dy.empty() || b.empty() || (u.empty() && du.empty())) return;
  if (!cuda::AdapterBackwardFits(parts, dy, b, u, du)) {
    return AdapterBackwardInPieces(*this, parts, dy, b, u, alpha, beta, du);
  }
  cuda::AdapterBackward(parts, dy, b, u, alpha, beta, du, {}, workspace_.skinny, stream_);
  Launched("AdapterBackward");
}

void CudaOps::WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend) {
  checks::WeightMatmul(x, weights, y, addend, activation_dtype());
  if (y.empty()) return;
  cuda::WeightMatmul(x, weights, y, addend, stream_);
  Launched("WeightMatmul");
}

void CudaOps::WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor gate_up,
                              Tensor out) {
  checks::WeightMatmulGlu(x, weights, gate_up, out, activation_dtype());
  if (out.empty()) return;
  if (!cuda::WeightMatmulGlu(x, weights, activation, out, stream_)) {
    cuda::WeightMatmul(x, weights, gate_up, {}, stream_);
    cuda::Glu(gate_up, activation, out, stream_);
  }
  Launched("WeightMatmulGlu");
}

void CudaOps::RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache) {
  checks::RopeToCache(qkv, head_dim, cos, sin, row_ids, cache, activation_dtype_);
  if (qkv.empty() || cache.empty()) return;
  cuda::RopeToCache(qkv, head_dim, cos, sin, row_ids, cache, stream_);
  Launched("RopeToCache");
}

void CudaOps::ArgMax(Tensor logits, Tensor out) {
  checks::ArgMax(logits, out);
  if (logits.empty()) return;
  cuda::ArgMax(logits, out, stream_);
  Launched("ArgMax");
}

void CudaOps::AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax,
                        Tensor sum_squares, Tensor step, const AdamWConstants& constants) {
  checks::AdamW8bit(param, grad, m, m_absmax, v, v_absmax, sum_squares, step);
  if (param.empty()) return;
  cuda::AdamW8bit(param, grad, m, m_absmax, v, v_absmax, sum_squares, step, constants, stream_);
  Launched("AdamW8bit");
}

}  // namespace hone
