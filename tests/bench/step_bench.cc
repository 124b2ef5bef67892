// Where a training step's time goes: runs steps of a job with every operation timed, then each matrix product alone at
// the shapes the step used. Prints the step's GEMM FLOPs per second, what the same products reach alone, and the rest
// by operation.
//   step_bench --spec JOB.yaml [--steps N]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <tuple>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/plan/planner.h"
#include "engine/train/micro_batches.h"
#include "engine/train/reference.h"
#include "engine/worker/job.h"
#include "kernels/cpu/blas_check.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;
using Shape = std::tuple<int64_t, int64_t, int64_t, bool, bool>;  // m, n, k, a transposed, b transposed

struct Use {
  int64_t calls = 0;
  double seconds = 0, flops = 0;
};

// Forwards everything and keeps the time by name; products by shape.
class TimedOps : public Ops {
 public:
  explicit TimedOps(Ops& inner) : inner_(inner) {}
  std::map<std::string, Use> uses;
  std::map<Shape, Use> products;

  BackendKind backend() const override { return inner_.backend(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  int64_t AdapterColumns(int64_t sum_r) const override { return inner_.AdapterColumns(sum_r); }
  void Fill(Tensor o, float v) override {
    Time("fill, copy, add", [&] { inner_.Fill(o, v); });
  }
  void Copy(Tensor i, Tensor o) override {
    Time("fill, copy, add", [&] { inner_.Copy(i, o); });
  }
  void Upload(const void* h, Tensor o) override {
    Time("upload, download", [&] { inner_.Upload(h, o); });
  }
  void Download(Tensor i, void* h) override {
    Time("upload, download", [&] { inner_.Download(i, h); });
  }
  void Synchronize() override { inner_.Synchronize(); }
  void DecodeWeight(const WeightView& w, Tensor o) override {
    Time("decode weights", [&] { inner_.DecodeWeight(w, o); });
  }
  void EmbeddingRows(const WeightView& t, Tensor i, Tensor o) override {
    Time("rows", [&] { inner_.EmbeddingRows(t, i, o); });
  }
  void GatherRows(Tensor i, Tensor r, Tensor o) override {
    Time("rows", [&] { inner_.GatherRows(i, r, o); });
  }
  void ScatterRows(Tensor i, Tensor r, Tensor o) override {
    Time("rows", [&] { inner_.ScatterRows(i, r, o); });
  }
  void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta) override {
    const int64_t k = ta == Transpose::kNo ? a.cols : a.rows;
    const auto begin = Clock::now();
    inner_.Matmul(a, ta, b, tb, c, alpha, beta);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const double flops = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.cols) * static_cast<double>(k);
    for (Use* use : {&uses["GEMM"], &products[{c.rows, c.cols, k, ta == Transpose::kYes, tb == Transpose::kYes}]}) {
      ++use->calls;
      use->seconds += seconds;
      use->flops += flops;
    }
  }
  void Add(Tensor x, Tensor y) override {
    Time("fill, copy, add", [&] { inner_.Add(x, y); });
  }
  void AddBias(Tensor b, Tensor y) override {
    Time("fill, copy, add", [&] { inner_.AddBias(b, y); });
  }
  void ScaleRows(Tensor x, Tensor f) override {
    Time("fill, copy, add", [&] { inner_.ScaleRows(x, f); });
  }
  void RmsNorm(Tensor x, Tensor w, float e, Tensor y, Tensor r) override {
    Time("norm", [&] { inner_.RmsNorm(x, w, e, y, r); });
  }
  void RmsNormBackward(Tensor dy, Tensor x, Tensor w, Tensor r, Tensor dx, float b) override {
    Time("norm", [&] { inner_.RmsNormBackward(dy, x, w, r, dx, b); });
  }
  void RopeTable(Tensor p, Tensor f, float s, Tensor c, Tensor n) override {
    Time("rotary", [&] { inner_.RopeTable(p, f, s, c, n); });
  }
  void Rope(Tensor x, int64_t d, Tensor c, Tensor s, RopeDirection r) override {
    Time("rotary", [&] { inner_.Rope(x, d, c, s, r); });
  }
  void Glu(Tensor g, Activation a, Tensor o) override {
    Time("gated unit", [&] { inner_.Glu(g, a, o); });
  }
  void StartOffload(Tensor i, void* p, int s) override {
    Time("upload, download", [&] { inner_.StartOffload(i, p, s); });
  }
  void StartFetch(const void* p, Tensor o, int s) override {
    Time("upload, download", [&] { inner_.StartFetch(p, o, s); });
  }
  void FinishTransfer(int s) override { inner_.FinishTransfer(s); }
  void AugmentWeight(std::span<const AugmentPart> p, Tensor a, Tensor o) override {
    Time("decode weights", [&] { inner_.AugmentWeight(p, a, o); });
  }
  float EncodeNf4(Tensor i, const Nf4Buffers& o, Tensor s) override { return inner_.EncodeNf4(i, o, s); }
  void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c, float alpha) override {
    Matmul(a, ta, b, tb, c, alpha, 0);
    Add(addend, c);
  }
  void WeightMatmul(Tensor x, const WeightView& w, Tensor y, float beta) override {
    Time("weight products", [&] { inner_.WeightMatmul(x, w, y, beta); });
  }
  void AdamW8bit(Tensor p, Tensor g, Tensor m, Tensor ma, Tensor v, Tensor va, Tensor q, Tensor s,
                 const AdamWConstants& c) override {
    Time("optimiser", [&] { inner_.AdamW8bit(p, g, m, ma, v, va, q, s, c); });
  }
  void GluBackward(Tensor d, Tensor g, Activation a, Tensor o, Tensor h) override {
    Time("gated unit", [&] { inner_.GluBackward(d, g, a, o, h); });
  }
  void Attention(Tensor q, Tensor k, Tensor v, const Segments& s, const AttentionShape& h, Tensor o,
                 Tensor l) override {
    Time("attention", [&] { inner_.Attention(q, k, v, s, h, o, l); });
  }
  void AttentionBackward(Tensor d, Tensor q, Tensor k, Tensor v, Tensor o, Tensor l, const Segments& s,
                         const AttentionShape& h, Tensor e, Tensor dq, Tensor dk, Tensor dv) override {
    Time("attention", [&] { inner_.AttentionBackward(d, q, k, v, o, l, s, h, e, dq, dk, dv); });
  }
  void LogProb(Tensor z, Tensor t, const LogitTransform& f, LogProbMode m, Tensor o) override {
    Time("softmax over the vocabulary", [&] { inner_.LogProb(z, t, f, m, o); });
  }
  void SumSquares(Tensor x, Tensor o) override {
    Time("optimiser", [&] { inner_.SumSquares(x, o); });
  }
  void AdamW(Tensor p, Tensor g, Tensor m, Tensor v, Tensor s, Tensor t, const AdamWConstants& c) override {
    Time("optimiser", [&] { inner_.AdamW(p, g, m, v, s, t, c); });
  }

 private:
  template <typename Work>
  void Time(const char* name, const Work& work) {
    const auto begin = Clock::now();
    work();
    Use& use = uses[name];
    ++use.calls;
    use.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
  }
  Ops& inner_;
};

