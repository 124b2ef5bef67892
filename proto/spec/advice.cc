// Warnings about values that are allowed and probably not meant. They never change anything.
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

void AdviseLearningRate(const v1::JobSpec& spec, std::vector<std::string>& advice) {
  const double rate = spec.optimizer().learning_rate();
  if (rate == 0) {
    advice.push_back("optimizer.learning_rate is 0: nothing will be learned.");
  } else if (rate < 1e-5 && spec.adapter().has_lora()) {
    const std::string why = spec.objective().has_kto() ? "the usual 5e-7 to 5e-6 for KTO is about full fine-tuning"
                                                       : "rates this small are about full fine-tuning";
    advice.push_back(
        StrCat("optimizer.learning_rate ", rate, " is low for LoRA: ", why, "; with r = 16, 1e-4 was seen to work."));
  } else if (rate > 1e-3) {
    advice.push_back(
        StrCat("optimizer.learning_rate ", rate, " is high for LoRA and may diverge; 1e-4 was seen to work."));
  }
}

void AdviseKto(const v1::JobSpec& spec, std::vector<std::string>& advice) {
  if (!spec.objective().has_kto()) return;
  const uint32_t group = spec.objective().kto().kl_group_size();
  if (group < 4) {
    advice.push_back(
        StrCat("objective.kto.kl_group_size ", group, " gives a noisy KL estimate; 8 or more is steadier."));
  }
  if (group > spec.batch().examples()) {
    advice.push_back(StrCat("objective.kto.kl_group_size ", group, " is above batch.examples ", spec.batch().examples(),
                            ": a step never sees a whole group."));
  }
}

void AdviseRun(const v1::JobSpec& spec, std::vector<std::string>& advice) {
  const bool evaluates = spec.data().has_eval() || spec.data().eval_fraction() > 0;
  if (spec.run().has_eval_steps() && !evaluates) {
    advice.push_back("run.eval_steps has no effect without data.eval or data.eval_fraction.");
  }
  const v1::RunSpec& run = spec.run();
  if (run.has_max_steps() && run.has_save_steps() && run.save_steps() > run.max_steps()) {
    advice.push_back(StrCat("run.save_steps ", run.save_steps(), " is above run.max_steps ", run.max_steps(),
                            ": the only checkpoint is the one at the end."));
  }
  const v1::LoraSpec& lora = spec.adapter().lora();
  if (lora.lora_alpha() > 8.0 * lora.r()) {
    advice.push_back(StrCat("adapter.lora.lora_alpha ", lora.lora_alpha(),
                            " scales the adapter by more than 8 with r = ", lora.r(), "."));
  }
}

}  // namespace

std::vector<std::string> Advice(const v1::JobSpec& resolved) {
  std::vector<std::string> advice;
  AdviseLearningRate(resolved, advice);
  AdviseKto(resolved, advice);
  AdviseRun(resolved, advice);
  return advice;
}

}  // namespace hone
