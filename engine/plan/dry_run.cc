#include "engine/plan/dry_run.h"

#include <algorithm>

#include "engine/plan/dry_step.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Of a step of more launches only some are run.
constexpr size_t kMostLaunches = 48;

}  // namespace

absl::StatusOr<DryResult> DryRun(const PreparedRun& run, const v1::Plan& plan, const SessionOptions& options,
                                 const PlanTarget& target, const RunLaunches* launches) {
  const auto ops = MakeDryOps(target.backend, target.activation_dtype, ToDryRates(target.rates));
  ArenaSet arenas = ArenaSet::Dry();
  arenas.context_bytes = target.context_bytes;
  HONE_ASSIGN_OR_RETURN(auto session, TrainSession::Create(*run.files, options, *ops, arenas));
  std::vector<float> log_probs;
  auto forward = [&](const PackedBatch& batch) {
    log_probs.resize(batch.targets.size());
    session->LogProbs(batch, AdapterMode::kOn, log_probs);
  };
  double beside_out = 0, beside_back = 0;  // of training launches
  auto train = [&](const PackedBatch& batch) {
    const StepCost before = CostOf(ops->counts(), target.rates);
    StepCost forward;
    session->ForwardBackward(batch, [&](std::span<const float>, std::span<float>) {
      forward = CostOf(ops->counts(), target.rates) + -1.0 * before;
    });
    beside_out += BesideOut(forward, batch, run.files->config(), target.rates);
    beside_back += (CostOf(ops->counts(), target.rates) + -1.0 * before).computing() - forward.computing();
  };
  // Runs all or some of the batches; the cost of all.
  auto cost_of = [&](const std::vector<LaunchBatch>& batches, const auto& work) {
    ops->ResetCounts();
    beside_out = beside_back = 0;
    double all = 0, some = 0;
    for (size_t i = 0; i < batches.size(); ++i) {
      const auto tokens = static_cast<double>(batches[i].packed.tokens());
      all += tokens;
      if (i >= kMostLaunches) continue;
      some += tokens;
      work(batches[i].packed);
    }
    StepCost cost = CostOf(ops->counts(), target.rates);
    cost.beside_out = beside_out;
    cost.beside_back = beside_back;
    return some > 0 ? all / some * cost : StepCost();
  };
  train(LargestBatch(options.limits.train));
  if (options.limits.forward.tokens > 0) forward(LargestBatch(options.limits.forward));
  ops->ResetCounts();
  session->ZeroGradients();
  session->OptimizerStep(0, 0);
  DryResult result;
  result.bytes = arenas.HighWater();
  result.pinned_bytes = arenas.PinnedHighWater();
  if (launches == nullptr) return result;

  result.step = CostOf(ops->counts(), target.rates);
  const StepLaunches step = launches->FirstStep(plan);
  for (const LaunchBatch& batch : step.train) result.step_tokens += batch.example_tokens;
  result.step += cost_of(step.train, train);
  result.step += cost_of(step.mismatched, forward);
  if (launches->reference_tokens() > 0) {
    std::vector<LaunchBatch> reference = launches->Reference(plan);
    int64_t tokens = 0;
    for (const LaunchBatch& batch : reference) tokens += batch.example_tokens;
    result.reference_seconds = cost_of(reference, forward).seconds() *
                               static_cast<double>(launches->reference_tokens()) / static_cast<double>(tokens);
  }
  return result;
}

}  // namespace hone
