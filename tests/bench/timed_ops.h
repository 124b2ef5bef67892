// An Ops that forwards everything and, while it is switched on, notes every operation: its part of a step, its FLOPs
// and bytes as DryOps counts them (so a roofline from here and a plan's price agree), and when it began and ended on a
// clock of the back end. Switched off it only forwards. Not here: clocks of a card (cuda_step_bench.cc).
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "kernels/dry/dry_ops.h"
#include "kernels/ops.h"

namespace hone {

// Points in the order of operations; their times are read after everything has ended.
class OpClock {
 public:
  virtual ~OpClock() = default;
  virtual void Mark() = 0;
  virtual std::vector<double> Take() = 0;  // seconds of every mark since the last Take, from any origin
};

class HostClock : public OpClock {
 public:
  void Mark() override {
    marks_.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count());
  }
  std::vector<double> Take() override { return std::exchange(marks_, {}); }

 private:
  std::vector<double> marks_;
};

enum class OpPart : uint8_t {
  kGemm,     // products of the model's linears, adapter columns included
  kAdapter,  // skinny products: one side or the summed side at most 256
  kAttentionForward,
  kAttentionBackward,
  kDecode,  // frozen weights to activations' form
  kElementwise,
  kHead,  // products with the vocabulary and the softmax over it
  kOptimizer,
  kTransfer,
  kWeightMatmul,
};
inline constexpr int kOpParts = 10;
inline const char* OpPartName(OpPart part) {
  constexpr const char* kNames[kOpParts] = {
      "GEMM", "adapter products", "attention forward", "attention backward", "dequantisation", "element-wise",
      "head", "optimiser",        "transfers",         "weight products"};
  return kNames[static_cast<int>(part)];
}

struct OpRecord {
  OpPart part = OpPart::kElementwise;
  const char* name = "";
  DryCounts counts;
  int64_t m = 0, n = 0, k = 0;  // products
  double operand_bytes = 0;     // products: what they read and write
  bool ta = false, tb = false;
  double begin = 0, end = 0;  // seconds
};

class TimedOps : public Ops {
 public:
  // `vocabulary`: products with a side that long are the head's.
  TimedOps(Ops& inner, OpClock& clock, int64_t vocabulary)
      : inner_(inner),
        clock_(clock),
        vocabulary_(vocabulary),
        counter_(MakeDryOps(inner.backend(), inner.activation_dtype())) {}

  void Record(bool on) { on_ = on; }
  // What was recorded, with times; forgets it.
  std::vector<OpRecord> Take() {
    const std::vector<double> marks = clock_.Take();
    for (size_t i = 0; i < records_.size(); ++i) records_[i].begin = marks[2 * i], records_[i].end = marks[2 * i + 1];
    return std::exchange(records_, {});
  }

