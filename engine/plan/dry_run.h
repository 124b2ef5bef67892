// A dry run of exactly what training lays out and computes: its bytes are the plan's.
#pragma once

#include "absl/status/statusor.h"
#include "engine/plan/cost.h"
#include "engine/plan/planner.h"

namespace hone {

struct DryResult {
  v1::PlanBytes bytes;
  uint64_t pinned_bytes = 0;
  StepCost step;  // the first step
  int64_t step_tokens = 0;
  double reference_seconds = 0;  // all reference passes
};

// `options` as OptionsFromPlan gives it, or with a change whose effect is asked for.
absl::StatusOr<DryResult> DryRun(const PreparedRun& run, const v1::Plan& plan, const SessionOptions& options,
                                 const PlanTarget& target, const RunLaunches* launches /* null: memory alone */);

}  // namespace hone
