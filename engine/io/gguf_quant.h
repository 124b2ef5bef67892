// Host conversion between fp32 and the forms weights are stored in: plain types and GGUF's blocks. Encoders give the
// bytes that gguf-py gives. For export, inspection and tests; the training path decodes in kernels.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace hone {

float HalfToFloat(uint16_t bits);
uint16_t FloatToHalf(float value);  // nearest even; overflow to infinity
float Bf16ToFloat(uint16_t bits);
uint16_t FloatToBf16(float value);  // nearest even

// kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1. elements is a whole number of blocks.
void DecodeToFloat(DType dtype, const void* data, uint64_t elements, float* out);
// kF32, kF16, kBF16, kQ8_0.
void EncodeFromFloat(DType dtype, const float* values, uint64_t elements, void* out);

}  // namespace hone
