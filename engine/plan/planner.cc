#include "engine/plan/planner.h"

#include <algorithm>
#include <cmath>

#include "engine/train/micro_batches.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint32_t kMicroBatchSizes[] = {256, 512, 1024, 2048, 4096, 8192};
constexpr uint32_t kHeadChunkRows[] = {128, 256, 512};

std::vector<const Example*> Pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> pointers;
  for (const Example& example : examples) pointers.push_back(&example);
  return pointers;
}

void CoverAll(BatchLimits& limits, const std::vector<LaunchBatch>& batches) {
  for (const LaunchBatch& batch : batches) limits = Cover(limits, batch.packed);
}

// The largest launch of every step of the run: order and packing are known beforehand, so this is exact.
RunLimits LimitsOf(const PreparedRun& run, const v1::Plan& plan) {
  RunLimits limits;
  BatchOrder order = run.Order();
  DataCursor cursor;
  for (int64_t step = 0; step < run.steps; ++step) {
    const StepLaunches launches = LaunchesOf(run, plan, order.Next(&cursor));
    CoverAll(limits.train, launches.train);
    CoverAll(limits.forward, launches.mismatched);
  }
  auto forward = [&](const std::vector<const Example*>& examples) {
    CoverAll(limits.forward,
             MakeForwardBatches(examples, static_cast<int32_t>(plan.micro_batch_tokens()), plan.packing()));
  };
  forward(ReferenceExamples(run));
  forward(Pointers(run.data.eval.examples));
  if (run.needs.mismatched) forward(Pointers(run.data.eval.kl));
  return limits;
}

void ToProto(const BatchLimits& limits, v1::LaunchLimits* out) {
  out->set_tokens(limits.tokens);
  out->set_logit_rows(limits.logit_rows);
  out->set_segments(limits.segments);
}

BatchLimits FromProto(const v1::LaunchLimits& limits) {
  return {static_cast<int64_t>(limits.tokens()), static_cast<int64_t>(limits.logit_rows()),
          static_cast<int64_t>(limits.segments())};
}

// A launch that is as large as the limits.
PackedBatch Largest(const BatchLimits& limits) {
  PackedBatch batch;
  const std::vector<int32_t> ids(limits.tokens, 0);
  AppendDocument(batch, ids.data(), limits.tokens);
  for (int64_t i = 0; i < limits.logit_rows; ++i) {
    batch.logit_rows.push_back(static_cast<int32_t>(std::min(i, limits.tokens - 1)));
    batch.targets.push_back(0);
  }
  return batch;
}

struct DryResult {
  v1::PlanBytes bytes;
  double step_seconds = 0;  // of the first step
  int64_t step_tokens = 0;
};

absl::StatusOr<DryResult> DryRun(const PreparedRun& run, const v1::Plan& plan, const PlanTarget& target) {
  HONE_ASSIGN_OR_RETURN(const SessionOptions options, OptionsFromPlan(run, plan));
  const auto ops = MakeDryOps(target.backend, target.activation_dtype);
  ArenaSet arenas = ArenaSet::Dry();
  arenas.context_bytes = target.context_bytes;
  HONE_ASSIGN_OR_RETURN(auto session, TrainSession::Create(*run.files, options, *ops, arenas));
  auto no_coefficients = [](std::span<const float>, std::span<float>) {};
  std::vector<float> log_probs;
  auto forward = [&](const PackedBatch& batch) {
    log_probs.resize(batch.targets.size());
    session->LogProbs(batch, AdapterMode::kOn, log_probs);
  };
  session->ForwardBackward(Largest(options.limits.train), no_coefficients);
  if (options.limits.forward.tokens > 0) forward(Largest(options.limits.forward));
  session->ZeroGradients();
  session->OptimizerStep(0, 0);
  DryResult result;
  result.bytes = arenas.HighWater();

  BatchOrder order = run.Order();
  DataCursor cursor;
  const StepLaunches launches = LaunchesOf(run, plan, order.Next(&cursor));
  ops->ResetCounts();
  for (const LaunchBatch& batch : launches.mismatched) forward(batch.packed);
  for (const LaunchBatch& batch : launches.train) {
    session->ForwardBackward(batch.packed, no_coefficients);
    result.step_tokens += batch.example_tokens;
  }
  session->OptimizerStep(0, 0);
  const DryCounts& counts = ops->counts();
  result.step_seconds = counts.gemm_flops / target.gemm_flops + counts.attention_flops / (target.gemm_flops * 0.3) +
                        counts.bytes / target.bytes_per_second;
  return result;
}

