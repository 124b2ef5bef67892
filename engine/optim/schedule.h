// Learning rate by step, as transformers' schedulers: warm-up from 0 over ceil(warmup_ratio * steps) steps, then linear
// or cosine to 0, or constant.
#pragma once

#include <cstdint>

#include "hone/v1/spec.pb.h"

namespace hone {

// The rate of optimiser step `step` (0 is the first) of `steps`.
double LearningRate(const v1::ScheduleSpec& schedule, double peak, int64_t step, int64_t steps);

}  // namespace hone