  BackendKind backend() const override { return inner_.backend(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  int64_t AdapterColumns(int64_t sum_r) const override { return inner_.AdapterColumns(sum_r); }
  void Fill(Tensor o, float v) override {
    Do(OpPart::kElementwise, "Fill", [&](Ops& ops) { ops.Fill(o, v); });
  }
  void Copy(Tensor i, Tensor o) override {
    Do(OpPart::kElementwise, "Copy", [&](Ops& ops) { ops.Copy(i, o); });
  }
  void Upload(const void* h, Tensor o) override {
    Do(OpPart::kTransfer, "Upload", [&](Ops& ops) { ops.Upload(h, o); });
  }
  void Download(Tensor i, void* h) override {
    if (on_) Note(OpPart::kTransfer, "Download", {});
    inner_.Download(i, h);
    if (on_) clock_.Mark();
  }
  void Synchronize() override { inner_.Synchronize(); }
  void StartOffload(Tensor i, void* p, int s) override {
    Do(OpPart::kTransfer, "StartOffload", [&](Ops& ops) { ops.StartOffload(i, p, s); });
  }
  void StartFetch(const void* p, Tensor o, int s) override {
    Do(OpPart::kTransfer, "StartFetch", [&](Ops& ops) { ops.StartFetch(p, o, s); });
  }
  void FinishTransfer(int s) override {
    Do(OpPart::kTransfer, "FinishTransfer", [&](Ops& ops) { ops.FinishTransfer(s); });
  }
  void DecodeWeight(const WeightView& w, Tensor o) override {
    Do(OpPart::kDecode, "DecodeWeight", [&](Ops& ops) { ops.DecodeWeight(w, o); });
  }
  void AugmentWeight(std::span<const AugmentPart> p, Tensor a, Tensor o) override {
    Do(OpPart::kDecode, "AugmentWeight", [&](Ops& ops) { ops.AugmentWeight(p, a, o); });
  }
  void RefreshAdapters(std::span<const AdapterRefresh> w) override {
    Do(OpPart::kElementwise, "RefreshAdapters", [&](Ops& ops) { ops.RefreshAdapters(w); });
  }
  float EncodeNf4(Tensor i, const Nf4Buffers& o, Tensor s) override { return inner_.EncodeNf4(i, o, s); }
  void EmbeddingRows(const WeightView& t, Tensor i, Tensor o) override {
    Do(OpPart::kElementwise, "EmbeddingRows", [&](Ops& ops) { ops.EmbeddingRows(t, i, o); });
  }
  void GatherRows(Tensor i, Tensor r, Tensor o) override {
    Do(OpPart::kElementwise, "GatherRows", [&](Ops& ops) { ops.GatherRows(i, r, o); });
  }
  void ScatterRows(Tensor i, Tensor r, Tensor o) override {
    Do(OpPart::kElementwise, "ScatterRows", [&](Ops& ops) { ops.ScatterRows(i, r, o); });
  }
  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) override {
    const int64_t k = ta == Transpose::kNo ? a.cols : a.rows;
    Do(PartOf(c.rows, c.cols, k), "Matmul", [&](Ops& ops) { ops.Matmul(a, ta, b, tb, c, alpha, beta); });
    Shape(a, ta, b, tb, c, k);
  }
  void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) override {
    const int64_t k = ta == Transpose::kNo ? a.cols : a.rows;
    Do(PartOf(c.rows, c.cols, k), "MatmulAdd", [&](Ops& ops) { ops.MatmulAdd(a, ta, b, tb, addend, c, alpha); });
    Shape(a, ta, b, tb, c, k);
  }
  void WeightMatmul(Tensor x, std::span<const WeightView> w, Tensor y, Tensor addend) override {
    Do(OpPart::kWeightMatmul, "WeightMatmul", [&](Ops& ops) { ops.WeightMatmul(x, w, y, addend); });
  }
  void WeightMatmulGlu(Tensor x, std::span<const WeightView> w, Activation a, Tensor g, Tensor o) override {
    Do(OpPart::kWeightMatmul, "WeightMatmulGlu", [&](Ops& ops) { ops.WeightMatmulGlu(x, w, a, g, o); });
  }
  void RopeToCache(Tensor x, int64_t d, Tensor c, Tensor s, Tensor r, Tensor o) override {
    Do(OpPart::kElementwise, "RopeToCache", [&](Ops& ops) { ops.RopeToCache(x, d, c, s, r, o); });
  }
  void ArgMax(Tensor logits, Tensor out) override {
    Do(OpPart::kHead, "ArgMax", [&](Ops& ops) { ops.ArgMax(logits, out); });
  }
  void AdapterBackward(std::span<const AdapterPart> p, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                       Tensor du) override {
    Do(OpPart::kAdapter, "AdapterBackward", [&](Ops& ops) { ops.AdapterBackward(p, dy, b, u, alpha, beta, du); });
    if (!on_) return;
    OpRecord& r = records_.back();
    r.m = dy.rows, r.n = b.cols, r.k = dy.cols;
    for (const Tensor& t : {dy, b, u, du})
      r.operand_bytes += static_cast<double>(t.elements()) * static_cast<double>(BlockBytes(t.dtype));
  }
  void Add(Tensor x, Tensor y) override {
    Do(OpPart::kElementwise, "Add", [&](Ops& ops) { ops.Add(x, y); });
  }
  void AddBias(Tensor b, Tensor y) override {
    Do(OpPart::kElementwise, "AddBias", [&](Ops& ops) { ops.AddBias(b, y); });
  }
  void ScaleRows(Tensor x, Tensor f) override {
    Do(OpPart::kElementwise, "ScaleRows", [&](Ops& ops) { ops.ScaleRows(x, f); });
  }
  void RmsNorm(Tensor x, Tensor w, float e, Tensor y, Tensor r) override {
    Do(OpPart::kElementwise, "RmsNorm", [&](Ops& ops) { ops.RmsNorm(x, w, e, y, r); });
  }
  void RmsNormBackward(Tensor dy, Tensor x, Tensor w, Tensor r, Tensor dx, float b) override {
    Do(OpPart::kElementwise, "RmsNormBackward", [&](Ops& ops) { ops.RmsNormBackward(dy, x, w, r, dx, b); });
  }
  void RopeTable(Tensor p, Tensor f, float s, Tensor c, Tensor n) override {
    Do(OpPart::kElementwise, "RopeTable", [&](Ops& ops) { ops.RopeTable(p, f, s, c, n); });
  }
  void Rope(Tensor x, int64_t d, Tensor c, Tensor s, RopeDirection r) override {
    Do(OpPart::kElementwise, "Rope", [&](Ops& ops) { ops.Rope(x, d, c, s, r); });
  }
  void Glu(Tensor g, Activation a, Tensor o) override {
    Do(OpPart::kElementwise, "Glu", [&](Ops& ops) { ops.Glu(g, a, o); });
  }
  void GluBackward(Tensor d, Tensor g, Activation a, Tensor o, Tensor h) override {
    Do(OpPart::kElementwise, "GluBackward", [&](Ops& ops) { ops.GluBackward(d, g, a, o, h); });
  }
  void Attention(Tensor q, Tensor k, Tensor v, const Segments& s, const AttentionShape& h, Tensor o,
                 Tensor l) override {
    Do(OpPart::kAttentionForward, "Attention", [&](Ops& ops) { ops.Attention(q, k, v, s, h, o, l); });
  }
  void AttentionBackward(Tensor d, Tensor q, Tensor k, Tensor v, Tensor o, Tensor l, const Segments& s,
                         const AttentionShape& h, Tensor e, Tensor dq, Tensor dk, Tensor dv) override {
    Do(OpPart::kAttentionBackward, "AttentionBackward",
       [&](Ops& ops) { ops.AttentionBackward(d, q, k, v, o, l, s, h, e, dq, dk, dv); });
  }
  void LogProb(Tensor z, Tensor t, const LogitTransform& f, LogProbMode m, Tensor o) override {
    Do(OpPart::kHead, "LogProb", [&](Ops& ops) { ops.LogProb(z, t, f, m, o); });
  }
  void SumSquares(Tensor x, Tensor o) override {
    Do(OpPart::kOptimizer, "SumSquares", [&](Ops& ops) { ops.SumSquares(x, o); });
  }
  void AdamW(Tensor p, Tensor g, Tensor m, Tensor v, Tensor s, Tensor t, const AdamWConstants& c) override {
    Do(OpPart::kOptimizer, "AdamW", [&](Ops& ops) { ops.AdamW(p, g, m, v, s, t, c); });
  }
  void AdamW8bit(Tensor p, Tensor g, Tensor m, Tensor ma, Tensor v, Tensor va, Tensor q, Tensor s,
                 const AdamWConstants& c) override {
    Do(OpPart::kOptimizer, "AdamW8bit", [&](Ops& ops) { ops.AdamW8bit(p, g, m, ma, v, va, q, s, c); });
  }