struct Candidate {
  v1::Plan plan;
  double seconds = 0;
};

uint64_t TokensOf(const PreparedRun& run) {
  BatchOrder order = run.Order();
  DataCursor cursor;
  uint64_t tokens = 0;
  for (int64_t step = 0; step < run.steps; ++step) {
    for (uint32_t index : order.Next(&cursor)) tokens += run.data.train.examples[index].length();
  }
  return tokens;
}

std::vector<uint32_t> MicroBatchChoices(const PreparedRun& run) {
  if (run.spec.memory().has_micro_batch_tokens()) return {run.spec.memory().micro_batch_tokens()};
  // No use in more than the largest semantic batch holds.
  std::vector<uint32_t> choices;
  const uint64_t most = uint64_t{run.spec.batch().examples()} * static_cast<uint64_t>(run.data.train.longest());
  for (uint32_t size : kMicroBatchSizes) {
    choices.push_back(size);
    if (size >= most) break;
  }
  return choices;
}

absl::StatusOr<std::vector<Candidate>> Enumerate(const PreparedRun& run, const PlanTarget& target) {
  std::vector<Candidate> candidates;
  const v1::Packing packing = run.spec.memory().packing();
  for (uint32_t micro_batch : MicroBatchChoices(run)) {
    v1::Plan base;
    base.set_micro_batch_tokens(micro_batch);
    base.set_packing(packing != v1::PACKING_OFF);
    const RunLimits limits = LimitsOf(run, base);
    ToProto(limits.train, base.mutable_train_limits());
    ToProto(limits.forward, base.mutable_forward_limits());
    for (const char* recompute : {"none", "full"}) {
      for (uint32_t chunk : kHeadChunkRows) {
        Candidate candidate{base, 0};
        candidate.plan.set_recompute(recompute);
        candidate.plan.set_head_chunk_rows(chunk);
        HONE_ASSIGN_OR_RETURN(const DryResult dry, DryRun(run, candidate.plan, target));
        *candidate.plan.mutable_bytes() = dry.bytes;
        candidate.seconds = dry.step_seconds;
        candidate.plan.set_seconds(dry.step_seconds * static_cast<double>(run.steps));
        candidate.plan.set_tokens_per_second(static_cast<double>(dry.step_tokens) / dry.step_seconds);
        candidates.push_back(std::move(candidate));
      }
    }
  }
  return candidates;
}

// Fastest, or smallest within 3% of the fastest, or smallest; equal ones by the other measure.
const Candidate& Choose(const std::vector<const Candidate*>& candidates, v1::MemoryPolicy policy) {
  auto bytes = [](const Candidate* c) { return c->plan.bytes().total(); };
  auto faster = [&](const Candidate* a, const Candidate* b) {
    return a->seconds != b->seconds ? a->seconds < b->seconds : bytes(a) < bytes(b);
  };
  auto smaller = [&](const Candidate* a, const Candidate* b) {
    return bytes(a) != bytes(b) ? bytes(a) < bytes(b) : a->seconds < b->seconds;
  };
  const Candidate* fastest = *std::min_element(candidates.begin(), candidates.end(), faster);
  if (policy == v1::MEMORY_POLICY_FASTEST) return *fastest;
  if (policy == v1::MEMORY_POLICY_SMALLEST) return **std::min_element(candidates.begin(), candidates.end(), smaller);
  std::vector<const Candidate*> near;
  for (const Candidate* candidate : candidates) {
    if (candidate->seconds <= fastest->seconds * 1.03) near.push_back(candidate);
  }
  return **std::min_element(near.begin(), near.end(), smaller);
}

std::string Mebibytes(uint64_t bytes) { return StrCat((bytes + (1 << 20) - 1) >> 20, " MiB"); }

