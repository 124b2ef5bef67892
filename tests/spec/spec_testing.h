// Shared by the spec tests: a valid job file to spoil in one place at a time.
#pragma once

#include <string>
#include <string_view>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {

inline constexpr std::string_view kContractJob = R"(name: short-answers
model:     {source: ~/models/SmolLM2-135M-Instruct.Q4_1.gguf, quantization: none}
adapter:   {lora: {r: 16, lora_alpha: 32, target_modules: [all-linear]}}
objective: {kto: {beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0, kl_group_size: 8}}
data:      {train: answers.jsonl, eval_fraction: 0.1, max_length: 1024, order: shuffled}
batch:     {examples: 8}
optimizer: {name: adamw, learning_rate: 1e-4, max_grad_norm: 1.0}
schedule:  {name: linear, warmup_ratio: 0.1}
run:       {max_steps: 48, seed: 3407, save_steps: 24, eval_steps: 24}
memory:    {vram_budget: 20GiB, policy: balanced}
export:    [peft, merged, gguf:q8_0]
)";

inline v1::JobSpec Parse(std::string_view yaml) {
  absl::StatusOr<v1::JobSpec> spec = SpecFromYaml(yaml, "job.yaml");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : v1::JobSpec();
}

// The least that resolves.
inline v1::JobSpec MinimalSft() {
  return Parse(
      "model: {source: m.gguf}\nobjective: {sft: {}}\ndata: {train: d.jsonl}\nbatch: {examples: 4}\n"
      "optimizer: {learning_rate: 1e-4}\n");
}
inline v1::JobSpec MinimalKto() {
  v1::JobSpec spec = MinimalSft();
  spec.mutable_objective()->mutable_kto();
  return spec;
}

inline std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

}  // namespace hone