 private:
  OpPart PartOf(int64_t m, int64_t n, int64_t k) const {
    if (n == vocabulary_ || k == vocabulary_) return OpPart::kHead;
    return std::min({m, n, k}) <= 256 ? OpPart::kAdapter : OpPart::kGemm;
  }
  void Note(OpPart part, const char* name, const DryCounts& counts) {
    OpRecord record;
    record.part = part;
    record.name = name;
    record.counts = counts;
    records_.push_back(record);
    clock_.Mark();
  }
  void Shape(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, int64_t k) {
    if (!on_) return;
    OpRecord& r = records_.back();
    r.m = c.rows, r.n = c.cols, r.k = k, r.ta = ta == Transpose::kYes, r.tb = tb == Transpose::kYes;
    for (const Tensor& t : {a, b, c})
      r.operand_bytes += static_cast<double>(t.elements()) * static_cast<double>(BlockBytes(t.dtype));
  }
  template <typename Work>
  void Do(OpPart part, const char* name, const Work& work) {
    if (!on_) return work(inner_);
    counter_->ResetCounts();
    work(*counter_);
    Note(part, name, counter_->counts());
    work(inner_);
    clock_.Mark();
  }

  Ops& inner_;
  OpClock& clock_;
  int64_t vocabulary_;
  std::unique_ptr<DryOps> counter_;
  std::vector<OpRecord> records_;
  bool on_ = false;
};

}  // namespace hone
