#include "kernels/dynamic_map.h"

#include <algorithm>
#include <cmath>

namespace hone {
namespace {

// Decade i holds the middles of `steps` equal steps from 0.1 to 1, times 10^(i - 6): 2^i of both signs, or 2^(i + 1);
// then 0 and 1. All in fp32, in the order in which torch computes it, since checkpoints hold these very bits.
DynamicMap MakeMap(bool with_signs) {
  DynamicMap map{};
  size_t count = 0;
  for (int i = 0; i < 7; ++i) {
    const int steps = 1 << (with_signs ? i : i + 1);
    for (int k = 0; k < steps; ++k) {
      const auto boundary = [&](int j) {  // torch.linspace(0.1, 1, steps + 1) in fp32: from both ends to the middle
        const float start = 0.1f, end = 1.0f, step = (end - start) / static_cast<float>(steps);
        return j < (steps + 1) / 2 ? start + step * static_cast<float>(j) : end - step * static_cast<float>(steps - j);
      };
      const float middle = (boundary(k) + boundary(k + 1)) / 2.0f;
      const float value = static_cast<float>(std::pow(10.0, i - 6)) * middle;
      map[count++] = value;
      if (with_signs) map[count++] = -value;
    }
  }
  map[count++] = 0;
  map[count++] = 1;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const DynamicMap& SignedDynamicMap() {
  static const DynamicMap map = MakeMap(true);
  return map;
}

const DynamicMap& UnsignedDynamicMap() {
  static const DynamicMap map = MakeMap(false);
  return map;
}

uint8_t NearestCode(float x, const DynamicMap& map) {
  // Eight halvings instead of std::lower_bound: the same steps as on the device, whatever x is.
  int below = 0;  // entries known to be less than x
  for (int step = 128; step > 0; step /= 2) {
    if (map[below + step - 1] < x) below += step;
  }
  if (below == 255 && map[255] < x) return 255;
  if (below == 0) return 0;
  const float middle = (map[below - 1] + map[below]) * 0.5f;
  return static_cast<uint8_t>(x > middle ? below : below - 1);
}

}  // namespace hone
