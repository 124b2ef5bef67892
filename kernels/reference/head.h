// log softmax of the transformed logits at the target, and its gradient with respect to the raw logits.
#pragma once

#include <algorithm>

#include "kernels/reference/matrix.h"

namespace hone::reference {

template <typename T>
T TransformLogit(const LogitTransform& transform, const T& raw) {
  const T scaled = raw * static_cast<double>(transform.scale);
  const double cap = transform.softcap;
  return cap == 0 ? scaled : cap * std::tanh(scaled / cap);
}

template <typename T>
std::vector<T> LogProb(const Matrix<T>& logits, const std::vector<int32_t>& targets, const LogitTransform& transform) {
  std::vector<T> log_probs;
  for (int64_t i = 0; i < logits.rows; ++i) {
    double top = Real(TransformLogit(transform, logits(i, 0)));
    for (int64_t j = 0; j < logits.cols; ++j) top = std::max(top, Real(TransformLogit(transform, logits(i, j))));
    T sum{};
    for (int64_t j = 0; j < logits.cols; ++j) sum += std::exp(TransformLogit(transform, logits(i, j)) - top);
    log_probs.push_back(TransformLogit(transform, logits(i, targets[i])) - top - std::log(sum));
  }
  return log_probs;
}

// (onehot - softmax) * d transform(z) / dz
template <typename T>
Matrix<T> LogProbUnitGradient(const Matrix<T>& logits, const std::vector<int32_t>& targets,
                              const LogitTransform& transform) {
  Matrix<T> gradient(logits.rows, logits.cols);
  const std::vector<T> log_probs = LogProb(logits, targets, transform);
  for (int64_t i = 0; i < logits.rows; ++i) {
    const T normaliser = TransformLogit(transform, logits(i, targets[i])) - log_probs[i];
    for (int64_t j = 0; j < logits.cols; ++j) {
      const T z = TransformLogit(transform, logits(i, j));
      T slope = static_cast<double>(transform.scale);
      if (transform.softcap != 0) slope *= 1.0 - std::pow(z / static_cast<double>(transform.softcap), 2);
      gradient(i, j) = ((j == targets[i] ? 1.0 : 0.0) - std::exp(z - normaliser)) * slope;
    }
  }
  return gradient;
}

}  // namespace hone::reference
