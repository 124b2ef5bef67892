// Stored weights to fp32, each value rounded as its format defines it: the product, then the sum (no fused
// multiply-add: this file is compiled with -ffp-contract=off).
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vec.h"
#include "kernels/nf4_codes.h"

namespace hone::isa::HONE_ISA {
namespace {

constexpr const float (&kNf4)[16] = kNf4Codes.values;

inline float Bits(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

// IEEE half to single: the exponent is moved by a multiplication, which also brings subnormals out right.
inline float HalfToFloat(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const float finite = Bits(magnitude << 13) * 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &finite, 4);
  bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : bits;
  return Bits(bits | sign);
}

inline float HalfAt(const uint8_t* p) {
  uint16_t h;
  __builtin_memcpy(&h, p, 2);
  return HalfToFloat(h);
}

void DecodeF16(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = HalfToFloat(in[i]);
}

void Bf16ToF32(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = Bits(static_cast<uint32_t>(in[i]) << 16);
}

// Round to nearest even; NaN stays NaN (its quiet bit set).
void F32ToBf16(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t u;
    __builtin_memcpy(&u, in + i, 4);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t nan = (u >> 16) | 0x40u;
    out[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

void DecodeQ8_0(const uint8_t* in, int64_t count, float* out) {
  for (int64_t block = 0; block < count / 32; ++block, in += 34, out += 32) {
    const float d = HalfAt(in);
    const auto* q = reinterpret_cast<const int8_t*>(in + 2);
    for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q[j]);
  }
}

void DecodeQ4_0(const uint8_t* in, int64_t count, float* out) {
  for (int64_t block = 0; block < count / 32; ++block, in += 18, out += 32) {
    const float d = HalfAt(in);
    const uint8_t* q = in + 2;
    for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>((q[j] & 15) - 8);
    for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

void DecodeQ4_1(const uint8_t* in, int64_t count, float* out) {
  for (int64_t block = 0; block < count / 32; ++block, in += 20, out += 32) {
    const float d = HalfAt(in), m = HalfAt(in + 2);
    const uint8_t* q = in + 4;
    for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>(q[j] & 15) + m;
    for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
  }
}

inline float Nf4AbsMax(const WeightView& w, int64_t block) {
  if (w.absmax_codes == nullptr) return w.absmax[block];
  return w.nested_code[w.absmax_codes[block]] * w.nested_absmax[block / kNf4NestedBlockSize] + w.nested_offset;
}

inline float Nf4At(const uint8_t* codes, int64_t i) {
  const uint8_t byte = codes[i / 2];
  return kNf4[i % 2 == 0 ? byte >> 4 : byte & 15];
}

void DecodeNf4(const WeightView& w, int64_t first, int64_t count, float* out) {
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const int64_t end = first + count;
  int64_t i = first;
  while (i < end) {
    const int64_t block = i / kNf4BlockSize;
    const int64_t block_end = (block + 1) * kNf4BlockSize;
    const int64_t stop = block_end < end ? block_end : end;
    const float absmax = Nf4AbsMax(w, block);
    // The block's sixteen possible values once; then sixty-four look-ups.
    float table[16];
    for (int c = 0; c < 16; ++c) table[c] = kNf4[c] * absmax;
    if (i % 2 != 0) {
      *out++ = Nf4At(codes, i) * absmax;
      ++i;
    }
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
    // Sixteen look-ups are one permutation of the table's register; lane j needs byte j / 2, its high half first.
    typedef uint32_t VU __attribute__((vector_size(64)));
    const VU shift = {4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24};
    const VI upper = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
    const VF table_register = Load(table);
    for (; i + kLanes <= stop; i += kLanes, out += kLanes) {
      uint32_t word[2];
      __builtin_memcpy(word, codes + i / 2, 8);
      const VU both = upper ? word[1] - VU{} : word[0] - VU{};
      Store(out, __builtin_shuffle(table_register, reinterpret_cast<VI>((both >> shift) & 15)));
    }
#endif
    for (; i + 1 < stop; i += 2, out += 2) {
      const uint8_t byte = codes[i / 2];
      out[0] = table[byte >> 4];
      out[1] = table[byte & 15];
    }
    if (i < stop) {
      *out++ = Nf4At(codes, i) * absmax;
      ++i;
    }
  }
}

void Decode(const WeightView& w, int64_t first, int64_t count, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(w.data);
  switch (w.dtype) {
    case DType::kF32:
      __builtin_memcpy(out, bytes + first * 4, static_cast<uint64_t>(count) * 4);
      return;
    case DType::kF16:
      return DecodeF16(static_cast<const uint16_t*>(w.data) + first, count, out);
    case DType::kBF16:
      return Bf16ToF32(static_cast<const uint16_t*>(w.data) + first, count, out);
    case DType::kNf4:
      return DecodeNf4(w, first, count, out);
    case DType::kQ8_0:
      return DecodeQ8_0(bytes + first / 32 * 34, count, out);
    case DType::kQ4_0:
      return DecodeQ4_0(bytes + first / 32 * 18, count, out);
    case DType::kQ4_1:
      return DecodeQ4_1(bytes + first / 32 * 20, count, out);
    case DType::kI32:
    case DType::kU8:
      return;  // checks::DecodeWeight has refused them
  }
}

}  // namespace

void AddDecode(CpuKernels& kernels) {
  kernels.decode = Decode;
  kernels.f32_to_bf16 = F32ToBf16;
  kernels.bf16_to_f32 = Bf16ToF32;
}

}  // namespace hone::isa::HONE_ISA
