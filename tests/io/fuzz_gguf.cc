// Any bytes as a GGUF file: parsed or refused; then everything that reads metadata runs over it.
#include <cstdint>
#include <string_view>

#include "engine/io/gguf.h"
#include "engine/io/gguf_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto file = hone::GgufFile::Parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  uint64_t sum = 0;
  for (const hone::GgufTensor& tensor : file->tensors()) {
    for (unsigned char byte : tensor.bytes) sum += byte;
  }
  for (const auto& [key, value] : file->metadata()) {
    sum += file->String(key).ok() + file->Integer(key).ok() + file->Float(key).ok() + file->Bool(key).ok();
    sum += file->Strings(key).ok() + file->Integers(key).ok() + file->Floats(key).ok();
  }
  sum += hone::DecoderConfigFromGguf(*file).ok();
  sum += hone::VocabularyFromGguf(*file).ok();
  sum += hone::ChatTemplateFromGguf(*file).has_value();
  [[maybe_unused]] static volatile uint64_t sink;
  sink = sum;
  return 0;
}
