// bitsandbytes' dynamic 8-bit maps inside a kernel (kernels/dynamic_map.h has the values and the rule).
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/dynamic_map.h"

namespace hone::cuda {

// A map as a kernel's argument.
struct DynamicMap256 {
  float v[256];
  explicit DynamicMap256(const DynamicMap& map) { std::copy(map.begin(), map.end(), v); }
};

// The entry of `map` (in shared memory) nearest to x; hone::NearestCode step by step.
__device__ inline uint8_t NearestCode(float x, const float* map) {
  int below = 0;
#pragma unroll
  for (int step = 128; step > 0; step /= 2) {
    if (map[below + step - 1] < x) below += step;
  }
  if (below == 255 && map[255] < x) return 255;
  if (below == 0) return 0;
  const float middle = __fmul_rn(__fadd_rn(map[below - 1], map[below]), 0.5f);
  return static_cast<uint8_t>(x > middle ? below : below - 1);
}

}  // namespace hone::cuda