void ExplainMisfit(const PreparedRun& run, v1::Plan& plan) {
  const uint64_t total = plan.bytes().total(), budget = plan.budget_bytes();
  const uint64_t fixed = total - plan.bytes().saved() - plan.bytes().scratch();
  if (run.spec.memory().has_vram_budget()) {
    plan.add_changes(StrCat("memory.vram_budget: at least ", Mebibytes(total), " (now ", Mebibytes(budget), ")"));
  } else {
    plan.add_changes(StrCat("free ", Mebibytes(total - budget), " of memory on ", plan.device()));
  }
  if (run.spec.memory().has_micro_batch_tokens()) plan.add_changes("memory.micro_batch_tokens: leave it to the plan");
  if (fixed < budget && run.data.train.longest() > 2) {
    const double share = static_cast<double>(budget - fixed) / static_cast<double>(total - fixed);
    const auto length = static_cast<int64_t>(share * run.data.train.longest());
    if (length >= 16)
      plan.add_changes(
          StrCat("data.max_length: about ", length, " (the longest example has ", run.data.train.longest(), ")"));
  }
  if (run.spec.model().quantization() == v1::QUANTIZATION_NONE) plan.add_changes("model.quantization: nf4");
}

}  // namespace

StepLaunches LaunchesOf(const PreparedRun& run, const v1::Plan& plan, std::span<const uint32_t> examples) {
  std::vector<const Example*> policy, mismatched;
  for (uint32_t index : examples) {
    policy.push_back(&run.data.train.examples[index]);
    if (run.needs.mismatched) mismatched.push_back(&run.data.train.kl[index]);
  }
  const auto tokens = static_cast<int32_t>(plan.micro_batch_tokens());
  return {MakeTrainBatches(policy, tokens, plan.packing() ? PackingMode::kFirstFitDecreasing : PackingMode::kOff),
          MakeForwardBatches(mismatched, tokens, plan.packing())};
}

absl::StatusOr<SessionOptions> OptionsFromPlan(const PreparedRun& run, const v1::Plan& plan) {
  SessionOptions options;
  options.quantization =
      run.spec.model().quantization() == v1::QUANTIZATION_NF4 ? WeightQuantization::kNf4 : WeightQuantization::kNone;
  HONE_ASSIGN_OR_RETURN(options.lora, LoraConfigFromSpec(run.spec.adapter().lora()));
  options.optimizer = run.spec.optimizer();
  if (plan.recompute() != "none") options.decoder.recompute.assign(run.files->config().num_layers, Recompute::kFull);
  options.decoder.head_chunk_rows = plan.head_chunk_rows();
  options.limits = {FromProto(plan.train_limits()), FromProto(plan.forward_limits())};
  return options;
}

absl::StatusOr<v1::Plan> MakePlan(const PreparedRun& run, const PlanTarget& target) {
  HONE_ASSIGN_OR_RETURN(const std::vector<Candidate> all, Enumerate(run, target));
  const uint64_t budget = run.spec.memory().has_vram_budget()
                              ? std::min<uint64_t>(run.spec.memory().vram_budget(), target.free_bytes)
                              : target.free_bytes;
  std::vector<const Candidate*> fitting, every;
  for (const Candidate& candidate : all) {
    every.push_back(&candidate);
    if (candidate.plan.bytes().total() <= budget) fitting.push_back(&candidate);
  }
  const v1::MemoryPolicy policy = run.spec.memory().policy();
  const bool fits = !fitting.empty();
  v1::Plan plan = (fits ? Choose(fitting, policy) : Choose(every, v1::MEMORY_POLICY_SMALLEST)).plan;
  plan.set_fits(fits);
  plan.set_device(target.name);
  plan.set_budget_bytes(budget);
  plan.set_steps(static_cast<uint32_t>(run.steps));
  plan.set_train_tokens(TokensOf(run));
  plan.set_policy(policy == v1::MEMORY_POLICY_FASTEST    ? "fastest"
                  : policy == v1::MEMORY_POLICY_SMALLEST ? "smallest"
                                                         : "balanced");
  // On the CPU the arenas lie in host memory; beside them the worker holds its program, the mapped files' pages and the
  // rows.
  const uint64_t host = uint64_t{64} << 20;
  plan.set_host_bytes(target.backend == BackendKind::kCpu ? plan.bytes().total() + host : host);
  plan.set_reason(fits ? StrCat(fitting.size(), " of ", all.size(), " plans fit in ", Mebibytes(budget), "; the ",
                                plan.policy(), " one recomputes ", plan.recompute(), ", launches ",
                                plan.micro_batch_tokens(), " tokens and ", plan.head_chunk_rows(),
                                " rows of logits at a time")
                       : StrCat("none of ", all.size(), " plans fits in ", Mebibytes(budget), "; the smallest takes ",
                                Mebibytes(plan.bytes().total())));
  if (!fits) ExplainMisfit(run, plan);
  return plan;
}

}  // namespace hone