// The best of a few runs of one product alone, on random operands.
double Alone(Ops& ops, const Shape& shape) {
  const auto [m, n, k, ta, tb] = shape;
  std::vector<float> a(m * k), b(n * k), c(m * n);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& x : a) x = normal(random);
  for (float& x : b) x = normal(random);
  const Tensor at{a.data(), DType::kF32, ta ? k : m, ta ? m : k, ta ? m : k};
  const Tensor bt{b.data(), DType::kF32, tb ? n : k, tb ? k : n, tb ? k : n};
  const Tensor ct{c.data(), DType::kF32, m, n, n};
  double best = 1e9;
  const int repeats = std::max(3, static_cast<int>(2e9 / (2.0 * m * n * k + 1e6)));
  for (int i = 0; i < std::min(repeats, 40); ++i) {
    const auto begin = Clock::now();
    ops.Matmul(at, ta ? Transpose::kYes : Transpose::kNo, bt, tb ? Transpose::kYes : Transpose::kNo, ct);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

absl::Status Run(const std::string& spec_path, int64_t steps) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(spec_path));
  HONE_ASSIGN_OR_RETURN(const v1::JobSpec spec, SpecFromYaml(text, spec_path));
  HONE_ASSIGN_OR_RETURN(const PreparedRun run, PrepareJob(spec, {}));
  HONE_ASSIGN_OR_RETURN(const v1::Plan plan, PlanJob(run, {}));
  HONE_ASSIGN_OR_RETURN(const auto backend, OpenCpu());
  TimedOps ops(backend->ops());
  HONE_ASSIGN_OR_RETURN(ArenaSet arenas, ArenaSet::Reserve(*backend, plan.bytes()));
  HONE_ASSIGN_OR_RETURN(const SessionOptions options, OptionsFromPlan(run, plan));
  HONE_ASSIGN_OR_RETURN(const auto session, TrainSession::Create(*run.files, options, ops, arenas));
  session->Upload(InitialLoraValues(session->layout(), 1), session->lora().values);
  session->optimizer().Reset();
  BatchOrder order = run.Order();
  DataCursor cursor;
  std::vector<float> log_probs;
  double seconds = 0;
  int64_t tokens = 0;
  for (int64_t step = -1; step < steps; ++step) {  // the first one warms up
    if (step == 0) ops.uses.clear(), ops.products.clear(), seconds = 0, tokens = 0;
    const auto begin = Clock::now();
    const StepLaunches launches = LaunchesOf(run, plan, order.Next(&cursor));
    for (const LaunchBatch& batch : launches.mismatched) {
      log_probs.resize(batch.packed.targets.size());
      session->LogProbs(batch.packed, AdapterMode::kOn, log_probs);
    }
    session->ZeroGradients();
    for (const LaunchBatch& batch : launches.train) {
      session->ForwardBackward(batch.packed,
                               [](auto, std::span<float> out) { std::fill(out.begin(), out.end(), 0.01f); });
      tokens += batch.example_tokens;
    }
    session->OptimizerStep(step + 1, 1e-5);
    seconds += std::chrono::duration<double>(Clock::now() - begin).count();
  }
  double alone = 0;
  for (const auto& [shape, use] : ops.products) alone += static_cast<double>(use.calls) * Alone(backend->ops(), shape);
  const Use& gemm = ops.uses["GEMM"];
  std::printf("%s, %s\n", plan.device().c_str(), BlasCoreName().c_str());
  std::printf("%lld steps, %lld policy tokens, %.3f s: %.1f tokens/s\n", static_cast<long long>(steps),
              static_cast<long long>(tokens), seconds, static_cast<double>(tokens) / seconds);
  std::printf("GEMM FLOPs over the whole step's time:   %7.1f GFLOP/s\n", gemm.flops / seconds / 1e9);
  std::printf("the same products alone, best of several: %6.1f GFLOP/s\n", gemm.flops / alone / 1e9);
  std::printf("share reached by the step:               %7.1f %%\n", 100 * alone / seconds);
  std::vector<std::pair<double, std::string>> rows;
  double counted = 0;
  for (const auto& [name, use] : ops.uses) rows.emplace_back(use.seconds, name), counted += use.seconds;
  rows.emplace_back(seconds - counted, "outside operations");
  std::sort(rows.rbegin(), rows.rend());
  for (const auto& [time, name] : rows)
    std::printf("  %-28s %7.3f s %5.1f %%\n", name.c_str(), time, 100 * time / seconds);
  std::vector<std::pair<double, Shape>> shapes;
  for (const auto& [shape, use] : ops.products) shapes.emplace_back(use.seconds, shape);
  std::sort(shapes.rbegin(), shapes.rend());
  std::printf("products that take longest: m n k, calls, GFLOP/s in the step\n");
  for (size_t i = 0; i < std::min<size_t>(12, shapes.size()); ++i) {
    const auto [m, n, k, ta, tb] = shapes[i].second;
    const Use& use = ops.products[shapes[i].second];
    std::printf("  %6lld %6lld %6lld %c%c %5lld %7.1f\n", static_cast<long long>(m), static_cast<long long>(n),
                static_cast<long long>(k), ta ? 't' : 'n', tb ? 't' : 'n', static_cast<long long>(use.calls),
                use.flops / use.seconds / 1e9);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  if (const absl::Status blas = hone::EnsureSafeBlas(argv); !blas.ok()) return 1;
  CLI::App app("Where a training step's time goes");
  std::string spec;
  int64_t steps = 3;
  app.add_option("--spec", spec)->required();
  app.add_option("--steps", steps);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = hone::Run(spec, steps);
  if (!status.ok()) std::fprintf(stderr, "step_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
