// Any text as adapter_config.json: what is accepted has a rank and scales that can be computed with.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "engine/io/peft.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto metadata = hone::ParsePeftConfig({reinterpret_cast<const char*>(data), size});
  if (!metadata.ok()) return 0;
  if (metadata->r < 1) __builtin_trap();
  for (const auto& [pattern, r] : metadata->rank_pattern) {
    if (r < 1) __builtin_trap();
  }
  const double scale = hone::LoraScale(*metadata, 1, hone::LinearKind::kUp, metadata->r);
  if (!(scale > 0) || !std::isfinite(scale)) __builtin_trap();
  return 0;
}
