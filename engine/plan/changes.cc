#include "engine/plan/changes.h"

#include <algorithm>

#include "proto/base/status.h"

namespace hone {
namespace {

class Changes {
 public:
  Changes(const PreparedRun& run, const PlanTarget& target, v1::Plan& plan) : run_(run), target_(target), plan_(plan) {}

  absl::Status Add() {
    HONE_ASSIGN_OR_RETURN(options_, OptionsFromPlan(run_, plan_));
    const uint64_t total = plan_.bytes().total();
    if (run_.spec.memory().has_vram_budget() && run_.spec.memory().vram_budget() < target_.free_bytes) {
      plan_.add_changes(
          StrCat("memory.vram_budget: at least ", Mebibytes(total), " (now ", Mebibytes(plan_.budget_bytes()), ")"));
    } else {
      plan_.add_changes(StrCat("free ", Mebibytes(total - plan_.budget_bytes()), " of memory on ", target_.name));
    }
    if (run_.spec.memory().has_micro_batch_tokens())
      plan_.add_changes("memory.micro_batch_tokens: leave it to the plan");
    Quantized();
    OptimizerStates();
    Rank();
    return Length();
  }

 private:
  uint64_t TotalWith(const SessionOptions& options) const {
    const auto result = DryRun(run_, plan_, options, target_, nullptr);
    return result.ok() ? result->bytes.total() : ~uint64_t{0};
  }
  // A change that is enough says so; one that only helps says how much is left.
  void Offer(const std::string& change, uint64_t total) {
    if (total >= plan_.bytes().total()) return;
    const uint64_t budget = plan_.budget_bytes();
    plan_.add_changes(
        StrCat(change, " (then ", Mebibytes(total),
               total <= budget ? ", which fits)" : StrCat(", still over by ", Mebibytes(total - budget), ")")));
  }

  void Quantized() {
    if (options_.quantization != WeightQuantization::kNone) return;
    SessionOptions changed = options_;
    changed.quantization = WeightQuantization::kNf4;
    Offer("model.quantization: nf4", TotalWith(changed));
  }
  void OptimizerStates() {
    if (options_.optimizer.name() == v1::OPTIMIZER_NAME_ADAMW_8BIT) return;
    SessionOptions changed = options_;
    changed.optimizer.set_name(v1::OPTIMIZER_NAME_ADAMW_8BIT);
    Offer("optimizer.name: adamw_8bit", TotalWith(changed));
  }
  // The largest rank that fits, of the halves of the present one; else the smallest tried.
  void Rank() {
    SessionOptions changed = options_;
    uint64_t total = ~uint64_t{0};
    for (int64_t r = options_.lora.r / 2; r >= 4; r /= 2) {
      changed.lora.r = r;
      total = TotalWith(changed);
      if (total <= plan_.budget_bytes()) break;
    }
    if (changed.lora.r < options_.lora.r) Offer(StrCat("adapter.lora.r: ", changed.lora.r), total);
  }
  // The greatest length whose launches fit, by bisection.
  absl::Status Length() {
    const int64_t longest = run_.data.train.longest();
    auto total_at = [&](int64_t length) {
      SessionOptions changed = options_;
      for (BatchLimits* limits : {&changed.limits.train, &changed.limits.forward}) {
        if (limits->tokens == 0) continue;
        const double share = std::min(1.0, static_cast<double>(length) / static_cast<double>(limits->tokens));
        limits->tokens = std::min(limits->tokens, length);
        limits->logit_rows =
            std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(limits->logit_rows)));
      }
      return TotalWith(changed);
    };
    constexpr int64_t kShortest = 16, kStep = 16;
    if (longest <= kShortest || total_at(kShortest) > plan_.budget_bytes()) return absl::OkStatus();
    int64_t fits = kShortest, over = longest;
    while (over - fits > kStep) {
      const int64_t middle = (fits + over) / 2;
      (total_at(middle) <= plan_.budget_bytes() ? fits : over) = middle;
    }
    plan_.add_changes(
        StrCat("data.max_length: about ", fits / kStep * kStep, " (the longest example has ", longest, ")"));
    return absl::OkStatus();
  }

  const PreparedRun& run_;
  const PlanTarget& target_;
  v1::Plan& plan_;
  SessionOptions options_;
};

}  // namespace

void AddChanges(const PreparedRun& run, const PlanTarget& target, v1::Plan& plan) {
  (void)Changes(run, target, plan).Add();  // a plan that was just made can be read
}

std::string Mebibytes(uint64_t bytes) { return StrCat((bytes + (1 << 20) - 1) >> 20, " MiB"); }

}  // namespace hone
