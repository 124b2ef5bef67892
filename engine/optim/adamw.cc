#include "engine/optim/adamw.h"

#include <cmath>

namespace hone {

AdamWOptimizer::AdamWOptimizer(Ops& ops, const v1::OptimizerSpec& spec, int64_t elements, Arena& arena) : ops_(ops) {
  constants_.beta1 = static_cast<float>(spec.betas(0));
  constants_.beta2 = static_cast<float>(spec.betas(1));
  constants_.eps = static_cast<float>(spec.eps());
  constants_.weight_decay = static_cast<float>(spec.weight_decay());
  max_grad_norm_ = static_cast<float>(spec.max_grad_norm());
  eight_bit_ = spec.name() == v1::OPTIMIZER_NAME_ADAMW_8BIT;
  auto floats = [&](const char* name, int64_t count) {
    const Tensor tensor = arena.AllocateTensor(DType::kF32, 1, count);
    zeroed_.push_back(tensor);
    states_.push_back({name, tensor});
    return tensor;
  };
  auto codes = [&](const char* name) {
    const int64_t words = (elements + 3) / 4;
    const Tensor whole = arena.AllocateTensor(DType::kI32, 1, words);
    zeroed_.push_back(whole);
    const Tensor tensor{whole.data, DType::kU8, 1, elements, elements};
    states_.push_back({name, tensor});
    return tensor;
  };
  if (eight_bit_) {
    const int64_t blocks = (elements + kOptimizerBlockSize - 1) / kOptimizerBlockSize;
    m_ = codes("adamw8_m");
    m_absmax_ = floats("adamw8_m_absmax", blocks);
    v_ = codes("adamw8_v");
    v_absmax_ = floats("adamw8_v_absmax", blocks);
  } else {
    m_ = floats("adamw_m", elements);
    v_ = floats("adamw_v", elements);
  }
  sum_squares_ = arena.AllocateTensor(DType::kF32, 1, 1);
  step_ = arena.AllocateTensor(DType::kF32, 1, 4);
}

// Scales of 0 make every code a 0.
void AdamWOptimizer::Reset() {
  for (const Tensor tensor : zeroed_) ops_.Fill(tensor, 0);
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
  if (eight_bit_) {
    ops_.AdamW8bit(values, gradients, m_, m_absmax_, v_, v_absmax_, sum_squares_, step_, constants_);
  } else {
    ops_.AdamW(values, gradients, m_, v_, sum_squares_, step_, constants_);
  }
}

double AdamWOptimizer::GradientNorm() {
  float sum = 0;
  ops_.Download(sum_squares_, &sum);
  return std::sqrt(static_cast<double>(sum));
}

double AdamWOptimizer::NormOf(Tensor gradients) {
  ops_.SumSquares(gradients, sum_squares_);
  return GradientNorm();
}

}  // namespace hone
