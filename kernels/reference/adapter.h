// The adapters' gradients of a linear y = x W^T + s (x A^T) B^T: with u = s x A^T, dB = dy^T u and du = s dy B.
#pragma once

#include "kernels/reference/matrix.h"

namespace hone::reference {

// du <- alpha dy b + beta du.
template <typename T>
void AdapterInputGradient(const Matrix<T>& dy, const Matrix<T>& b, Matrix<T>& du, double alpha, double beta) {
  for (int64_t i = 0; i < du.rows; ++i) {
    for (int64_t j = 0; j < du.cols; ++j) {
      T sum{};
      for (int64_t k = 0; k < dy.cols; ++k) sum += dy(i, k) * b(k, j);
      du(i, j) = alpha * sum + (beta == 0 ? T{} : beta * du(i, j));
    }
  }
}

// db [n, r] += dy^T u, of dy's columns from dy_column on and u's from u_column on.
template <typename T>
void AdapterWeightGradient(const Matrix<T>& dy, int64_t dy_column, const Matrix<T>& u, int64_t u_column,
                           Matrix<T>& db) {
  for (int64_t i = 0; i < db.rows; ++i) {
    for (int64_t j = 0; j < db.cols; ++j) {
      T sum{};
      for (int64_t k = 0; k < dy.rows; ++k) sum += dy(k, dy_column + i) * u(k, u_column + j);
      db(i, j) += sum;
    }
  }
}

}  // namespace hone::reference
