// CudaOps: the operations of kernels/ops.h on one NVIDIA card, in fp32 or bf16, one stream, every result deterministic.
// Shapes are checked on every call; a CUDA error is an InvariantError that names the operation (errors of earlier
// kernels surface at the next call that notices: compute-sanitizer names the kernel). Use it from the thread that
// opened it.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny.h"
#include "kernels/cuda/transfers.h"
#include "kernels/ops.h"

namespace hone {

// Memory on the device that operations share (budget.h).
struct CudaWorkspace {
  float* partials = nullptr;     // kCudaReductionBlocks
  cuda::SkinnyWorkspace skinny;  // its partial sums lie where cuBLASLt works
};

class CudaOps : public Ops {
 public:
  // Stream and memory outlive this object.
  CudaOps(DType activation_dtype, cudaStream_t stream, std::unique_ptr<cuda::Gemm> gemm,
          const CudaWorkspace& workspace);

  BackendKind backend() const override { return BackendKind::kCuda; }
  DType activation_dtype() const override { return activation_dtype_; }
  int64_t AdapterColumns(int64_t sum_r) const override;

  void Fill(Tensor out, float value) override;
  void Copy(Tensor in, Tensor out) override;
  void Upload(const void* host, Tensor out) override;
  void Download(Tensor in, void* host) override;
  void Synchronize() override;
  void DecodeWeight(const WeightView& weight, Tensor out) override;
  void StartOffload(Tensor in, void* pinned, int slot) override;
  void StartFetch(const void* pinned, Tensor out, int slot) override;
  void FinishTransfer(int slot) override;
  void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out) override;
  void RefreshAdapters(std::span<const AdapterRefresh> weights) override;
  float EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch) override;
  void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) override;
  void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                       Tensor du) override;
  void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend) override;
  void ArgMax(Tensor logits, Tensor out) override;
  void WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor gate_up,
                       Tensor out) override;
  void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache) override;
  void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
                 Tensor step, const AdamWConstants& constants) override;
  void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) override;
  void GatherRows(Tensor in, Tensor row_ids, Tensor out) override;
  void ScatterRows(Tensor in, Tensor row_ids, Tensor out) override;
  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) override;
  void Add(Tensor x, Tensor y) override;
  void AddBias(Tensor bias, Tensor y) override;
  void ScaleRows(Tensor x, Tensor factors) override;
  void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd) override;
  void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) override;
  void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin) override;
  void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction) override;
  void Glu(Tensor gate_up, Activation activation, Tensor out) override;
  void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out) override;
  void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                 Tensor lse) override;
  void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                         const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv) override;
  void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode,
               Tensor log_probs) override;
  void SumSquares(Tensor x, Tensor out) override;
  void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
             const AdamWConstants& constants) override;

  cudaStream_t stream() const { return stream_; }
  cuda::Gemm& gemm() { return *gemm_; }
  // For tests: the tiles of smaller cards run on larger ones too.
  void set_attention_profile(cuda::AttentionProfile profile) { attention_profile_ = profile; }
  int64_t plain_matmuls() const { return plain_matmuls_; }  // products that cuBLASLt declined

 private:
  bool Skinny(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta);

  DType activation_dtype_;
  cudaStream_t stream_;
  std::unique_ptr<cuda::Gemm> gemm_;
  CudaWorkspace workspace_;
  cuda::Transfers transfers_;
  cuda::AttentionResources AttentionParts() const {
    return {attention_profile_, workspace_.skinny.partials, workspace_.skinny.partial_bytes};
  }

  cuda::AttentionProfile attention_profile_ = cuda::CurrentAttentionProfile();
  int64_t plain_matmuls_ = 0;
};

}  // namespace hone
