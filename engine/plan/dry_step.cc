#include "engine/plan/dry_step.h"

#include <algorithm>

#include "proto/base/status.h"

namespace hone {

double BesideOut(const StepCost& forward, const PackedBatch& batch, const DecoderConfig& config, const Rates& rates) {
  const auto logits = static_cast<double>(batch.targets.size()), tail = static_cast<double>(batch.tail_logits);
  // A product for the logits, and one for the gradient of those that have one.
  const double flops = 2 * (2 * logits - tail) * static_cast<double>(config.vocab_size * config.hidden_size);
  return std::max(0.0, forward.computing() - forward.head - flops / rates.gemm_flops);
}

absl::StatusOr<std::unique_ptr<DryStep>> DryStep::Create(const ModelFiles& files, const SessionOptions& options,
                                                         BackendKind backend, DType activation_dtype,
                                                         const Rates& rates) {
  std::unique_ptr<DryStep> step(new DryStep(rates));
  step->ops_ = MakeDryOps(backend, activation_dtype, ToDryRates(rates));
  HONE_ASSIGN_OR_RETURN(step->session_, TrainSession::Create(files, options, *step->ops_, step->arenas_));
  step->fixed_ = step->arenas_.HighWater();
  step->pinned_weights_ = step->arenas_.PinnedHighWater();
  return step;
}

LaunchUse DryStep::Measure(const DecoderOptions& options, const std::function<void(Decoder&)>& run) {
  Decoder decoder(*ops_, session_->model(), &session_->lora(), options);
  for (Arena* arena : {&arenas_.saved, &arenas_.scratch, &arenas_.pinned}) arena->ResetHighWater();
  const uint64_t pinned_before = arenas_.pinned.used();
  ops_->ResetCounts();
  run(decoder);
  LaunchUse use;
  use.saved = arenas_.saved.high_water();
  use.scratch = arenas_.scratch.high_water();
  use.pinned = arenas_.pinned.high_water() - pinned_before;
  use.cost = CostOf(ops_->counts(), rates_);
  return use;
}

LaunchUse DryStep::Train(const DecoderOptions& options, const BatchLimits& limits, const PackedBatch& batch) {
  StepCost forward;
  LaunchUse use = Measure(options, [&](Decoder& decoder) {
    decoder.ForwardBackward(
        batch, limits, {&arenas_.saved, &arenas_.scratch, &arenas_.pinned},
        [&](std::span<const float>, std::span<float>) { forward = CostOf(ops_->counts(), rates_); });
  });
  use.cost.beside_out = BesideOut(forward, batch, session_->model().config(), rates_);
  use.cost.beside_back = use.cost.computing() - forward.computing();
  return use;
}

LaunchUse DryStep::Forward(const DecoderOptions& options, const BatchLimits& limits, const PackedBatch& batch) {
  std::vector<float> log_probs(batch.targets.size());
  return Measure(options, [&](Decoder& decoder) {
    decoder.LogProbs(batch, limits, AdapterMode::kOn, arenas_.scratch, log_probs);
  });
}

StepCost DryStep::OptimizerStep() {
  ops_->ResetCounts();
  session_->ZeroGradients();
  session_->OptimizerStep(0, 0);
  return CostOf(ops_->counts(), rates_);
}

}  // namespace hone
