#include "kernels/dry/dry_ops.h"

#include <algorithm>
#include <cstring>

#include "kernels/checks.h"
#include "proto/base/status.h"

namespace hone {
namespace {

double Bytes(Tensor t) { return static_cast<double>(t.elements()) * static_cast<double>(BlockBytes(t.dtype)); }

double Bytes(const WeightView& w) {
  const double elements = static_cast<double>(w.rows) * static_cast<double>(w.cols);
  double bytes = elements / static_cast<double>(BlockElements(w.dtype)) * static_cast<double>(BlockBytes(w.dtype));
  if (w.dtype == DType::kNf4) bytes += elements / kNf4BlockSize * (w.absmax_codes != nullptr ? 1.0 : 4.0);
  return bytes;
}

// Pairs (query, key) that a segment's causal mask and window leave, per head.
double VisiblePairs(const Segment& s, int64_t window) {
  const double all = static_cast<double>(s.q_len) * (static_cast<double>(s.prefix_len) + s.kv_len - s.q_len) +
                     0.5 * s.q_len * (static_cast<double>(s.q_len) + 1);
  if (window == 0) return all;
  // Query i sees `before + i + 1` keys, at most `window` of them.
  const int64_t before = int64_t{s.prefix_len} + s.kv_len - s.q_len;
  const int64_t growing = std::clamp<int64_t>(window - before, 0, s.q_len);  // queries that the window does not cut
  return static_cast<double>(growing) * static_cast<double>(before) +
         0.5 * static_cast<double>(growing) * (static_cast<double>(growing) + 1) +
         static_cast<double>(s.q_len - growing) * static_cast<double>(window);
}

double AttentionPairs(const Segments& segments, const AttentionShape& shape) {
  double pairs = 0;
  for (const Segment& s : segments.host) pairs += VisiblePairs(s, shape.window);
  return pairs * static_cast<double>(shape.heads);
}

// Short documents count for more: as many pairs as would take as long in a long one.
double EffectivePairs(const Segments& segments, const AttentionShape& shape, double half_rate_length) {
  double pairs = 0;
  for (const Segment& s : segments.host) {
    pairs += VisiblePairs(s, shape.window) * (1 + half_rate_length / (static_cast<double>(s.prefix_len) + s.kv_len));
  }
  return pairs * static_cast<double>(shape.heads);
}

class DryOpsImpl final : public DryOps {
 public:
  DryOpsImpl(BackendKind imitated, DType act, const DryRates& rates) : imitated_(imitated), act_(act), rates_(rates) {}

  BackendKind backend() const override { return BackendKind::kDry; }
  DType activation_dtype() const override { return act_; }
  int64_t AdapterColumns(int64_t sum_r) const override { return checks::AdapterColumns(imitated_, sum_r); }
  const DryCounts& counts() const override { return counts_; }
  void ResetCounts() override { counts_ = {}; }

