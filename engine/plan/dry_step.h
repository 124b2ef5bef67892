// The parts of a run laid out once without memory, and launches run on them dry, as often as a search wants: what one
// choice takes of memory and time. The sum of the parts is what train/session.h lays out; a chosen plan is confirmed by
// a dry run of that (planner.cc).
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/plan/cost.h"
#include "engine/train/session.h"

namespace hone {

struct LaunchUse {
  uint64_t saved = 0, scratch = 0, pinned = 0;  // bytes
  StepCost cost;
};

// Of a training launch whose forward pass, head included, costs `forward`: seconds that layers' pieces go out beside.
// What the head takes is not among them: what has not left by then stays on the card.
double BesideOut(const StepCost& forward, const PackedBatch& batch, const DecoderConfig& config, const Rates& rates);

class DryStep {
 public:
  // `options`: quantization, adapter, optimizer and placement; its decoder and limits are not looked at.
  static absl::StatusOr<std::unique_ptr<DryStep>> Create(const ModelFiles& files, const SessionOptions& options,
                                                         BackendKind backend, DType activation_dtype,
                                                         const Rates& rates);
  // At most `limits`, which alone decide memory.
  LaunchUse Train(const DecoderOptions& options, const BatchLimits& limits, const PackedBatch& batch);
  LaunchUse Forward(const DecoderOptions& options, const BatchLimits& limits, const PackedBatch& batch);
  StepCost OptimizerStep();

  const v1::PlanBytes& fixed() const { return fixed_; }        // weights, adapter, gradients, optimizer
  uint64_t pinned_weights() const { return pinned_weights_; }  // of the model, on the host
  int64_t first_trained_layer() const { return session_->layout().first_layer(); }

 private:
  explicit DryStep(const Rates& rates) : rates_(rates), arenas_(ArenaSet::Dry()) {}
  LaunchUse Measure(const DecoderOptions& options, const std::function<void(Decoder&)>& run);

  const Rates rates_;
  ArenaSet arenas_;
  std::unique_ptr<DryOps> ops_;
  std::unique_ptr<TrainSession> session_;
  v1::PlanBytes fixed_;
  uint64_t pinned_weights_ = 0;
};

}  // namespace hone
