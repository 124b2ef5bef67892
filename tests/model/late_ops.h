// Ops whose transfers happen as late as ops.h allows: a fetch's target holds NaN and an offload has not read its source
// until FinishTransfer. What holds on a card by luck of timing fails here every time.
#pragma once

#include <cmath>
#include <deque>
#include <limits>

#include "kernels/ops.h"

namespace hone {

class LateOps final : public Ops {
 public:
  explicit LateOps(Ops& inner) : inner_(inner) {}
  int64_t transfers = 0;

  BackendKind backend() const override { return inner_.backend(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  int64_t AdapterColumns(int64_t sum_r) const override { return inner_.AdapterColumns(sum_r); }

  void StartOffload(Tensor in, void* pinned, int slot) override { queue_.push_back({slot, in, pinned, nullptr}); }
  void StartFetch(const void* pinned, Tensor out, int slot) override {
    inner_.Fill(out, std::numeric_limits<float>::quiet_NaN());
    queue_.push_back({slot, out, nullptr, pinned});
  }
  void FinishTransfer(int slot) override {
    size_t last = 0;  // transfers happen in the order they were started
    for (size_t i = 0; i < queue_.size(); ++i) {
      if (queue_[i].slot == slot) last = i + 1;
    }
    for (; last > 0; --last, queue_.pop_front(), ++transfers) {
      const Transfer& t = queue_.front();
      t.to != nullptr ? inner_.StartOffload(t.tensor, t.to, t.slot) : inner_.StartFetch(t.from, t.tensor, t.slot);
    }
  }

  void Fill(Tensor o, float v) override { inner_.Fill(o, v); }
  void Copy(Tensor i, Tensor o) override { inner_.Copy(i, o); }
  void Upload(const void* h, Tensor o) override { inner_.Upload(h, o); }
  void Download(Tensor i, void* h) override { inner_.Download(i, h); }
  void Synchronize() override { inner_.Synchronize(); }
  void DecodeWeight(const WeightView& w, Tensor o) override { inner_.DecodeWeight(w, o); }
  void AugmentWeight(std::span<const AugmentPart> p, Tensor a, Tensor o) override { inner_.AugmentWeight(p, a, o); }
  void RefreshAdapters(std::span<const AdapterRefresh> w) override { inner_.RefreshAdapters(w); }
  float EncodeNf4(Tensor i, const Nf4Buffers& o, Tensor s) override { return inner_.EncodeNf4(i, o, s); }
  void EmbeddingRows(const WeightView& t, Tensor i, Tensor o) override { inner_.EmbeddingRows(t, i, o); }
  void GatherRows(Tensor i, Tensor r, Tensor o) override { inner_.GatherRows(i, r, o); }
  void ScatterRows(Tensor i, Tensor r, Tensor o) override { inner_.ScatterRows(i, r, o); }
  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) override {
    inner_.Matmul(a, ta, b, tb, c, alpha, beta);
  }
  void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor d, Tensor c, float alpha) override {
    inner_.MatmulAdd(a, ta, b, tb, d, c, alpha);
  }
  void WeightMatmul(Tensor x, std::span<const WeightView> w, Tensor y, Tensor a) override {
    inner_.WeightMatmul(x, w, y, a);
  }
  void ArgMax(Tensor l, Tensor o) override { inner_.ArgMax(l, o); }
  void WeightMatmulGlu(Tensor x, std::span<const WeightView> w, Activation a, Tensor g, Tensor o) override {
    inner_.WeightMatmulGlu(x, w, a, g, o);
  }
  void RopeToCache(Tensor x, int64_t d, Tensor c, Tensor s, Tensor r, Tensor o) override {
    inner_.RopeToCache(x, d, c, s, r, o);
  }
  void AdapterBackward(std::span<const AdapterPart> p, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                       Tensor du) override {
    inner_.AdapterBackward(p, dy, b, u, alpha, beta, du);
  }
  void Add(Tensor x, Tensor y) override { inner_.Add(x, y); }
  void AddBias(Tensor b, Tensor y) override { inner_.AddBias(b, y); }
  void ScaleRows(Tensor x, Tensor f) override { inner_.ScaleRows(x, f); }
  void RmsNorm(Tensor x, Tensor w, float e, Tensor y, Tensor r) override { inner_.RmsNorm(x, w, e, y, r); }
  void RmsNormBackward(Tensor dy, Tensor x, Tensor w, Tensor r, Tensor dx, float b) override {
    inner_.RmsNormBackward(dy, x, w, r, dx, b);
  }
  void RopeTable(Tensor p, Tensor f, float s, Tensor c, Tensor n) override { inner_.RopeTable(p, f, s, c, n); }
  void Rope(Tensor x, int64_t d, Tensor c, Tensor s, RopeDirection r) override { inner_.Rope(x, d, c, s, r); }
  void Glu(Tensor g, Activation a, Tensor o) override { inner_.Glu(g, a, o); }
  void GluBackward(Tensor d, Tensor g, Activation a, Tensor o, Tensor h) override { inner_.GluBackward(d, g, a, o, h); }
  void Attention(Tensor q, Tensor k, Tensor v, const Segments& s, const AttentionShape& h, Tensor o,
                 Tensor l) override {
    inner_.Attention(q, k, v, s, h, o, l);
  }
  void AttentionBackward(Tensor d, Tensor q, Tensor k, Tensor v, Tensor o, Tensor l, const Segments& s,
                         const AttentionShape& h, Tensor e, Tensor dq, Tensor dk, Tensor dv) override {
    inner_.AttentionBackward(d, q, k, v, o, l, s, h, e, dq, dk, dv);
  }
  void LogProb(Tensor z, Tensor t, const LogitTransform& f, LogProbMode m, Tensor o) override {
    inner_.LogProb(z, t, f, m, o);
  }
  void SumSquares(Tensor x, Tensor o) override { inner_.SumSquares(x, o); }
  void AdamW(Tensor p, Tensor g, Tensor m, Tensor v, Tensor s, Tensor t, const AdamWConstants& c) override {
    inner_.AdamW(p, g, m, v, s, t, c);
  }
  void AdamW8bit(Tensor p, Tensor g, Tensor m, Tensor ma, Tensor v, Tensor va, Tensor q, Tensor s,
                 const AdamWConstants& c) override {
    inner_.AdamW8bit(p, g, m, ma, v, va, q, s, c);
  }

 private:
  struct Transfer {
    int slot;
    Tensor tensor;
    void* to;
    const void* from;
  };
  Ops& inner_;
  std::deque<Transfer> queue_;
};

}  // namespace hone
