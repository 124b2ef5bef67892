#include "engine/plan/planner.h"

#include <algorithm>
#include <map>
#include <string>

#include "engine/plan/changes.h"
#include "engine/plan/dry_run.h"
#include "engine/plan/levels.h"
#include "engine/plan/search.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Estimates are that near to the truth that a second or third choice always fits.
constexpr int kMostConfirmations = 8;
// The worker's program and its libraries; rows and mapped pages of files come on top.
constexpr uint64_t kCpuHostBytes = uint64_t{64} << 20;
constexpr uint64_t kCudaHostBytes = uint64_t{768} << 20;

std::string_view NameOf(v1::MemoryPolicy policy) {
  return policy == v1::MEMORY_POLICY_FASTEST    ? "fastest"
         : policy == v1::MEMORY_POLICY_SMALLEST ? "smallest"
                                                : "balanced";
}

struct Confirmed {
  v1::Plan plan;
  DryResult dry;
};

// Exact limits, bytes and time of what was found.
absl::StatusOr<Confirmed> Confirm(const PreparedRun& run, const PlanTarget& target, const RunLaunches& launches,
                                  v1::Plan plan) {
  if (launches.Sampled()) {
    const RunLimits limits = launches.Limits(plan, true);
    ToProto(limits.train, plan.mutable_train_limits());
    ToProto(limits.forward, plan.mutable_forward_limits());
  }
  HONE_ASSIGN_OR_RETURN(const SessionOptions options, OptionsFromPlan(run, plan));
  HONE_ASSIGN_OR_RETURN(DryResult dry, DryRun(run, plan, options, target, &launches));
  *plan.mutable_bytes() = dry.bytes;
  plan.set_pinned_bytes(dry.pinned_bytes);
  return Confirmed{std::move(plan), std::move(dry)};
}

uint64_t HostBytes(const PreparedRun& run, const PlanTarget& target, const v1::Plan& plan) {
  uint64_t rows = 0;
  for (const std::vector<Example>* part :
       {&run.data.train.examples, &run.data.train.kl, &run.data.eval.examples, &run.data.eval.kl}) {
    for (const Example& example : *part) rows += sizeof(Example) + example.ids.size() * 5;
  }
  // On the CPU the arenas lie in host memory.
  return target.backend == BackendKind::kCpu ? kCpuHostBytes + rows + plan.bytes().total()
                                             : kCudaHostBytes + rows + plan.pinned_bytes();
}

// How many layers are of each kind: "mlp host in 20 layers and activation in 12".
std::string KindsOfLayers(const v1::Plan& plan, int64_t layers) {
  const absl::StatusOr<RecomputePlan> parsed = ParseRecompute(plan.recompute(), layers);
  if (!parsed.ok() || plan.recompute().find(':') == std::string::npos) return plan.recompute();
  std::map<std::string, int64_t> counts;
  for (int64_t layer = 0; layer < layers; ++layer) {
    ++counts[RecomputeText({{parsed->levels[layer]}, {parsed->on_host[layer]}, false})];
  }
  std::string text;
  for (const auto& [kind, count] : counts) text += StrCat(text.empty() ? "" : " and ", kind, " in ", count, " layers");
  return parsed->decode_apart ? text + ", apart" : text;
}

std::string Shape(const v1::Plan& plan, int64_t layers) {
  std::string text = StrCat("recomputes ", KindsOfLayers(plan, layers), ", launches ", plan.micro_batch_tokens(),
                            " tokens and ", plan.head_chunk_rows(), " rows of logits at a time");
  if (plan.mlp_chunk_rows() > 0) text += StrCat(", ", plan.mlp_chunk_rows(), " rows of the gated unit");
  if (plan.decoded_layers() > 0) text += StrCat(", keeps ", plan.decoded_layers(), " layers decoded");
  if (plan.embedding_on_host()) text += ", keeps the embedding on the host";
  if (plan.offload_inputs()) text += ", lets what layers keep wait on the host";
  return text;
}

