#include "engine/objective/objective.h"

#include <cmath>

#include "engine/objective/kto.h"
#include "gtest/gtest.h"

namespace hone {
namespace {

// The vector of reference/unsloth.md §3.1: beta 0.1, kl 0.1, R_D = {.5, -.2}, R_U = {.3}.
struct Case {
  double ratio;
  bool label;
};
constexpr Case kCases[] = {{0.5, true}, {-0.2, true}, {0.3, false}};

TEST(Kto, RowsEqualTheHandComputedVector) {
  const KtoParams params{0.1, 1, 1, 3};
  const double loss[] = {0.4900013, 0.5074994, 0.5049998};
  const double gradient[] = {-0.00833000, -0.00833146, 0.00833250};  // divided by three rows
  for (int i = 0; i < 3; ++i) {
    const KtoTerm term = KtoRow(params, kCases[i].ratio, 0.1, kCases[i].label);
    EXPECT_NEAR(term.loss, loss[i], 1e-6);
    EXPECT_NEAR(term.d_log_prob / 3, gradient[i], 1e-6);
  }
}

std::unique_ptr<Objective> Make(double desirable_weight, uint32_t group) {
  v1::JobSpec spec;
  v1::KtoSpec& kto = *spec.mutable_objective()->mutable_kto();
  kto.set_beta(0.1);
  kto.set_desirable_weight(desirable_weight);
  kto.set_undesirable_weight(1);
  kto.set_kl_group_size(group);
  return *MakeObjective(spec);
}

std::vector<ObjectiveExample> Examples() {
  std::vector<ObjectiveExample> examples;
  for (const Case& c : kCases)
    examples.push_back({2, c.label, -c.ratio, 0.1, 0});  // log probs are 0, so R = -reference
  return examples;
}

TEST(Kto, BatchMeanAndWeightsEqualTheHandComputedVector) {
  for (const auto& [weight, expected] : {std::pair(1.0, 0.5008335), std::pair(1.33, 0.6105586)}) {
    const auto objective = Make(weight, 3);
    ASSERT_TRUE(objective->Begin(Examples()).ok());
    const float zero[2] = {0, 0};
    float coefficients[2];
    for (int i = 2; i >= 0; --i) objective->Example(i, zero, coefficients);  // order of micro-batches does not matter
    v1::StepRecord record;
    objective->Finish(record);
    EXPECT_NEAR(record.loss(), expected, 1e-6);
    EXPECT_NEAR(record.kl(), 0.1, 1e-12);
    EXPECT_NEAR(record.rewards_chosen(), 0.1 * 0.15, 1e-12);
    EXPECT_NEAR(record.rewards_rejected(), 0.1 * 0.3, 1e-12);
  }
}

TEST(Kto, KlIsAMeanPerGroupClampedAfterwards) {
  std::vector<ObjectiveExample> group(2);
  group[0].mismatched_policy = 3;
  group[1].mismatched_policy = -1;
  EXPECT_NEAR(KtoKl(group), 1, 1e-12);
  group[1].mismatched_policy = -5;
  EXPECT_EQ(KtoKl(group), 0);
}

TEST(Kto, BatchesOfOneLabelHaveNoMargin) {
  const auto objective = Make(1, 2);
  std::vector<ObjectiveExample> examples(2);
  ASSERT_TRUE(objective->Begin(examples).ok());
  const float zero[1] = {0};
  float coefficient[1];
  objective->Example(0, zero, coefficient);
  objective->Example(1, zero, coefficient);
  v1::StepRecord record;
  objective->Finish(record);
  EXPECT_TRUE(std::isfinite(record.loss()));
  EXPECT_FALSE(record.has_rewards_rejected());
  EXPECT_FALSE(record.has_rewards_margins());
}

TEST(Kto, TheGradientIsTheLossesSlope) {
  const KtoParams params{0.3, 1.2, 0.7, 2};
  for (bool label : {true, false}) {
    const double h = 1e-6;
    const double slope =
        (KtoRow(params, 0.4 + h, 0.2, label).loss - KtoRow(params, 0.4 - h, 0.2, label).loss) / (2 * h);
    EXPECT_NEAR(KtoRow(params, 0.4, 0.2, label).d_log_prob, slope, 1e-8);
  }
}

TEST(Sft, ScalesByTheBatchesTrainedTokens) {
  v1::JobSpec spec;
  spec.mutable_objective()->mutable_sft();
  const auto objective = *MakeObjective(spec);
  const std::vector<ObjectiveExample> examples = {{3, true}, {1, true}};
  ASSERT_TRUE(objective->Begin(examples).ok());
  const float first[] = {-1, -2, -3}, second[] = {-2};
  float coefficients[3];
  objective->Example(0, first, coefficients);
  EXPECT_FLOAT_EQ(coefficients[2], -0.25f);
  objective->Example(1, second, {coefficients, 1});
  v1::StepRecord record;
  objective->Finish(record);
  EXPECT_NEAR(record.loss(), 2, 1e-12);
  EXPECT_FALSE(objective->Begin(std::vector<ObjectiveExample>{{0, true}}).ok());
}

}  // namespace
}  // namespace hone
