// Rotary position in Hugging Face's half-split order. The angle is the fp32 product position * inv_freq, as there.
#pragma once

#include "kernels/reference/matrix.h"

namespace hone::reference {

template <typename T>
void RopeTable(const std::vector<int32_t>& positions, const std::vector<float>& inv_freq, double scaling,
               Matrix<T>& cos, Matrix<T>& sin) {
  for (int64_t t = 0; t < cos.rows; ++t) {
    for (int64_t i = 0; i < cos.cols; ++i) {
      const float angle = static_cast<float>(positions[t]) * inv_freq[i];
      cos(t, i) = scaling * std::cos(static_cast<double>(angle));
      sin(t, i) = scaling * std::sin(static_cast<double>(angle));
    }
  }
}

template <typename T>
void Rope(Matrix<T>& x, int64_t head_dim, const Matrix<T>& cos, const Matrix<T>& sin, RopeDirection direction) {
  const double sign = direction == RopeDirection::kForward ? 1 : -1;
  const int64_t half = head_dim / 2;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t head = 0; head < x.cols / head_dim; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        T& x1 = x(t, head * head_dim + i);
        T& x2 = x(t, head * head_dim + half + i);
        const T a = x1 * cos(t, i) - x2 * sin(t, i) * sign;
        const T b = x2 * cos(t, i) + x1 * sin(t, i) * sign;
        x1 = a;
        x2 = b;
      }
    }
  }
}

}  // namespace hone::reference
