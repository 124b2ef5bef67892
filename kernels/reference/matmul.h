// c <- alpha op(a) op(b) + beta c.
#pragma once

#include "kernels/reference/matrix.h"

namespace hone::reference {

template <typename T>
Matrix<T> Transposed(const Matrix<T>& a) {
  Matrix<T> t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  }
  return t;
}

template <typename T>
void Matmul(const Matrix<T>& a, Transpose ta, const Matrix<T>& b, Transpose tb, Matrix<T>& c, double alpha,
            double beta) {
  const Matrix<T> left = ta == Transpose::kYes ? Transposed(a) : a;
  const Matrix<T> right = tb == Transpose::kYes ? Transposed(b) : b;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.cols; ++j) {
      T sum{};
      for (int64_t k = 0; k < left.cols; ++k) sum += left(i, k) * right(k, j);
      c(i, j) = alpha * sum + (beta == 0 ? T{} : beta * c(i, j));
    }
  }
}

}  // namespace hone::reference
