// How numbers are stored: plain types for activations, block formats for frozen weights. Not here: how they are
// decoded.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace hone {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kU8,
  kNf4,   // bitsandbytes: two 4-bit codes a byte, first element in the high nibble; scales apart (WeightView)
  kQ8_0,  // GGUF: fp16 scale, 32 int8                      y = d * q
  kQ4_0,  // GGUF: fp16 scale, 16 bytes of nibbles          y = d * (q - 8);  byte j holds elements j (low) and j + 16
          // (high)
  kQ4_1,  // GGUF: fp16 scale, fp16 minimum, 16 bytes       y = d * q + m
};

std::string_view DTypeName(DType dtype);
// Elements and bytes of one block; plain types are blocks of one element, NF4 a block of two elements in one byte.
int64_t BlockElements(DType dtype);
int64_t BlockBytes(DType dtype);
// Bytes that `elements` values take (NF4 without its scales); nullopt if not a whole number of blocks, or on overflow.
std::optional<uint64_t> StorageBytes(DType dtype, uint64_t elements);

inline constexpr int kNf4BlockSize = 64;         // elements per absmax
inline constexpr int kNf4NestedBlockSize = 256;  // absmax values per nested absmax

}  // namespace hone
