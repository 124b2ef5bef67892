// Any bytes as a manifest: what is accepted is exactly what would be written.
#include <cstdint>
#include <string_view>

#include "engine/io/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto manifest = hone::ParseManifest(text);
  if (manifest.ok() && hone::WriteManifest(*manifest) != text) __builtin_trap();
  return 0;
}
