#include "engine/objective/kto.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "proto/base/status.h"

namespace hone {
namespace {

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Mean {
  double sum = 0;
  int64_t count = 0;
  void Add(double value) {
    sum += value;
    ++count;
  }
  double value() const { return sum / static_cast<double>(count); }
};

class Kto : public Objective {
 public:
  explicit Kto(const KtoParams& params) : params_(params) {}
  std::string_view name() const override { return "kto"; }
  ObjectiveNeeds needs() const override { return {.reference = true, .mismatched = true}; }

  absl::Status Begin(std::span<const ObjectiveExample> examples) override {
    HONE_CHECK(!examples.empty() && params_.kl_group_size > 0);
    examples_.assign(examples.begin(), examples.end());
    log_probs_.assign(examples.size(), 0);
    kl_.clear();
    for (size_t begin = 0; begin < examples.size(); begin += params_.kl_group_size) {
      const size_t count = std::min<size_t>(params_.kl_group_size, examples.size() - begin);
      kl_.insert(kl_.end(), count, KtoKl(examples.subspan(begin, count)));
    }
    return absl::OkStatus();
  }

  void Example(int64_t index, std::span<const float> log_probs, std::span<float> coefficients) override {
    double sum = 0;
    for (float log_prob : log_probs) sum += log_prob;
    log_probs_[index] = sum;
    const KtoTerm term = KtoRow(params_, sum - examples_[index].reference, kl_[index], examples_[index].label);
    std::fill(coefficients.begin(), coefficients.end(),
              static_cast<float>(term.d_log_prob / static_cast<double>(examples_.size())));
  }

  void Finish(v1::StepRecord& record) const override {
    Mean loss, kl, chosen, rejected, chosen_log_prob, rejected_log_prob;
    for (size_t i = 0; i < examples_.size(); ++i) {
      const double ratio = log_probs_[i] - examples_[i].reference;
      const bool label = examples_[i].label;
      loss.Add(KtoRow(params_, ratio, kl_[i], label).loss);
      kl.Add(kl_[i]);
      (label ? chosen : rejected).Add(params_.beta * ratio);
      (label ? chosen_log_prob : rejected_log_prob).Add(log_probs_[i]);
    }
    record.set_loss(loss.value());
    record.set_kl(kl.value());
    if (chosen.count > 0) record.set_rewards_chosen(chosen.value()), record.set_logps_chosen(chosen_log_prob.value());
    if (rejected.count > 0) {
      record.set_rewards_rejected(rejected.value());
      record.set_logps_rejected(rejected_log_prob.value());
    }
    if (chosen.count > 0 && rejected.count > 0) record.set_rewards_margins(chosen.value() - rejected.value());
  }

 private:
  KtoParams params_;
  std::vector<ObjectiveExample> examples_;
  std::vector<double> log_probs_, kl_;
};

}  // namespace

KtoTerm KtoRow(const KtoParams& params, double log_ratio, double kl, bool desirable) {
  const double sign = desirable ? 1 : -1;
  const double weight = desirable ? params.desirable_weight : params.undesirable_weight;
  const double s = Sigmoid(params.beta * sign * (log_ratio - kl));
  return {weight * (1 - s), -sign * weight * params.beta * s * (1 - s)};
}

double KtoKl(std::span<const ObjectiveExample> group) {
  double sum = 0;
  for (const ObjectiveExample& example : group) sum += example.mismatched_policy - example.mismatched_reference;
  return std::max(0.0, sum / static_cast<double>(group.size()));
}

std::unique_ptr<Objective> MakeKto(const v1::JobSpec& resolved) {
  const v1::KtoSpec& kto = resolved.objective().kto();
  return std::make_unique<Kto>(KtoParams{kto.beta(), kto.desirable_weight(), kto.undesirable_weight(),
                                         static_cast<int64_t>(kto.kl_group_size())});
}

}  // namespace hone
