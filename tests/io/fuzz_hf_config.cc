// Any text as config.json (and, after a NUL, generation_config.json): what is accepted survives being written and read.
#include <cstdint>
#include <string_view>

#include "engine/io/hf_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const std::string_view generation = cut == std::string_view::npos ? std::string_view() : text.substr(cut + 1);
  auto config = hone::ParseHfConfig(text.substr(0, cut), generation);
  if (!config.ok()) return 0;
  const std::string written = hone::WriteHfConfig(config->decoder, hone::DType::kBF16);
  auto again = hone::ParseHfConfig(written);
  if (!again.ok() || hone::WriteHfConfig(again->decoder, hone::DType::kBF16) != written) __builtin_trap();
  return 0;
}
