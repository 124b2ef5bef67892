#include "engine/optim/adamw.h"

#include <cmath>

namespace hone {

AdamWOptimizer::AdamWOptimizer(Ops& ops, const v1::OptimizerSpec& spec, int64_t elements, Arena& arena) : ops_(ops) {
  constants_.beta1 = static_cast<float>(spec.betas(0));
  constants_.beta2 = static_cast<float>(spec.betas(1));
  constants_.eps = static_cast<float>(spec.eps());
  constants_.weight_decay = static_cast<float>(spec.weight_decay());
  max_grad_norm_ = static_cast<float>(spec.max_grad_norm());
  m_ = arena.AllocateTensor(DType::kF32, 1, elements);
  v_ = arena.AllocateTensor(DType::kF32, 1, elements);
  sum_squares_ = arena.AllocateTensor(DType::kF32, 1, 1);
  step_ = arena.AllocateTensor(DType::kF32, 1, 4);
}

void AdamWOptimizer::Reset() {
  ops_.Fill(m_, 0);
  ops_.Fill(v_, 0);
}

void AdamWOptimizer::Step(Tensor values, Tensor gradients, int64_t step, double learning_rate) {
  const double t = static_cast<double>(step + 1);
  StepParams params;
  params.learning_rate = static_cast<float>(learning_rate);
  params.bias_correction1 = static_cast<float>(1 - std::pow(static_cast<double>(constants_.beta1), t));
  params.bias_correction2 = static_cast<float>(1 - std::pow(static_cast<double>(constants_.beta2), t));
  params.max_grad_norm = max_grad_norm_;
  ops_.SumSquares(gradients, sum_squares_);
  ops_.Upload(&params, step_);
  ops_.AdamW(values, gradients, m_, v_, sum_squares_, step_, constants_);
}

double AdamWOptimizer::GradientNorm() {
  float sum = 0;
  ops_.Download(sum_squares_, &sum);
  return std::sqrt(static_cast<double>(sum));
}

}  // namespace hone
