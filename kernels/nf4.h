// NF4 as bitsandbytes stores it (QLoRA, arXiv 2305.14314), on the host: blocks of 64 elements share an absmax; with
// double quantisation the absmax values, less their mean, are stored in 8 bits by the signed dynamic map in blocks of
// 256. The first element of a pair is the high nibble. Every back end encodes to these very bits.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/dynamic_map.h"
#include "kernels/nf4_codes.h"

namespace hone {

const std::array<float, 16>& Nf4Codebook();
inline const std::array<float, 256>& Nf4DynamicMap() { return SignedDynamicMap(); }  // what absmax codes index

struct Nf4Sizes {
  uint64_t code_bytes = 0;     // ceil(elements / 2)
  uint64_t blocks = 0;         // ceil(elements / 64): absmax values or codes
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
// Its steps, for back ends that divide the work. Without double quantisation: absmax has ceil(elements / 64) floats.
void EncodeNf4Plain(const float* values, uint64_t elements, uint8_t* codes, float* absmax);
// The offset: kNf4MeanLanes fp64 sums, lane l of every kNf4MeanLanes-th value from l on in ascending order; lanes of a
// group of kNf4MeanGroup are halved (lane l takes l + half) to one, groups added in order. Rounded once to fp32.
inline constexpr uint64_t kNf4MeanLanes = 8192, kNf4MeanGroup = 256;
float MeanOfAbsmax(const float* absmax, uint64_t blocks);
// `blocks` values from the beginning of a nested block on.
void EncodeNf4Absmax(const float* absmax, uint64_t blocks, float offset, uint8_t* absmax_codes, float* nested_absmax);

// Plain host decoder, bit-equal to bitsandbytes: code[nibble] * absmax.
//   nested: absmax[b] = nested_code[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset
void DecodeNf4(const uint8_t* codes, const float* absmax, uint64_t elements, float* out);
void DecodeNf4Absmax(const uint8_t* absmax_codes, const float* nested_code, const float* nested_absmax,
                     float nested_offset, uint64_t blocks, float* absmax);

}  // namespace hone
