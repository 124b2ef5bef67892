#include "engine/io/gguf_quant.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "engine/io/nf4.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kBlock = 32;

template <typename T>
T Load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

void DecodeQ8_0(const uint8_t* in, uint64_t blocks, float* out) {
  for (uint64_t b = 0; b < blocks; ++b, in += 34, out += kBlock) {
    const float d = HalfToFloat(Load<uint16_t>(in));
    for (int j = 0; j < kBlock; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(in[2 + j]));
  }
}

void DecodeQ4_0(const uint8_t* in, uint64_t blocks, float* out) {
  for (uint64_t b = 0; b < blocks; ++b, in += 18, out += kBlock) {
    const float d = HalfToFloat(Load<uint16_t>(in));
    for (int j = 0; j < kBlock / 2; ++j) {
      out[j] = d * static_cast<float>((in[2 + j] & 15) - 8);
      out[j + kBlock / 2] = d * static_cast<float>((in[2 + j] >> 4) - 8);
    }
  }
}

void DecodeQ4_1(const uint8_t* in, uint64_t blocks, float* out) {
  for (uint64_t b = 0; b < blocks; ++b, in += 20, out += kBlock) {
    const float d = HalfToFloat(Load<uint16_t>(in));
    const float m = HalfToFloat(Load<uint16_t>(in + 2));
    for (int j = 0; j < kBlock / 2; ++j) {
      // Two roundings, as every decoder of the format does; a fused multiply-add would differ in the last bit.
      const float low = d * static_cast<float>(in[4 + j] & 15);
      const float high = d * static_cast<float>(in[4 + j] >> 4);
      out[j] = low + m;
      out[j + kBlock / 2] = high + m;
    }
  }
}

// gguf-py: d = max|x| / 127 in fp32, q = round-half-away(x * (1 / d)), d stored as fp16.
void EncodeQ8_0(const float* in, uint64_t blocks, uint8_t* out) {
  for (uint64_t b = 0; b < blocks; ++b, in += kBlock, out += 34) {
    float largest = 0;
    for (int j = 0; j < kBlock; ++j) largest = std::fmax(largest, std::fabs(in[j]));
    const float d = largest / 127.0f;
    const float inverse = d == 0 ? 0.0f : 1.0f / d;
    const uint16_t half = FloatToHalf(d);
    std::memcpy(out, &half, sizeof(half));
    for (int j = 0; j < kBlock; ++j) {
      // A denormal d makes the inverse infinite; such a block is zero in fp16 anyway.
      const float scaled = in[j] * inverse;
      const float rounded = std::isfinite(scaled) ? std::fmax(-128.0f, std::fmin(127.0f, std::round(scaled))) : 0.0f;
      out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(rounded));
    }
  }
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero: exact
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00 | ((magnitude >> 13) & 0x3FF));  // NaN
  if (magnitude >= 0x47800000u) return sign | 0x7C00;                                                      // >= 2^16
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 0.5 lets the FPU round to a multiple of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xFFF + odd) >> 13));  // may carry into infinity
}

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

void DecodeToFloat(DType dtype, const void* data, uint64_t elements, float* out) {
  const auto* in = static_cast<const uint8_t*>(data);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, in, elements * 4);
      return;
    case DType::kF16:
      for (uint64_t i = 0; i < elements; ++i) out[i] = HalfToFloat(Load<uint16_t>(in + 2 * i));
      return;
    case DType::kBF16:
      for (uint64_t i = 0; i < elements; ++i) out[i] = Bf16ToFloat(Load<uint16_t>(in + 2 * i));
      return;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1: {
      HONE_CHECK(elements % kBlock == 0, "elements ", elements);
      const uint64_t blocks = elements / kBlock;
      if (dtype == DType::kQ8_0) return DecodeQ8_0(in, blocks, out);
      if (dtype == DType::kQ4_0) return DecodeQ4_0(in, blocks, out);
      return DecodeQ4_1(in, blocks, out);
    }
    case DType::kI32:
    case DType::kU8:
    case DType::kNf4:
      break;
  }
  FailInvariant(__FILE__, __LINE__, "a dtype that decodes by itself", StrCat("dtype ", static_cast<int>(dtype)));
}

void EncodeFromFloat(DType dtype, const float* values, uint64_t elements, void* out) {
  auto* bytes = static_cast<uint8_t*>(out);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(bytes, values, elements * 4);
      return;
    case DType::kF16:
    case DType::kBF16:
      for (uint64_t i = 0; i < elements; ++i) {
        const uint16_t half = dtype == DType::kF16 ? FloatToHalf(values[i]) : FloatToBf16(values[i]);
        std::memcpy(bytes + 2 * i, &half, 2);
      }
      return;
    case DType::kQ8_0:
      HONE_CHECK(elements % kBlock == 0, "elements ", elements);
      return EncodeQ8_0(values, elements / kBlock, bytes);
    default:
      break;
  }
  FailInvariant(__FILE__, __LINE__, "a dtype that exports write", StrCat("dtype ", static_cast<int>(dtype)));
}

}  // namespace hone
