// Which launches a run makes, and the largest of each kind: order and packing are known beforehand, so both are exact.
#pragma once

#include <span>
#include <vector>

#include "engine/train/micro_batches.h"
#include "engine/train/prepare.h"
#include "engine/train/session.h"
#include "hone/v1/plan.pb.h"

namespace hone {

// Every launch of one step, as training makes them: for limits and for the prediction. A preference step that fits one
// launch is one, with its mismatched rows in it (LaunchBatch::mismatched).
struct StepLaunches {
  std::vector<LaunchBatch> train, mismatched;
};
StepLaunches LaunchesOf(const PreparedRun& run, const v1::Plan& plan, std::span<const uint32_t> examples);

// Launches of a run by micro-batch size; what does not depend on it is kept.
class RunLaunches {
 public:
  explicit RunLaunches(const PreparedRun& run);

  // Of all steps and passes. A set of many tokens is only sampled unless `exact`; the longest example is always in.
  RunLimits Limits(const v1::Plan& plan, bool exact) const;
  bool Sampled() const { return sampled_; }  // whether Limits tells sampled from exact
  StepLaunches FirstStep(const v1::Plan& plan) const;
  // Reference passes over the run's examples, or some of them, and how many tokens all take.
  std::vector<LaunchBatch> Reference(const v1::Plan& plan) const;
  int64_t reference_tokens() const { return reference_tokens_; }
  // Policy tokens of all steps, each counted once.
  uint64_t train_tokens() const { return train_tokens_; }
  int64_t step_tokens() const { return step_tokens_; }  // of the largest step, with mismatched completions

 private:
  const PreparedRun& run_;
  std::vector<const Example*> reference_;
  int64_t reference_tokens_ = 0;
  uint64_t train_tokens_ = 0;
  int64_t step_tokens_ = 0;
  bool sampled_ = false;
};

// Rows with a backward pass of the run's largest training launch: what a plan's limits leave open.
int64_t BackwardTokens(const PreparedRun& run, const v1::Plan& plan);

void ToProto(const BatchLimits& limits, v1::LaunchLimits* out);
BatchLimits FromProto(const v1::LaunchLimits& limits);

}  // namespace hone
