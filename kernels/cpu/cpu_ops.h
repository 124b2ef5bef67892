// CpuOps: fp32 on the processor. What is not a matrix product is a row loop of kernels/cpu/isa, divided over the pool.
#pragma once

#include <memory>

#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops.h"

namespace hone {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(int threads);
  // With a chosen instruction set: tests compare them.
  CpuOps(int threads, const CpuKernels& kernels);
  ~CpuOps() override;

  BackendKind backend() const override { return BackendKind::kCpu; }
  DType activation_dtype() const override { return DType::kF32; }
  int64_t AdapterColumns(int64_t sum_r) const override;
  int threads() const { return pool_.threads(); }

  void Fill(Tensor out, float value) override;
  void Copy(Tensor in, Tensor out) override;
  void Upload(const void* host, Tensor out) override;
  void Download(Tensor in, void* host) override;
  void Synchronize() override {}
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

  // Scratch that each thread keeps for attention tiles, and all that CpuOps allocates, in bytes.
  static uint64_t WorkspaceBytes(int threads);

 private:
  void WeightProduct(Tensor x, const WeightView& weight, Tensor y, Tensor addend);

  float* Scratch(int part) const;
  static AdamWScalars Scalars(Tensor sum_squares, Tensor step, const AdamWConstants& constants);
  template <typename F>
  void Rows(Tensor t, F&& f);  // f(begin, end), in parallel if there is enough of t

  ThreadPool pool_;
  const CpuKernels& kernels_;
  float* scratch_;
};

}  // namespace hone
