// The memory plan: which recomputation, micro-batch and head chunk a run uses, and the bytes that takes, found by
// running the real step on DryOps for each candidate. The run itself then uses exactly the plan. Not here: reserving
// (train/session.h).
#pragma once

#include "absl/status/statusor.h"
#include "engine/train/prepare.h"
#include "engine/train/session.h"
#include "hone/v1/plan.pb.h"
#include "hone/v1/spec.pb.h"
#include "kernels/ops.h"

namespace hone {

// What is planned for. Rates only rank candidates and predict time; memory does not depend on them.
struct PlanTarget {
  std::string name;  // "cpu (2 threads)"
  BackendKind backend = BackendKind::kCpu;
  DType activation_dtype = DType::kF32;
  uint64_t free_bytes = 0;
  uint64_t context_bytes = 0;
  double gemm_flops = 1e11;  // per second, at large shapes
  double bytes_per_second = 1e10;
};

absl::StatusOr<v1::Plan> MakePlan(const PreparedRun& run, const PlanTarget& target);

// The session that a plan stands for: also what MakePlan dry-runs.
absl::StatusOr<SessionOptions> OptionsFromPlan(const PreparedRun& run, const v1::Plan& plan);

// Every launch of one step, as training makes them: for limits and for the prediction.
struct StepLaunches {
  std::vector<struct LaunchBatch> train, mismatched;
};
StepLaunches LaunchesOf(const PreparedRun& run, const v1::Plan& plan, std::span<const uint32_t> examples);

}  // namespace hone