void Complete(const PreparedRun& run, const PlanTarget& target, const RunLaunches& launches, const Found& found,
              uint64_t budget, const DryResult& dry, v1::Plan& plan) {
  const int64_t layers = run.files->config().num_layers;
  const double step_seconds = dry.step.seconds();
  plan.set_fits(plan.bytes().total() <= budget);
  plan.set_device(target.name);
  plan.set_budget_bytes(budget);
  plan.set_steps(static_cast<uint32_t>(run.steps));
  plan.set_train_tokens(launches.train_tokens());
  plan.set_policy(std::string(NameOf(run.spec.memory().policy())));
  // The first step stands for all, by tokens.
  const double per_token = step_seconds / static_cast<double>(std::max<int64_t>(1, dry.step_tokens));
  plan.set_tokens_per_second(1 / per_token);
  plan.set_seconds(per_token * static_cast<double>(launches.train_tokens()) + dry.reference_seconds);
  ToProto(dry.step, &plan);
  *plan.mutable_rates() = ToProto(target.rates);
  plan.set_host_bytes(HostBytes(run, target, plan));
  plan.set_reason(plan.fits()
                      ? StrCat(found.fitting, " of ", found.considered, " plans fit in ", Mebibytes(budget), "; the ",
                               plan.policy(), " one ", Shape(plan, layers))
                      : StrCat("none of ", found.considered, " plans fits in ", Mebibytes(budget),
                               "; the smallest takes ", Mebibytes(plan.bytes().total()), " and ", Shape(plan, layers)));
  if (!plan.fits()) AddChanges(run, target, plan);
}

}  // namespace

absl::StatusOr<SessionOptions> OptionsFromPlan(const PreparedRun& run, const v1::Plan& plan) {
  SessionOptions options;
  options.quantization =
      run.spec.model().quantization() == v1::QUANTIZATION_NF4 ? WeightQuantization::kNf4 : WeightQuantization::kNone;
  options.decoded_layers = plan.decoded_layers();
  options.embedding_on_host = plan.embedding_on_host();
  HONE_ASSIGN_OR_RETURN(options.lora, LoraConfigFromSpec(run.spec.adapter().lora()));
  options.optimizer = run.spec.optimizer();
  HONE_ASSIGN_OR_RETURN(RecomputePlan recompute, ParseRecompute(plan.recompute(), run.files->config().num_layers));
  options.decoder.recompute = std::move(recompute.levels);
  options.decoder.decode_apart = recompute.decode_apart;
  options.decoder.offload_inputs = plan.offload_inputs();
  options.decoder.offload_from = OffloadFrom(options.decoder.recompute);
  // Plans of before layers were named leave it to the levels.
  const bool named = std::find(recompute.on_host.begin(), recompute.on_host.end(), true) != recompute.on_host.end();
  if (named) options.decoder.on_host = std::move(recompute.on_host);
  options.decoder.head_chunk_rows = plan.head_chunk_rows();
  options.decoder.mlp_chunk_rows = plan.mlp_chunk_rows();
  options.decoder.row_multiple = std::max<int64_t>(1, plan.row_multiple());
  options.limits = {FromProto(plan.train_limits()), FromProto(plan.forward_limits())};
  options.limits.train.backward_tokens = BackwardTokens(run, plan);
  return options;
}

absl::StatusOr<v1::Plan> MakePlan(const PreparedRun& run, const PlanTarget& target) {
  const RunLaunches launches(run);
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Search> search, Search::Create(run, target, launches));
  const uint64_t budget = run.spec.memory().has_vram_budget()
                              ? std::min<uint64_t>(run.spec.memory().vram_budget(), target.free_bytes)
                              : target.free_bytes;
  uint64_t estimated_budget = budget;
  for (int i = 0; i < kMostConfirmations; ++i) {
    const std::optional<Found> found = search->Best(estimated_budget, run.spec.memory().policy());
    if (!found.has_value()) break;
    HONE_ASSIGN_OR_RETURN(Confirmed confirmed, Confirm(run, target, launches, found->plan));
    const uint64_t total = confirmed.plan.bytes().total();
    if (total <= budget) {
      Complete(run, target, launches, *found, budget, confirmed.dry, confirmed.plan);
      return confirmed.plan;
    }
    // Under what was estimated for it by at least as much as it was over.
    const uint64_t over = std::max<uint64_t>(total - budget, 1);
    if (found->bytes <= over) break;
    estimated_budget = std::min(estimated_budget, found->bytes) - over;
  }
  const std::optional<Found> smallest = search->Best(Search::kNoBudget, v1::MEMORY_POLICY_SMALLEST);
  if (!smallest.has_value()) return Internal("no plan was considered");
  HONE_ASSIGN_OR_RETURN(Confirmed confirmed, Confirm(run, target, launches, smallest->plan));
  Complete(run, target, launches, *smallest, budget, confirmed.dry, confirmed.plan);
  return confirmed.plan;
}

}  // namespace hone
