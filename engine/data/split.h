// Which rows are kept for evaluation: round(fraction * count) of them, drawn by seed; if 0 < fraction each part has at
// least `minimum` rows (KTO needs two to pair a prompt with another row's completion).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Split {
  std::vector<uint32_t> train, eval;  // row indices, ascending in each
};

// Errors: fraction outside [0, 1) or NaN; count < 2 * minimum with a fraction above 0.
absl::StatusOr<Split> SplitRows(uint32_t count, double eval_fraction, uint64_t seed, uint32_t minimum = 1);

}  // namespace hone
