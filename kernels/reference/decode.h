// One element of a stored weight in fp32, rounded as its format defines: product and sum each rounded (compile with
// -ffp-contract=off). Formats: kernels/dtype.h and WeightView.
#pragma once

#include <cmath>

#include "kernels/nf4_codes.h"
#include "kernels/reference/matrix.h"

namespace hone::reference {

inline float HalfValue(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

inline float Bf16Value(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0] | p[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float Nf4Scale(const WeightView& w, int64_t block) {
  if (w.absmax_codes == nullptr) return w.absmax[block];
  const float scaled = w.nested_code[w.absmax_codes[block]] * w.nested_absmax[block / kNf4NestedBlockSize];
  return scaled + w.nested_offset;
}

inline float DecodeElement(const WeightView& w, int64_t i) {
  const auto* bytes = static_cast<const uint8_t*>(w.data);
  const uint8_t* block = bytes + i / BlockElements(w.dtype) * BlockBytes(w.dtype);
  const int j = static_cast<int>(i % BlockElements(w.dtype));
  // Nibble j of a GGUF block of 32: the low halves first, then the high ones.
  const auto nibble = [&](const uint8_t* codes) { return j < 16 ? codes[j] & 15 : codes[j - 16] >> 4; };
  switch (w.dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, block, 4);
      return value;
    }
    case DType::kF16:
      return HalfValue(block);
    case DType::kBF16:
      return Bf16Value(block);
    case DType::kNf4:
      return kNf4Codes.values[j == 0 ? block[0] >> 4 : block[0] & 15] * Nf4Scale(w, i / kNf4BlockSize);
    case DType::kQ8_0:
      return HalfValue(block) * static_cast<float>(static_cast<int8_t>(block[2 + j]));
    case DType::kQ4_0:
      return HalfValue(block) * static_cast<float>(nibble(block + 2) - 8);
    case DType::kQ4_1: {
      const float product = HalfValue(block) * static_cast<float>(nibble(block + 4));
      return product + HalfValue(block + 2);
    }
    case DType::kI32:
    case DType::kU8:
      break;
  }
  return NAN;
}

}  // namespace hone::reference
