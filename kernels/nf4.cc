#include "kernels/nf4.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hone {
namespace {

constexpr uint64_t kBlock = 64, kNestedBlock = 256;

float LargestMagnitude(const float* values, uint64_t count) {
  float largest = 0;
  for (uint64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// Codes of up to 64 values.
void EncodeBlock(const float* values, uint64_t count, float inverse, uint8_t* codes) {
  uint8_t code[kBlock] = {};
  float scaled[kBlock] = {};
  for (uint64_t i = 0; i < count; ++i) scaled[i] = values[i] * inverse;
  for (float threshold : kNf4Codes.thresholds) {
    for (uint64_t i = 0; i < kBlock; ++i) code[i] = static_cast<uint8_t>(code[i] + (scaled[i] > threshold));
  }
  if (count % 2 != 0) code[count] = 0;
  for (uint64_t i = 0; i < count; i += 2) codes[i / 2] = static_cast<uint8_t>(code[i] << 4 | code[i + 1]);
}

}  // namespace

const std::array<float, 16>& Nf4Codebook() {
  static constexpr std::array<float, 16> kCodebook = [] {
    std::array<float, 16> values{};
    for (size_t i = 0; i < 16; ++i) values[i] = kNf4Codes.values[i];
    return values;
  }();
  return kCodebook;
}

Nf4Sizes Nf4SizesOf(uint64_t elements) {
  Nf4Sizes sizes;
  sizes.code_bytes = elements / 2 + elements % 2;
  sizes.blocks = elements / kBlock + (elements % kBlock != 0);
  sizes.nested_blocks = sizes.blocks / kNestedBlock + (sizes.blocks % kNestedBlock != 0);
  return sizes;
}

void EncodeNf4Plain(const float* values, uint64_t elements, uint8_t* codes, float* absmax) {
  for (uint64_t begin = 0, block = 0; begin < elements; begin += kBlock, ++block) {
    const uint64_t count = std::min(kBlock, elements - begin);
    absmax[block] = LargestMagnitude(values + begin, count);
    const float inverse = absmax[block] == 0 ? 0.0f : 1.0f / absmax[block];
    EncodeBlock(values + begin, count, inverse, codes + begin / 2);
  }
}

float MeanOfAbsmax(const float* absmax, uint64_t blocks) {
  if (blocks == 0) return 0;
  double lanes[kNf4MeanLanes] = {};
  for (uint64_t begin = 0; begin < blocks; begin += kNf4MeanLanes) {
    const uint64_t count = std::min(kNf4MeanLanes, blocks - begin);
    for (uint64_t lane = 0; lane < count; ++lane) lanes[lane] += absmax[begin + lane];
  }
  double sum = 0;
  for (uint64_t group = 0; group < kNf4MeanLanes; group += kNf4MeanGroup) {
    for (uint64_t half = kNf4MeanGroup / 2; half > 0; half /= 2) {
      for (uint64_t lane = 0; lane < half; ++lane) lanes[group + lane] += lanes[group + lane + half];
    }
    sum += lanes[group];
  }
  return static_cast<float>(sum / static_cast<double>(blocks));
}

void EncodeNf4Absmax(const float* absmax, uint64_t blocks, float offset, uint8_t* absmax_codes, float* nested_absmax) {
  const DynamicMap& map = Nf4DynamicMap();
  for (uint64_t begin = 0; begin < blocks; begin += kNestedBlock) {
    const uint64_t count = std::min(kNestedBlock, blocks - begin);
    float centred[kNestedBlock];
    for (uint64_t i = 0; i < count; ++i) centred[i] = absmax[begin + i] - offset;
    const float largest = LargestMagnitude(centred, count);
    nested_absmax[begin / kNestedBlock] = largest;
    const float inverse = largest == 0 ? 0.0f : 1.0f / largest;
    for (uint64_t i = 0; i < count; ++i) absmax_codes[begin + i] = NearestCode(centred[i] * inverse, map);
  }
}

void EncodeNf4(const float* values, uint64_t elements, Nf4Parts& out) {
  const Nf4Sizes sizes = Nf4SizesOf(elements);
  std::vector<float> absmax(sizes.blocks);
  EncodeNf4Plain(values, elements, out.codes, absmax.data());
  out.nested_offset = MeanOfAbsmax(absmax.data(), sizes.blocks);
  EncodeNf4Absmax(absmax.data(), sizes.blocks, out.nested_offset, out.absmax_codes, out.nested_absmax);
}

void DecodeNf4(const uint8_t* codes, const float* absmax, uint64_t elements, float* out) {
  for (uint64_t i = 0; i < elements; ++i) {
    const uint8_t code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    out[i] = kNf4Codes.values[code] * absmax[i / kBlock];
  }
}

void DecodeNf4Absmax(const uint8_t* absmax_codes, const float* nested_code, const float* nested_absmax,
                     float nested_offset, uint64_t blocks, float* absmax) {
  for (uint64_t b = 0; b < blocks; ++b) {
    // Two roundings, as bitsandbytes: the product is stored in fp32 before the offset is added.
    const float product = nested_code[absmax_codes[b]] * nested_absmax[b / kNestedBlock];
    absmax[b] = product + nested_offset;
  }
}

}  // namespace hone
