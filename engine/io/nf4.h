// NF4 as bitsandbytes stores it: per 64 elements (row-major, flat) the largest magnitude, per element a 4-bit code of
// x / absmax (first element in the high nibble), and double quantisation: offset = mean(absmax); absmax - offset in
// blocks of 256 as an 8-bit code of the dynamic map times the block's largest magnitude. Not here: decoding on a device
// (kernels).
#pragma once

#include <array>
#include <cstdint>

namespace hone {

const std::array<float, 16>& Nf4Codebook();
// The signed dynamic 8-bit map (ascending, 256 values): create_dynamic_map(signed=True, max_exponent_bits=7,
// total_bits=8).
const std::array<float, 256>& Nf4DynamicMap();

struct Nf4Sizes {
  uint64_t code_bytes = 0;     // ceil(elements / 2)
  uint64_t blocks = 0;         // ceil(elements / 64): absmax codes
  uint64_t nested_blocks = 0;  // ceil(blocks / 256): nested absmax floats
};
Nf4Sizes Nf4SizesOf(uint64_t elements);

struct Nf4Parts {
  uint8_t* codes = nullptr;         // code_bytes
  uint8_t* absmax_codes = nullptr;  // blocks
  float* nested_absmax = nullptr;   // nested_blocks
  float nested_offset = 0;          // written
  // nested_code is Nf4DynamicMap().
};
// x * (1 / absmax) against 15 thresholds with strict >; a block of zeros gives the code of 0. Values must be finite.
void EncodeNf4(const float* values, uint64_t elements, Nf4Parts& out);
// The same without double quantisation: absmax has `blocks` floats.
void EncodeNf4Plain(const float* values, uint64_t elements, uint8_t* codes, float* absmax);

// Plain host decoder, bit-equal to bitsandbytes: code[nibble] * absmax.
//   nested: absmax[b] = nested_code[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset
void DecodeNf4(const uint8_t* codes, const float* absmax, uint64_t elements, float* out);
void DecodeNf4Absmax(const uint8_t* absmax_codes, const float* nested_code, const float* nested_absmax,
                     float nested_offset, uint64_t blocks, float* absmax);

}  // namespace hone
