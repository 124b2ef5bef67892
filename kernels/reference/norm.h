// RMSNorm (arXiv 1910.07467) per group of weight.size() columns.
#pragma once

#include "kernels/reference/matrix.h"

namespace hone::reference {

template <typename T>
void RmsNorm(const Matrix<T>& x, const std::vector<T>& weight, double eps, Matrix<T>& y, Matrix<T>& rstd) {
  const auto width = static_cast<int64_t>(weight.size());
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t g = 0; g < x.cols / width; ++g) {
      T squares{};
      for (int64_t j = 0; j < width; ++j) squares += x(t, g * width + j) * x(t, g * width + j);
      rstd(t, g) = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
      for (int64_t j = 0; j < width; ++j) y(t, g * width + j) = x(t, g * width + j) * rstd(t, g) * weight[j];
    }
  }
}

// dx <- beta dx + rstd * (w dy - x rstd^2 mean(w dy x))
template <typename T>
void RmsNormBackward(const Matrix<T>& dy, const Matrix<T>& x, const std::vector<T>& weight, const Matrix<T>& rstd,
                     Matrix<T>& dx, double beta) {
  const auto width = static_cast<int64_t>(weight.size());
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t g = 0; g < x.cols / width; ++g) {
      T mean{};
      for (int64_t j = 0; j < width; ++j) mean += weight[j] * dy(t, g * width + j) * x(t, g * width + j);
      mean /= static_cast<double>(width);
      const T r = rstd(t, g);
      for (int64_t j = 0; j < width; ++j) {
        const int64_t c = g * width + j;
        const T value = r * (weight[j] * dy(t, c) - x(t, c) * r * r * mean);
        dx(t, c) = value + (beta == 0 ? T{} : beta * dx(t, c));
      }
    }
  }
}

}  // namespace hone::reference
