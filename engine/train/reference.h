// Reference log-probabilities: of every example and KL pair, adapters off, computed once at the largest launches that
// fit and kept on disk by content, so that a resumed or repeated run computes none.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/train/prepare.h"
#include "engine/train/session.h"

namespace hone {

struct ReferenceValues {
  std::vector<double> train, train_kl, eval, eval_kl;  // parallel to Dataset::examples and ::kl
};

// Sums of trained tokens' log-probabilities of `examples`, forward only, in the order given.
absl::Status ForwardSums(TrainSession& session, std::span<const Example* const> examples, const v1::Plan& plan,
                         AdapterMode mode, std::span<double> sums,
                         const std::function<absl::Status(int64_t done)>& progress);

// `numerics` names what changes a log-probability's bits besides the model: precision and device.
absl::StatusOr<ReferenceValues> ReferenceLogProbs(
    const PreparedRun& run, TrainSession& session, const v1::Plan& plan, const std::string& numerics,
    const std::string& cache_path, const std::function<absl::Status(int64_t done, int64_t total)>& progress);

}  // namespace hone
