#include "engine/objective/sft.h"

#include <algorithm>
#include <vector>

#include "proto/base/status.h"

namespace hone {
namespace {

class Sft : public Objective {
 public:
  std::string_view name() const override { return "sft"; }
  ObjectiveNeeds needs() const override { return {}; }

  absl::Status Begin(std::span<const ObjectiveExample> examples) override {
    tokens_ = 0;
    for (const ObjectiveExample& example : examples) tokens_ += example.trained_tokens;
    if (tokens_ == 0) return InvalidArgument("data: a batch has no trained token");
    sums_.assign(examples.size(), 0);
    return absl::OkStatus();
  }

  void Example(int64_t index, std::span<const float> log_probs, std::span<float> coefficients) override {
    double sum = 0;
    for (float log_prob : log_probs) sum += log_prob;
    sums_[index] = sum;
    std::fill(coefficients.begin(), coefficients.end(), static_cast<float>(-1.0 / static_cast<double>(tokens_)));
  }

  void Finish(v1::StepRecord& record) const override {
    double sum = 0;
    for (double value : sums_) sum += value;
    record.set_loss(-sum / static_cast<double>(tokens_));
  }

 private:
  int64_t tokens_ = 0;
  std::vector<double> sums_;
};

}  // namespace

std::unique_ptr<Objective> MakeSft(const v1::JobSpec&) { return std::make_unique<Sft>(); }

}  // namespace hone
