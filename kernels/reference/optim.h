// AdamW (arXiv 1711.05101) as PyTorch computes it, with the gradient clipped by a global norm.
#pragma once

#include <algorithm>

#include "kernels/reference/matrix.h"

namespace hone::reference {

template <typename T>
void AdamW(std::vector<T>& param, const std::vector<T>& grad, std::vector<T>& m, std::vector<T>& v, T sum_squares,
           const StepParams& step, const AdamWConstants& constants) {
  T clip = 1;
  if (step.max_grad_norm != 0) clip = std::min<T>(1, step.max_grad_norm / (std::sqrt(sum_squares) + 1e-6));
  const T lr = step.learning_rate, beta1 = constants.beta1, beta2 = constants.beta2;
  for (size_t i = 0; i < param.size(); ++i) {
    const T g = grad[i] * clip;
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    param[i] -= lr * constants.weight_decay * param[i];
    param[i] -=
        lr / step.bias_correction1 * m[i] / (std::sqrt(v[i]) / std::sqrt(T(step.bias_correction2)) + constants.eps);
  }
}

}  // namespace hone::reference
