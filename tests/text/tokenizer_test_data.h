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

// FNV-1a, 64 bits, as 16 hex digits.
std::string Fnv(std::string_view bytes);
std::string FnvIds(const std::vector<int32_t>& ids);

}  // namespace hone
