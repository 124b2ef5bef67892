// Kahneman-Tversky optimisation (arXiv 2402.01306) as TRL 0.24 defines it. With R = log pi(y|x) - log ref(y|x), sums
// over the completion, and kl = max(0, mean over the KL group of log pi(y'|x) - log ref(y'|x)), y' another row's
// completion:
//   desirable:   w_D (1 - sigmoid(beta (R - kl)))        undesirable:   w_U (1 - sigmoid(beta (kl - R)))
// averaged over the rows of the semantic batch. kl is a constant of the gradient.
#pragma once

#include <memory>
#include <span>

#include "engine/objective/objective.h"

namespace hone {

struct KtoParams {
  double beta = 0.1;
  double desirable_weight = 1;
  double undesirable_weight = 1;
  int64_t kl_group_size = 0;
};

struct KtoTerm {
  double loss = 0;        // of one row, not yet divided by their number
  double d_log_prob = 0;  // d loss / d log pi(y|x)
};

KtoTerm KtoRow(const KtoParams& params, double log_ratio, double kl, bool desirable);
// The group's estimate, clamped at 0 (after the mean; with several ranks after their mean).
double KtoKl(std::span<const ObjectiveExample> group);

std::unique_ptr<Objective> MakeKto(const v1::JobSpec& resolved);

}  // namespace hone
