#include "engine/optim/schedule.h"

#include <cmath>

#include "gtest/gtest.h"

namespace hone {
namespace {

v1::ScheduleSpec Schedule(v1::ScheduleName name, double warmup) {
  v1::ScheduleSpec spec;
  spec.set_name(name);
  spec.set_warmup_ratio(warmup);
  return spec;
}

// transformers 4.57 get_linear_schedule_with_warmup(5 of 48 steps), peak 1e-4: LambdaLR's first rate is that of step 0.
TEST(LearningRate, LinearWarmsUpFromZeroAndFallsToZero) {
  const auto spec = Schedule(v1::SCHEDULE_NAME_LINEAR, 0.1);  // ceil(4.8) = 5
  EXPECT_EQ(LearningRate(spec, 1e-4, 0, 48), 0);
  EXPECT_NEAR(LearningRate(spec, 1e-4, 4, 48), 0.8e-4, 1e-18);
  EXPECT_NEAR(LearningRate(spec, 1e-4, 5, 48), 1e-4, 1e-18);
  EXPECT_NEAR(LearningRate(spec, 1e-4, 47, 48), 1e-4 / 43, 1e-18);
}

TEST(LearningRate, CosineIsHalfAWave) {
  const auto spec = Schedule(v1::SCHEDULE_NAME_COSINE, 0);
  EXPECT_NEAR(LearningRate(spec, 2, 0, 10), 2, 1e-12);
  EXPECT_NEAR(LearningRate(spec, 2, 5, 10), 1, 1e-12);
  EXPECT_NEAR(LearningRate(spec, 2, 9, 10), 1 + std::cos(M_PI * 0.9), 1e-12);
}

TEST(LearningRate, ConstantStaysAfterItsWarmUp) {
  const auto spec = Schedule(v1::SCHEDULE_NAME_CONSTANT, 0.5);
  EXPECT_NEAR(LearningRate(spec, 2, 1, 4), 1, 1e-12);
  EXPECT_EQ(LearningRate(spec, 2, 3, 4), 2);
}

}  // namespace
}  // namespace hone
