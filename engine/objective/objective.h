// An objective turns log-probabilities into one scalar per token: d loss / d log_prob. That is all it does; the head
// scales rows by it. Pure host arithmetic in double, in the order of the semantic batch, so that execution
// micro-batches cannot change it. A new objective is a file beside this one and a row in objective.cc's table.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "hone/v1/spec.pb.h"
#include "hone/v1/worker.pb.h"

namespace hone {

// What an objective is told of one example of a semantic batch before its step.
struct ObjectiveExample {
  int64_t trained_tokens = 0;
  bool label = true;
  double reference = 0;             // sum of the trained tokens' log-probabilities, adapters off
  double mismatched_policy = 0;     // the same of its KL pair (its prompt, another row's completion), adapters on ...
  double mismatched_reference = 0;  // ... and off
};

struct ObjectiveNeeds {
  bool reference = false;   // ObjectiveExample::reference
  bool mismatched = false;  // KL pairs, and their log-probabilities
};

class Objective {
 public:
  virtual ~Objective() = default;
  virtual std::string_view name() const = 0;
  virtual ObjectiveNeeds needs() const = 0;
  // A semantic batch begins. Counts are known before the step, and so is the loss scale.
  virtual absl::Status Begin(std::span<const ObjectiveExample> examples) = 0;
  // One example's trained tokens, in any order of examples, each example once. coefficients[t] = d loss / d
  // log_probs[t].
  virtual void Example(int64_t index, std::span<const float> log_probs, std::span<float> coefficients) = 0;
  // loss and the objective's own metrics of the whole batch.
  virtual void Finish(v1::StepRecord& record) const = 0;
};

absl::StatusOr<std::unique_ptr<Objective>> MakeObjective(const v1::JobSpec& resolved);

}  // namespace hone
