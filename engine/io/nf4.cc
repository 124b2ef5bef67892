#include "engine/io/nf4.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hone {
namespace {

constexpr uint64_t kBlock = 64, kNestedBlock = 256;

// Upper neighbour of threshold t[i] is code i + 1: the number of thresholds strictly below x is its code.
constexpr std::array<float, 15> kThresholds = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f};

uint8_t Code(float x) {
  uint8_t code = 0;
  for (float threshold : kThresholds) code += x > threshold ? 1 : 0;
  return code;
}

// The entry nearest to x; the midpoint itself goes down.
uint8_t DynamicCode(float x, const std::array<float, 256>& map) {
  const size_t upper = static_cast<size_t>(std::lower_bound(map.begin(), map.end(), x) - map.begin());
  if (upper == 0) return 0;
  if (upper == map.size()) return 255;
  const float middle = (map[upper - 1] + map[upper]) * 0.5f;
  return static_cast<uint8_t>(x > middle ? upper : upper - 1);
}

float LargestMagnitude(const float* values, uint64_t count) {
  float largest = 0;
  for (uint64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// Decade i has 2^i values of both signs: the middles of equal steps from 0.1 to 1, times 10^(i - 6); then 0 and 1. All
// in fp32, in the order in which torch computes it, since checkpoints hold these very bits.
std::array<float, 256> MakeDynamicMap() {
  std::array<float, 256> map{};
  size_t count = 0;
  for (int i = 0; i < 7; ++i) {
    const int steps = 1 << i;
    for (int k = 0; k < steps; ++k) {
      const auto boundary = [&](int j) {  // torch.linspace(0.1, 1, steps + 1) in fp32: from both ends to the middle
        const float start = 0.1f, end = 1.0f, step = (end - start) / static_cast<float>(steps);
        return j < (steps + 1) / 2 ? start + step * static_cast<float>(j) : end - step * static_cast<float>(steps - j);
      };
      const float middle = (boundary(k) + boundary(k + 1)) / 2.0f;
      const float value = static_cast<float>(std::pow(10.0, i - 6)) * middle;
      map[count++] = value;
      map[count++] = -value;
    }
  }
  map[count++] = 0;
  map[count++] = 1;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const std::array<float, 16>& Nf4Codebook() {
  static constexpr std::array<float, 16> kCodebook = {-1.0f,
                                                      -0.6961928009986877f,
                                                      -0.5250730514526367f,
                                                      -0.39491748809814453f,
                                                      -0.28444138169288635f,
                                                      -0.18477343022823334f,
                                                      -0.09105003625154495f,
                                                      0.0f,
                                                      0.07958029955625534f,
                                                      0.16093020141124725f,
                                                      0.24611230194568634f,
                                                      0.33791524171829224f,
                                                      0.44070982933044434f,
                                                      0.5626170039176941f,
                                                      0.7229568362236023f,
                                                      1.0f};
  return kCodebook;
}

const std::array<float, 256>& Nf4DynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap();
  return map;
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
    for (uint64_t i = 0; i < count; i += 2) {
      const uint8_t high = Code(values[begin + i] * inverse);
      const uint8_t low = i + 1 < count ? Code(values[begin + i + 1] * inverse) : 0;
      codes[(begin + i) / 2] = static_cast<uint8_t>(high << 4 | low);
    }
  }
}

void EncodeNf4(const float* values, uint64_t elements, Nf4Parts& out) {
  const Nf4Sizes sizes = Nf4SizesOf(elements);
  std::vector<float> absmax(sizes.blocks);
  EncodeNf4Plain(values, elements, out.codes, absmax.data());
  double sum = 0;
  for (float value : absmax) sum += value;
  out.nested_offset = sizes.blocks == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(sizes.blocks));
  for (float& value : absmax) value -= out.nested_offset;
  const auto& map = Nf4DynamicMap();
  for (uint64_t block = 0; block < sizes.nested_blocks; ++block) {
    const uint64_t begin = block * kNestedBlock, count = std::min(kNestedBlock, sizes.blocks - begin);
    const float largest = LargestMagnitude(absmax.data() + begin, count);
    out.nested_absmax[block] = largest;
    const float inverse = largest == 0 ? 0.0f : 1.0f / largest;
    for (uint64_t i = 0; i < count; ++i) out.absmax_codes[begin + i] = DynamicCode(absmax[begin + i] * inverse, map);
  }
}

void DecodeNf4(const uint8_t* codes, const float* absmax, uint64_t elements, float* out) {
  const auto& codebook = Nf4Codebook();
  for (uint64_t i = 0; i < elements; ++i) {
    const uint8_t code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    out[i] = codebook[code] * absmax[i / kBlock];
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
