// Vectors of fp32 as wide as the instruction set of this compilation, and the functions that libm has no vector form
// of. Internal linkage throughout: each instruction set keeps its own copy.
#pragma once

#include <cstdint>

namespace hone::isa::HONE_ISA {
namespace {

#if defined(__AVX512F__)
#define HONE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define HONE_VECTOR_BYTES 32
#else
#define HONE_VECTOR_BYTES 16
#endif

constexpr int64_t kLanes = HONE_VECTOR_BYTES / 4;
typedef float VF __attribute__((vector_size(HONE_VECTOR_BYTES)));
typedef int32_t VI __attribute__((vector_size(HONE_VECTOR_BYTES)));
typedef float VFUnaligned __attribute__((vector_size(HONE_VECTOR_BYTES), aligned(4), may_alias));

[[maybe_unused]] inline VF Splat(float x) { return x - VF{}; }
[[maybe_unused]] inline VI SplatInt(int32_t x) { return x - VI{}; }
[[maybe_unused]] inline VF Load(const float* p) { return *reinterpret_cast<const VFUnaligned*>(p); }
[[maybe_unused]] inline void Store(float* p, VF v) { *reinterpret_cast<VFUnaligned*>(p) = v; }
// The last, incomplete vector of a row: n < kLanes values, the rest `fill`.
[[maybe_unused]] inline VF LoadPart(const float* p, int64_t n, float fill = 0) {
  VF v = Splat(fill);
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
[[maybe_unused]] inline void StorePart(float* p, VF v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
[[maybe_unused]] inline VF Max(VF a, VF b) { return a > b ? a : b; }
[[maybe_unused]] inline VF Abs(VF x) { return reinterpret_cast<VF>(reinterpret_cast<VI>(x) & 0x7fffffff); }

// Lanes are added in one fixed order: halves, quarters, ...
[[maybe_unused]] inline float Sum(VF v) {
  float lane[kLanes];
  Store(lane, v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}
[[maybe_unused]] inline float MaxLane(VF v) {
  float best = v[0];
  for (int64_t i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x = 2^n * e^r, n = round(x / ln 2), |r| <= ln(2)/2; the polynomial's relative error is 4e-9 (fitted, least squares
// on Chebyshev nodes), the result's about 1e-7. 0 below -86.5, finite up to 88.7 and held there; NaN stays NaN.
[[maybe_unused]] inline VF Exp(VF x) {
  const VF top = Splat(88.72f);
  const VI tiny = x < Splat(-86.5f);
  x = x > top ? top : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const VF shifted = x * 1.44269504f + kRound;
  const VF n = shifted - kRound;
  const VF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  VF p = Splat(0.00137508928f);
  p = p * r + 0.00836905837f;
  p = p * r + 0.041669555f;
  p = p * r + 0.166665167f;
  p = p * r + 0.499999881f;
  p = p * (r * r) + r + 1.0f;
  // 2^(n-1) and then 2, so that n = 128 does not overflow on the way.
  const VI exponent = (reinterpret_cast<VI>(shifted) - 0x4b400000 + 126) << 23;
  const VF result = p * reinterpret_cast<VF>(exponent) * 2.0f;
  return tiny ? VF{} : result;
}

// Odd polynomial near zero, 1 - 2 / (e^2x + 1) beyond.
[[maybe_unused]] inline VF Tanh(VF x) {
  const VF a = Abs(x);
  const VF z = x * x;
  VF p = Splat(-0.0057040439f);
  p = p * z + 0.0206378624f;
  p = p * z - 0.0537391566f;
  p = p * z + 0.133314312f;
  p = p * z - 0.333332807f;
  const VF near = x + x * (z * p);
  VF far = 1.0f - 2.0f / (Exp(a + a) + 1.0f);
  far = x < VF{} ? -far : far;
  return a < Splat(0.625f) ? near : far;
}

[[maybe_unused]] inline VF Sigmoid(VF x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace
}  // namespace hone::isa::HONE_ISA
