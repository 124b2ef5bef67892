#include "engine/plan/launches.h"

#include <algorithm>

namespace hone {
namespace {

// A run of more tokens than this is sampled while plans are compared: so many first steps and examples.
constexpr uint64_t kManyTokens = 20'000'000;
constexpr int64_t kSampledSteps = 64;
constexpr size_t kSampledExamples = 2048;

std::vector<const Example*> Pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> pointers;
  for (const Example& example : examples) pointers.push_back(&example);
  return pointers;
}

void CoverAll(BatchLimits& limits, const std::vector<LaunchBatch>& batches) {
  for (const LaunchBatch& batch : batches) limits = Cover(limits, batch.packed);
}

std::vector<LaunchBatch> ForwardBatches(std::span<const Example* const> examples, const v1::Plan& plan) {
  return MakeForwardBatches(examples, static_cast<int32_t>(plan.micro_batch_tokens()), plan.packing());
}

}  // namespace

StepLaunches LaunchesOf(const PreparedRun& run, const v1::Plan& plan, std::span<const uint32_t> examples) {
  std::vector<const Example*> policy, mismatched;
  for (uint32_t index : examples) {
    policy.push_back(&run.data.train.examples[index]);
    if (run.needs.mismatched) mismatched.push_back(&run.data.train.kl[index]);
  }
  const auto tokens = static_cast<int32_t>(plan.micro_batch_tokens());
  if (run.needs.mismatched && plan.packing()) {
    if (auto coupled = MakeCoupledBatch(policy, mismatched, tokens)) return {{*std::move(coupled)}, {}};
  }
  return {MakeTrainBatches(policy, tokens, plan.packing() ? PackingMode::kFirstFitDecreasing : PackingMode::kOff),
          ForwardBatches(mismatched, plan)};
}

RunLaunches::RunLaunches(const PreparedRun& run) : run_(run), reference_(ReferenceExamples(run)) {
  for (const Example* example : reference_) reference_tokens_ += example->length();
  BatchOrder order = run.Order();
  DataCursor cursor;
  for (int64_t step = 0; step < run.batches(); ++step) {
    int64_t tokens = 0, mismatched = 0;
    for (uint32_t index : order.Next(&cursor)) {
      tokens += run.data.train.examples[index].length();
      if (run.needs.mismatched)
        mismatched += run.data.train.kl[index].length() - run.data.train.kl[index].prompt_length;
    }
    step_tokens_ = std::max(step_tokens_, tokens + mismatched);
    if (step < run.steps) train_tokens_ += static_cast<uint64_t>(tokens);
  }
  sampled_ = train_tokens_ + static_cast<uint64_t>(reference_tokens_) > kManyTokens;
}

RunLimits RunLaunches::Limits(const v1::Plan& plan, bool exact) const {
  RunLimits limits;
  const bool sample = sampled_ && !exact;
  BatchOrder order = run_.Order();
  DataCursor cursor;
  const int64_t batches = sample ? std::min(run_.batches(), kSampledSteps) : run_.batches();
  for (int64_t step = 0; step < batches; ++step) {
    const StepLaunches launches = LaunchesOf(run_, plan, order.Next(&cursor));
    CoverAll(limits.train, launches.train);
    CoverAll(limits.forward, launches.mismatched);
  }
  auto forward = [&](std::vector<const Example*> examples) {
    if (sample && examples.size() > kSampledExamples) examples.resize(kSampledExamples);
    CoverAll(limits.forward, ForwardBatches(examples, plan));
  };
  forward(reference_);
  forward(Pointers(run_.data.eval.examples));
  if (run_.needs.mismatched) forward(Pointers(run_.data.eval.kl));
  if (sample) {
    const int64_t longest = run_.data.train.longest();
    limits.train.tokens = std::max(limits.train.tokens, longest);
    limits.train.backward_tokens = std::max(limits.train.backward_tokens, longest);
    if (limits.forward.tokens > 0) limits.forward.tokens = std::max(limits.forward.tokens, longest);
  }
  return limits;
}

int64_t BackwardTokens(const PreparedRun& run, const v1::Plan& plan) {
  const auto all = static_cast<int64_t>(plan.train_limits().tokens());
  if (!run.needs.mismatched || !plan.packing() || plan.micro_batch_tokens() == 0) return all;
  BatchOrder order = run.Order();
  DataCursor cursor;
  int64_t most = 0;
  for (int64_t step = 0; step < run.batches(); ++step) {
    for (const LaunchBatch& launch : LaunchesOf(run, plan, order.Next(&cursor)).train) {
      most = std::max(most, launch.packed.tokens() - launch.packed.tail_rows);
    }
  }
  return std::min(most, all);
}

StepLaunches RunLaunches::FirstStep(const v1::Plan& plan) const {
  BatchOrder order = run_.Order();
  DataCursor cursor;
  return LaunchesOf(run_, plan, order.Next(&cursor));
}

std::vector<LaunchBatch> RunLaunches::Reference(const v1::Plan& plan) const {
  std::vector<const Example*> examples = reference_;
  if (examples.size() > kSampledExamples) examples.resize(kSampledExamples);
  return ForwardBatches(examples, plan);
}

void ToProto(const BatchLimits& limits, v1::LaunchLimits* out) {
  out->set_tokens(limits.tokens);
  out->set_logit_rows(limits.logit_rows);
  out->set_segments(limits.segments);
}

BatchLimits FromProto(const v1::LaunchLimits& limits) {
  return {static_cast<int64_t>(limits.tokens()), static_cast<int64_t>(limits.logit_rows()),
          static_cast<int64_t>(limits.segments()), 0};
}

}  // namespace hone
