#include "tests/text/tokenizer_test_data.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/io/gguf.h"
#include "engine/io/gguf_config.h"
#include "proto/base/file.h"

namespace hone {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::unique_ptr<Tokenizer> Checked(absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer) {
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

}  // namespace

std::string GoldenText(const std::string& name) { return ReadFile(std::string(HONE_GOLDEN) + "/text/" + name).value(); }
std::string TestDataFolder() { return Environment("HONE_TEST_DATA"); }
std::string SmolLm2Path() { return Environment("HONE_TEST_SMOLLM2"); }

std::unique_ptr<Tokenizer> LoadTestTokenizer(const std::string& name) {
  if (name == "smollm2") {
    if (SmolLm2Path().empty()) return nullptr;
    absl::StatusOr<GgufFile> file = GgufFile::Open(SmolLm2Path());
    EXPECT_TRUE(file.ok()) << file.status();
    if (!file.ok()) return nullptr;
    absl::StatusOr<GgufVocabulary> vocabulary = VocabularyFromGguf(*file);
    EXPECT_TRUE(vocabulary.ok()) << vocabulary.status();
    return vocabulary.ok() ? Checked(Tokenizer::FromGguf(*std::move(vocabulary))) : nullptr;
  }
  if (TestDataFolder().empty()) return nullptr;
  std::string folder = TestDataFolder() + "/tokenizers/" + name;
  if (name == "mistral") folder += "-7b-instruct-v0.2";
  if (name == "stories260k") folder = TestDataFolder() + "/models/stories260K";
  return Checked(Tokenizer::FromJson(ReadFile(folder + "/tokenizer.json").value(),
                                     ReadFile(folder + "/tokenizer_config.json").value()));
}

std::string TokenizerDigest(const Tokenizer& tokenizer, const std::string& text) {
  uint64_t hash = 0xCBF29CE484222325u;
  auto add_byte = [&](uint32_t byte) { hash = (hash ^ (byte & 255)) * 0x100000001B3u; };
  auto add_id = [&](int32_t id) {
    for (int shift = 0; shift < 32; shift += 8) add_byte(static_cast<uint32_t>(id) >> shift);
  };
  const Encoding plain = tokenizer.Encode(text, false).value();
  const Encoding special = tokenizer.Encode(text, true).value();
  for (const Encoding* encoding : {&plain, &special}) {
    for (const int32_t id : encoding->ids) add_id(id);
    add_id(-1);
  }
  for (const bool skip : {false, true}) {
    for (const char c : tokenizer.Decode(special.ids, skip)) add_byte(static_cast<uint8_t>(c));
    add_byte(255);
  }
  static constexpr char kHex[] = "0123456789abcdef";
  std::string digits;
  for (int shift = 60; shift >= 16; shift -= 4) digits += kHex[hash >> shift & 15];
  return digits;
}

}  // namespace hone
