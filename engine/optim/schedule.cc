#include "engine/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace hone {

double LearningRate(const v1::ScheduleSpec& schedule, double peak, int64_t step, int64_t steps) {
  const auto warmup = static_cast<int64_t>(std::ceil(schedule.warmup_ratio() * static_cast<double>(steps)));
  if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, warmup));
  const double rest = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  switch (schedule.name()) {
    case v1::SCHEDULE_NAME_CONSTANT:
      return peak;
    case v1::SCHEDULE_NAME_COSINE:
      return peak * std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step - warmup) / rest)));
    default:
      return peak * std::max(0.0, static_cast<double>(steps - step) / rest);
  }
}

}  // namespace hone
