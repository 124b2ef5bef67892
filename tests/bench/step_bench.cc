// Where a training step's time goes: runs steps of a job with every operation timed, then each matrix product alone at
// the shapes the step used. Prints the step's GEMM FLOPs per second, what the same products reach alone, and the rest
// by operation.
//   step_bench --spec JOB.yaml [--steps N]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <string>
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
#include "tests/bench/timed_ops.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;
using Shape = std::tuple<int64_t, int64_t, int64_t, bool, bool>;  // m, n, k, a transposed, b transposed

struct Use {
  int64_t calls = 0;
  double seconds = 0, flops = 0;
};

// Time by operation, products as one and by shape.
struct Uses {
  std::map<std::string, Use> by_name;
  std::map<Shape, Use> products;

  void Add(const std::vector<OpRecord>& records) {
    for (const OpRecord& r : records) {
      for (Use* use :
           {&by_name[r.m > 0 ? "GEMM" : r.name], r.m > 0 ? &products[{r.m, r.n, r.k, r.ta, r.tb}] : nullptr}) {
        if (use == nullptr) continue;
        ++use->calls;
        use->seconds += r.end - r.begin;
        use->flops += r.counts.gemm_flops;
      }
    }
  }
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
  HostClock clock;
  TimedOps ops(backend->ops(), clock, run.files->config().vocab_size);
  ops.Record(true);
  Uses uses;
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
    if (step == 0) uses = {}, seconds = 0, tokens = 0;
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
    uses.Add(ops.Take());
  }
  double alone = 0;
  for (const auto& [shape, use] : uses.products) alone += static_cast<double>(use.calls) * Alone(backend->ops(), shape);
  const Use& gemm = uses.by_name["GEMM"];
  std::printf("%s, %s\n", plan.device().c_str(), BlasCoreName().c_str());
  std::printf("%lld steps, %lld policy tokens, %.3f s: %.1f tokens/s\n", static_cast<long long>(steps),
              static_cast<long long>(tokens), seconds, static_cast<double>(tokens) / seconds);
  std::printf("GEMM FLOPs over the whole step's time:   %7.1f GFLOP/s\n", gemm.flops / seconds / 1e9);
  std::printf("the same products alone, best of several: %6.1f GFLOP/s\n", gemm.flops / alone / 1e9);
  std::printf("share reached by the step:               %7.1f %%\n", 100 * alone / seconds);
  std::vector<std::pair<double, std::string>> rows;
  double counted = 0;
  for (const auto& [name, use] : uses.by_name) rows.emplace_back(use.seconds, name), counted += use.seconds;
  rows.emplace_back(seconds - counted, "outside operations");
  std::sort(rows.rbegin(), rows.rend());
  for (const auto& [time, name] : rows)
    std::printf("  %-28s %7.3f s %5.1f %%\n", name.c_str(), time, 100 * time / seconds);
  std::vector<std::pair<double, Shape>> shapes;
  for (const auto& [shape, use] : uses.products) shapes.emplace_back(use.seconds, shape);
  std::sort(shapes.rbegin(), shapes.rend());
  std::printf("products that take longest: m n k, calls, GFLOP/s in the step\n");
  for (size_t i = 0; i < std::min<size_t>(12, shapes.size()); ++i) {
    const auto [m, n, k, ta, tb] = shapes[i].second;
    const Use& use = uses.products[shapes[i].second];
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
