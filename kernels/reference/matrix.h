// A plain matrix for the reference implementations, and the roundings they can be evaluated with. The references are
// templates on the scalar: double for comparison, std::complex<double> for derivatives by complex step
// (f'(x) = Im f(x + ih) / h: no cancellation), float where the roundings themselves are meant. Written to be read.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/ops.h"

namespace hone::reference {

template <typename T>
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<T> values;

  Matrix() = default;
  Matrix(int64_t r, int64_t c, T fill = T{}) : rows(r), cols(c), values(static_cast<size_t>(r * c), fill) {}
  template <typename U>
  Matrix(int64_t r, int64_t c, const std::vector<U>& v) : rows(r), cols(c), values(v.begin(), v.end()) {}

  T& operator()(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  const T& operator()(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

inline double Real(double x) { return x; }
inline double Real(const std::complex<double>& x) { return x.real(); }

// What a value becomes when an implementation stores it between two products.
struct NoRounding {
  template <typename T>
  T operator()(const T& x) const {
    return x;
  }
};

inline float RoundToBf16(float x) {
  if (std::isnan(x)) return x;
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&x, &u, 4);
  return x;
}

struct Bf16Rounding {
  double operator()(double x) const { return RoundToBf16(static_cast<float>(x)); }
};

}  // namespace hone::reference
