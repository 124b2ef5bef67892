// out = act(gate) * up.
#pragma once

#include <numbers>

#include "kernels/reference/matrix.h"

namespace hone::reference {

inline double Erf(double x) { return std::erf(x); }
// First order in the imaginary part: all that a complex step needs.
inline std::complex<double> Erf(const std::complex<double>& z) {
  return {std::erf(z.real()), z.imag() * 2 * std::numbers::inv_sqrtpi * std::exp(-z.real() * z.real())};
}

template <typename T>
T Activate(Activation activation, const T& x) {
  if (activation == Activation::kSilu) return x / (1.0 + std::exp(-x));
  if (activation == Activation::kGelu) return 0.5 * x * (1.0 + Erf(x / std::numbers::sqrt2));
  const double root = std::sqrt(2 / std::numbers::pi);
  return 0.5 * x * (1.0 + std::tanh(root * (x + 0.044715 * x * x * x)));
}

template <typename T>
T ActivationSlope(Activation activation, const T& x) {
  if (activation == Activation::kSilu) {
    const T s = 1.0 / (1.0 + std::exp(-x));
    return s * (1.0 + x * (1.0 - s));
  }
  if (activation == Activation::kGelu) {
    const double density = 1 / std::sqrt(2 * std::numbers::pi);
    return 0.5 * (1.0 + Erf(x / std::numbers::sqrt2)) + x * density * std::exp(-0.5 * x * x);
  }
  const double root = std::sqrt(2 / std::numbers::pi);
  const T t = std::tanh(root * (x + 0.044715 * x * x * x));
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3 * 0.044715 * x * x);
}

template <typename T>
void Glu(const Matrix<T>& gate_up, Activation activation, Matrix<T>& out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    for (int64_t j = 0; j < out.cols; ++j) out(t, j) = Activate(activation, gate_up(t, j)) * gate_up(t, out.cols + j);
  }
}

template <typename T>
void GluBackward(const Matrix<T>& d_out, const Matrix<T>& gate_up, Activation activation, Matrix<T>& d_gate_up) {
  for (int64_t t = 0; t < d_out.rows; ++t) {
    for (int64_t j = 0; j < d_out.cols; ++j) {
      const T gate = gate_up(t, j), up = gate_up(t, d_out.cols + j);
      d_gate_up(t, j) = d_out(t, j) * up * ActivationSlope(activation, gate);
      d_gate_up(t, d_out.cols + j) = d_out(t, j) * Activate(activation, gate);
    }
  }
}

}  // namespace hone::reference
