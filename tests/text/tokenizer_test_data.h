// Where the tokenizer tests find their material: fixtures in the tree, foreign files through HONE_TEST_DATA and
// HONE_TEST_SMOLLM2 (tests skip where those are not set).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace hone {

std::string GoldenText(const std::string& name);  // tests/golden/text/NAME
std::string TestDataFolder();                     // HONE_TEST_DATA, or empty
std::string SmolLm2Path();                        // HONE_TEST_SMOLLM2, or empty

// smollm2, qwen2, qwen3, mistral, stories260k. Null where its file cannot be had.
std::unique_ptr<Tokenizer> LoadTestTokenizer(const std::string& name);

// What tests/golden/make_tokenizer.py writes for one string. The text must encode.
std::string TokenizerDigest(const Tokenizer& tokenizer, const std::string& text);

}  // namespace hone