  void Fill(Tensor out, float) override {
    checks::Fill(out);
    Count(Bytes(out));
  }
  void Copy(Tensor in, Tensor out) override {
    checks::Copy(in, out);
    Count(Bytes(in) + Bytes(out));
  }
  void Upload(const void*, Tensor out) override {
    checks::Dense(out);
    Count(Bytes(out));
  }
  void Download(Tensor in, void* host) override {
    checks::Dense(in);
    std::memset(host, 0, static_cast<size_t>(Bytes(in)));
    Count(Bytes(in));
  }
  void Synchronize() override {}
  void StartOffload(Tensor in, void*, int slot) override { Transferred(in, slot); }
  void StartFetch(const void*, Tensor out, int slot) override { Transferred(out, slot); }
  void FinishTransfer(int) override {}
  void DecodeWeight(const WeightView& weight, Tensor out) override {
    checks::DecodeWeight(weight, out);
    Count(Bytes(weight) + Bytes(out), counts_.decode_bytes);
  }
  void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out) override {
    checks::AugmentWeight(parts, a, out, act_);
    double bytes = Bytes(a) + Bytes(out);
    for (const AugmentPart& part : parts) bytes += Bytes(part.weight) + Bytes(part.b);
    Count(bytes, counts_.decode_bytes);
  }
  void RefreshAdapters(std::span<const AdapterRefresh> weights) override {
    double bytes = 0;
    for (const AdapterRefresh& w : weights) {
      checks::AugmentWeight(w.parts, w.a, w.out, act_);
      bytes += Bytes(w.a);
      for (const AugmentPart& part : w.parts) bytes += Bytes(part.b);
    }
    Count(1.5 * bytes);  // fp32 read; written as act where that is bf16
  }
  float EncodeNf4(Tensor in, const Nf4Buffers&, Tensor scratch) override {
    Count(2 * Bytes(in) + 2 * Bytes(scratch) + 0.5 * static_cast<double>(in.elements()));
    return 0;
  }
  void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) override {
    checks::EmbeddingRows(table, ids, out);
    Count(Bytes(out) * 2 + Bytes(ids));
  }
  void GatherRows(Tensor in, Tensor row_ids, Tensor out) override {
    checks::GatherRows(in, row_ids, out);
    Count(Bytes(out) * 2 + Bytes(row_ids));
  }
  void ScatterRows(Tensor in, Tensor row_ids, Tensor out) override {
    checks::ScatterRows(in, row_ids, out);
    Count(Bytes(in) * 2 + Bytes(row_ids));
  }

  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float, float) override {
    checks::Matmul(a, ta, b, tb, c);
    CountProduct(c.rows, c.cols, ta == Transpose::kNo ? a.cols : a.rows, Bytes(a) + Bytes(b) + Bytes(c));
  }
  void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) override {
    checks::MatmulAdd(a, ta, b, tb, addend, c);
    Matmul(a, ta, b, tb, c, alpha, 0);
  }
  void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend) override {
    checks::WeightMatmul(x, weights, y, addend, act_);
    double bytes = Bytes(x) + Bytes(y) + Bytes(addend);
    for (const WeightView& weight : weights) bytes += Bytes(weight);
    Count(bytes);
  }
  // dy is read once, whichever halves are wanted.
  void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float, float,
                       Tensor du) override {
    checks::AdapterBackward(parts, dy, b, u, du, act_);
    int64_t products = 0;
    double bytes = Bytes(dy) + (du.empty() ? 0 : Bytes(b) + Bytes(du)) + (u.empty() ? 0 : Bytes(u));
    for (const AdapterPart& part : parts) {
      products += part.db.elements() * ((du.empty() ? 0 : 1) + (u.empty() ? 0 : 1));
      if (!u.empty()) bytes += 2 * Bytes(part.db);
    }
    CountProduct(products, 1, dy.rows, bytes);
  }
  void WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation, Tensor gate_up, Tensor out) override {
    checks::WeightMatmulGlu(x, weights, gate_up, out, act_);
    Count(Bytes(weights[0]) + Bytes(weights[1]) + Bytes(x) + Bytes(out));
  }
  void Add(Tensor x, Tensor y) override {
    checks::Add(x, y, act_);
    Count(Bytes(x) + 2 * Bytes(y));
  }
  void AddBias(Tensor bias, Tensor y) override {
    checks::AddBias(bias, y, act_);
    Count(Bytes(bias) + 2 * Bytes(y));
  }
  void ScaleRows(Tensor x, Tensor factors) override {
    checks::ScaleRows(x, factors, act_);
    Count(2 * Bytes(x) + Bytes(factors));
  }

  void RmsNorm(Tensor x, Tensor weight, float, Tensor y, Tensor rstd) override {
    checks::RmsNorm(x, weight, y, rstd, act_);
    Count(Bytes(x) + Bytes(y) + Bytes(rstd));
  }
  void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) override {
    checks::RmsNormBackward(dy, x, weight, rstd, dx, beta, act_);
    Count(Bytes(dy) + Bytes(x) + Bytes(rstd) + Bytes(dx) * (beta == 0 ? 1 : 2));
  }
  void RopeTable(Tensor positions, Tensor inv_freq, float, Tensor cos, Tensor sin) override {
    checks::RopeTable(positions, inv_freq, cos, sin);
    Count(Bytes(positions) + Bytes(cos) + Bytes(sin));
  }
  void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection) override {
    checks::Rope(x, head_dim, cos, sin, act_);
    Count(2 * Bytes(x) + Bytes(cos) + Bytes(sin));
  }
  void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache) override {
    checks::RopeToCache(qkv, head_dim, cos, sin, row_ids, cache, act_);
    Count(2 * Bytes(qkv) + Bytes(qkv.Cols(0, cache.cols)) + Bytes(cos) + Bytes(sin) + Bytes(row_ids));
  }
  void Glu(Tensor gate_up, Activation, Tensor out) override {
    checks::Glu(gate_up, out, act_);
    Count(Bytes(gate_up) + Bytes(out));
  }
  void GluBackward(Tensor d_out, Tensor gate_up, Activation, Tensor d_gate_up, Tensor out) override {
    checks::GluBackward(d_out, gate_up, d_gate_up, out, act_);
    Count(Bytes(d_out) + Bytes(gate_up) + Bytes(d_gate_up) + Bytes(out));
  }

  void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                 Tensor lse) override {
    checks::Attention(q, k, v, segments, shape, out, lse, act_);
    CountAttention(4, rates_.attention_forward_flops, segments, shape);
    ++counts_.launches;
  }
  void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                         const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv) override {
    checks::AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv, act_);
    counts_.attention_backward_flops += CountAttention(10, rates_.attention_backward_flops, segments, shape);
    ++counts_.launches;
  }

  void ArgMax(Tensor logits, Tensor out) override {
    checks::ArgMax(logits, out);
    Count(Bytes(logits) + Bytes(out));
  }
  void LogProb(Tensor logits, Tensor targets, const LogitTransform&, LogProbMode mode, Tensor log_probs) override {
    checks::LogProb(logits, targets, log_probs, act_);
    Count(Bytes(logits) * (mode == LogProbMode::kUnitGradient ? 2 : 1) + Bytes(targets) + Bytes(log_probs),
          counts_.head_bytes);
  }
  void SumSquares(Tensor x, Tensor out) override {
    checks::SumSquares(x, out);
    Count(Bytes(x), counts_.optimizer_bytes);
  }
  void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
             const AdamWConstants&) override {
    checks::AdamW(param, grad, m, v, sum_squares, step);
    Count(2 * (Bytes(param) + Bytes(m) + Bytes(v)) + Bytes(grad), counts_.optimizer_bytes);
  }

  void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
                 Tensor step, const AdamWConstants&) override {
    checks::AdamW8bit(param, grad, m, m_absmax, v, v_absmax, sum_squares, step);
    Count(2 * (Bytes(param) + Bytes(m) + Bytes(v) + Bytes(m_absmax) + Bytes(v_absmax)) + Bytes(grad),
          counts_.optimizer_bytes);
  }

 private:
  void Transferred(Tensor t, int slot) {
    checks::Dense(t);
    HONE_CHECK(slot >= 0 && slot < kTransferSlots, "transfer slot ", slot);
    counts_.transfer_bytes += Bytes(t);
  }
  void Count(double bytes) {
    counts_.bytes += bytes;
    ++counts_.launches;
  }
  void Count(double bytes, double& kind) {
    kind += bytes;
    Count(bytes);
  }

  // Returns the operations.
  double CountAttention(double per_pair, double rate, const Segments& segments, const AttentionShape& shape) {
    const double each = per_pair * static_cast<double>(shape.head_dim);
    const double flops = each * AttentionPairs(segments, shape);
    counts_.attention_flops += flops;
    if (rate > 0) counts_.attention_seconds += each * EffectivePairs(segments, shape, rates_.half_rate_length) / rate;
    return flops;
  }

  void CountProduct(int64_t m, int64_t n, int64_t k, double bytes) {
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    counts_.gemm_flops += flops;
    ++counts_.launches;
    if (rates_.gemm_flops <= 0) return;
    constexpr int64_t kTile = 128;
    const auto tiles = static_cast<double>((m + kTile - 1) / kTile * ((n + kTile - 1) / kTile));
    const double at_rate = flops / rates_.gemm_flops * (1 + rates_.half_rate_tiles / tiles);
    const double reading = rates_.copy_bytes > 0 ? bytes / rates_.copy_bytes : 0;
    counts_.gemm_seconds += std::max(at_rate, reading);
  }

  BackendKind imitated_;
  DType act_;
  DryRates rates_;
  DryCounts counts_;
};

}  // namespace

std::unique_ptr<DryOps> MakeDryOps(BackendKind imitated, DType activation_dtype, const DryRates& rates) {
  HONE_CHECK(imitated != BackendKind::kDry, "a dry run imitates a back end that computes");
  return std::make_unique<DryOpsImpl>(imitated, activation_dtype, rates);
}

}  // namespace hone
