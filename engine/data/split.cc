#include "engine/data/split.h"

#include <algorithm>
#include <cmath>

#include "engine/data/order.h"
#include "proto/base/status.h"

namespace hone {

absl::StatusOr<Split> SplitRows(uint32_t count, double eval_fraction, uint64_t seed, uint32_t minimum) {
  if (!(eval_fraction >= 0 && eval_fraction < 1)) {
    return InvalidArgument("data.eval_fraction: must be at least 0 and below 1, got ", eval_fraction);
  }
  Split split;
  if (eval_fraction == 0) {
    for (uint32_t i = 0; i < count; ++i) split.train.push_back(i);
    return split;
  }
  if (count < 2 * minimum) {
    return InvalidArgument("data.eval_fraction: ", count, " rows cannot be split; give at least ", 2 * minimum);
  }
  const auto wanted = static_cast<int64_t>(std::llround(eval_fraction * count));
  const auto take = static_cast<uint32_t>(std::clamp<int64_t>(wanted, minimum, int64_t{count} - minimum));
  const std::vector<uint32_t> order = Permutation(count, seed, 0, /*purpose=*/1);
  split.eval.assign(order.begin(), order.begin() + take);
  split.train.assign(order.begin() + take, order.end());
  std::sort(split.eval.begin(), split.eval.end());
  std::sort(split.train.begin(), split.train.end());
  return split;
}

}  // namespace hone
