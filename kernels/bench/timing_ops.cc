#include "kernels/bench/timing_ops.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "kernels/arena.h"
#include "proto/base/status.h"

namespace hone {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class TimingOpsImpl final : public TimingOps {
 public:
  explicit TimingOpsImpl(Ops& inner) : inner_(inner) {}

  const std::map<std::string, TimedUse>& by_operation() const override { return by_operation_; }
  const std::map<ProductShape, TimedUse>& products() const override { return products_; }
  void Reset() override {
    by_operation_.clear();
    products_.clear();
  }

  BackendKind backend() const override { return inner_.backend(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  int64_t AdapterColumns(int64_t sum_r) const override { return inner_.AdapterColumns(sum_r); }

  void Fill(Tensor out, float value) override {
    Time("fill", [&] { inner_.Fill(out, value); });
  }
  void Copy(Tensor in, Tensor out) override {
    Time("copy", [&] { inner_.Copy(in, out); });
  }
  void Upload(const void* host, Tensor out) override {
    Time("upload", [&] { inner_.Upload(host, out); });
  }
  void Download(Tensor in, void* host) override {
    Time("download", [&] { inner_.Download(in, host); });
  }
  void Synchronize() override { inner_.Synchronize(); }
  void DecodeWeight(const WeightView& weight, Tensor out) override {
    Time("decode_weight", [&] { inner_.DecodeWeight(weight, out); });
  }
  void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) override {
    Time("embedding_rows", [&] { inner_.EmbeddingRows(table, ids, out); });
  }
  void GatherRows(Tensor in, Tensor row_ids, Tensor out) override {
    Time("gather_rows", [&] { inner_.GatherRows(in, row_ids, out); });
  }
  void ScatterRows(Tensor in, Tensor row_ids, Tensor out) override {
    Time("scatter_rows", [&] { inner_.ScatterRows(in, row_ids, out); });
  }
  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) override {
    const double seconds = Time("matmul", [&] { inner_.Matmul(a, ta, b, tb, c, alpha, beta); });
    TimedUse& use = products_[{ta == Transpose::kYes, tb == Transpose::kYes, c.rows, c.cols,
                               ta == Transpose::kYes ? a.rows : a.cols}];
    ++use.calls;
    use.seconds += seconds;
  }
  void Add(Tensor x, Tensor y) override {
    Time("add", [&] { inner_.Add(x, y); });
  }
  void AddBias(Tensor bias, Tensor y) override {
    Time("add_bias", [&] { inner_.AddBias(bias, y); });
  }
  void ScaleRows(Tensor x, Tensor factors) override {
    Time("scale_rows", [&] { inner_.ScaleRows(x, factors); });
  }
  void RmsNorm(Tensor x, Tensor weight, float eps, Tensor y, Tensor rstd) override {
    Time("rms_norm", [&] { inner_.RmsNorm(x, weight, eps, y, rstd); });
  }
  void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta) override {
    Time("rms_norm_backward", [&] { inner_.RmsNormBackward(dy, x, weight, rstd, dx, beta); });
  }
  void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin) override {
    Time("rope_table", [&] { inner_.RopeTable(positions, inv_freq, scaling, cos, sin); });
  }
  void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction) override {
    Time("rope", [&] { inner_.Rope(x, head_dim, cos, sin, direction); });
  }
  void Glu(Tensor gate_up, Activation activation, Tensor out) override {
    Time("glu", [&] { inner_.Glu(gate_up, activation, out); });
  }
  void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up) override {
    Time("glu_backward", [&] { inner_.GluBackward(d_out, gate_up, activation, d_gate_up); });
  }
  void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                 Tensor lse) override {
    Time("attention", [&] { inner_.Attention(q, k, v, segments, shape, out, lse); });
  }
  void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                         const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv) override {
    Time("attention_backward",
         [&] { inner_.AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv); });
  }
  void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode,
               Tensor log_probs) override {
    Time("log_prob", [&] { inner_.LogProb(logits, targets, transform, mode, log_probs); });
  }
  void SumSquares(Tensor x, Tensor out) override {
    Time("sum_squares", [&] { inner_.SumSquares(x, out); });
  }
  void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
             const AdamWConstants& constants) override {
    Time("adamw", [&] { inner_.AdamW(param, grad, m, v, sum_squares, step, constants); });
  }

 private:
  template <typename F>
  double Time(const char* name, F&& f) {
    inner_.Synchronize();
    const double start = Now();
    f();
    inner_.Synchronize();
    const double seconds = Now() - start;
    TimedUse& use = by_operation_[name];
    ++use.calls;
    use.seconds += seconds;
    return seconds;
  }

  Ops& inner_;
  std::map<std::string, TimedUse> by_operation_;
  std::map<ProductShape, TimedUse> products_;
};

