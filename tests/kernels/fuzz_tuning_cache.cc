// Any text is a file of this machine or none; what was read is written and read back the same.
#include <cstdint>
#include <string_view>

#include "kernels/cuda/tuning_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const hone::cuda::TuningTable table = hone::cuda::ParseTuning(text, "card");
  const std::string again = hone::cuda::FormatTuning("card", table);
  if (hone::cuda::ParseTuning(again, "card").size() != table.size()) __builtin_trap();
  return 0;
}
