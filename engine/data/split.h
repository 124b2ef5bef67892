// Which rows are kept for evaluation: round(fraction * count) of them, at least one and never all if 0 < fraction, drawn by seed.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Split {
  std::vector<uint32_t> train, eval;  // row indices, ascending in each
};

// Errors: fraction outside [0, 1) or NaN; count < 2 with a fraction above 0.
absl::StatusOr<Split> SplitRows(uint32_t count, double eval_fraction, uint64_t seed);

}  // namespace hone