uint64_t OperandBytes(const ProductShape& s, DType dtype) {
  const int64_t elements = s.m * s.k + s.k * s.n + s.m * s.n;
  return static_cast<uint64_t>(elements * BlockBytes(dtype)) + 3 * kArenaAlignment;
}

}  // namespace

double TimingOps::ProductFlops() const {
  double flops = 0;
  for (const auto& [shape, use] : products()) flops += shape.flops() * static_cast<double>(use.calls);
  return flops;
}

double TimingOps::ProductSeconds() const {
  const auto found = by_operation().find("matmul");
  return found == by_operation().end() ? 0 : found->second.seconds;
}

double TimingOps::TotalSeconds() const {
  double seconds = 0;
  for (const auto& [name, use] : by_operation()) seconds += use.seconds;
  return seconds;
}

std::string TimingOps::Report(double step_seconds) const {
  std::vector<std::pair<std::string, TimedUse>> rows(by_operation().begin(), by_operation().end());
  rows.push_back({"elsewhere", {0, step_seconds - TotalSeconds()}});
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::string report;
  char line[128];
  for (const auto& [name, use] : rows) {
    std::snprintf(line, sizeof(line), "%-20s %8lld calls %10.3f ms %6.2f %%\n", name.c_str(),
                  static_cast<long long>(use.calls), use.seconds * 1e3, 100 * use.seconds / step_seconds);
    report += line;
  }
  std::snprintf(line, sizeof(line), "products: %.1f GFLOP, %.1f GFLOP/s within matmul, %.1f GFLOP/s of the step\n",
                ProductFlops() / 1e9, ProductFlops() / ProductSeconds() / 1e9, ProductFlops() / step_seconds / 1e9);
  return report + line;
}

std::unique_ptr<TimingOps> MakeTimingOps(Ops& inner) { return std::make_unique<TimingOpsImpl>(inner); }

uint64_t ProductReplayBytes(const std::map<ProductShape, TimedUse>& products, DType dtype) {
  uint64_t bytes = kArenaAlignment;
  for (const auto& [shape, use] : products) bytes = std::max(bytes, OperandBytes(shape, dtype));
  return bytes;
}

double ReplayFlopsPerSecond(Ops& ops, const std::map<ProductShape, TimedUse>& products, void* memory, int repetitions) {
  const DType dtype = ops.activation_dtype();
  const uint64_t capacity = ProductReplayBytes(products, dtype);
  const auto quarters = static_cast<int64_t>(capacity / 4);
  ops.Fill({memory, DType::kF32, 1, quarters, quarters}, 0.01f);
  double best = 0;
  for (int i = 0; i < repetitions; ++i) {
    double flops = 0, seconds = 0;
    for (const auto& [s, use] : products) {
      Arena arena("replay", memory, capacity);
      const Tensor a = s.ta ? arena.AllocateTensor(dtype, s.k, s.m) : arena.AllocateTensor(dtype, s.m, s.k);
      const Tensor b = s.tb ? arena.AllocateTensor(dtype, s.n, s.k) : arena.AllocateTensor(dtype, s.k, s.n);
      const Tensor c = arena.AllocateTensor(dtype, s.m, s.n);
      ops.Synchronize();
      const double start = Now();
      // Enough calls to time, at most as many as the step makes.
      const int64_t calls = std::min<int64_t>(use.calls, std::max<int64_t>(3, static_cast<int64_t>(2e9 / s.flops())));
      for (int64_t call = 0; call < calls; ++call) {
        ops.Matmul(a, s.ta ? Transpose::kYes : Transpose::kNo, b, s.tb ? Transpose::kYes : Transpose::kNo, c);
      }
      ops.Synchronize();
      seconds += (Now() - start) * static_cast<double>(use.calls) / static_cast<double>(calls);
      flops += s.flops() * static_cast<double>(use.calls);
    }
    best = std::max(best, flops / seconds);
  }
  return best;
}

}  // namespace hone
