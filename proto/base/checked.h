// Checked unsigned arithmetic for sizes read from foreign files: nullopt on overflow. Use these, not ad-hoc
// comparisons.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace hone {

inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// The product of all factors; an empty list gives 1.
template <typename Range>
std::optional<uint64_t> CheckedProduct(const Range& factors) {
  uint64_t product = 1;
  for (auto factor : factors) {
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(factor), &product)) return std::nullopt;
  }
  return product;
}

// Whether [offset, offset + length) lies inside [0, size).
inline bool RangeFits(uint64_t offset, uint64_t length, uint64_t size) {
  return offset <= size && length <= size - offset;
}

}  // namespace hone
