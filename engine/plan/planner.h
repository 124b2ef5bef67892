// The memory plan: how a run spends memory and time, found by running the real step on DryOps (search.h) and confirmed
// by a dry run of exactly what training lays out. The run itself then uses exactly the plan. Not here: reserving
// (train/session.h).
#pragma once

#include "absl/status/statusor.h"
#include "engine/plan/launches.h"
#include "engine/plan/rates.h"
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
  uint64_t pinned_limit = 0;  // host memory that may be page-locked; 0: unknown
  Rates rates;
};

absl::StatusOr<v1::Plan> MakePlan(const PreparedRun& run, const PlanTarget& target);

// The session that a plan stands for: also what MakePlan dry-runs.
absl::StatusOr<SessionOptions> OptionsFromPlan(const PreparedRun& run, const v1::Plan& plan);

}  // namespace hone
