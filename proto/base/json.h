// JSON from strangers: nlohmann::json with limits on size and depth, errors with the byte offset.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;
};

// Strict JSON (RFC 8259), UTF-8 checked, duplicate keys in one object refused.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Whether `text` is valid UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). On false *offset is the first bad
// byte.
bool IsValidUtf8(std::string_view text, size_t* offset = nullptr);

}  // namespace hone
