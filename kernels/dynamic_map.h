// bitsandbytes' dynamic 8-bit maps: 256 values in [-1, 1] (signed) or [0, 1], ascending, relative precision nearly
// constant over seven decades. NF4's scales and 8-bit optimiser states are stored by them.
#pragma once

#include <array>
#include <cstdint>

namespace hone {

using DynamicMap = std::array<float, 256>;

const DynamicMap& SignedDynamicMap();
const DynamicMap& UnsignedDynamicMap();

// The entry nearest to x; the middle of two goes down. NaN gives some code.
uint8_t NearestCode(float x, const DynamicMap& map);

}  // namespace hone
