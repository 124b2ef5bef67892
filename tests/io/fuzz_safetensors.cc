// Any bytes as a safetensors file: parsed or refused; what is accepted can be read to its last byte.
#include <cstdint>
#include <string_view>

#include "engine/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto file = hone::SafetensorsFile::Parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  uint64_t sum = 0, total = 8 + file->header().size();
  for (const hone::SafetensorsTensor& tensor : file->tensors()) {
    for (unsigned char byte : tensor.bytes) sum += byte;
    total += tensor.bytes.size();
    if (file->Find(tensor.name) != &tensor) __builtin_trap();
  }
  if (total != size) __builtin_trap();  // the tensors tile the file
  for (const auto& [key, value] : file->metadata()) {
    for (unsigned char byte : hone::EscapeForDisplay(value)) {
      if (byte < 0x20) __builtin_trap();
    }
  }
  [[maybe_unused]] static volatile uint64_t sink;
  sink = sum;
  return 0;
}
