// Sweeps: --matrix FIELD=V1,V2 (repeatable) as one list of --set for each combination. Pure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Combination {
  std::vector<std::string> sets;  // FIELD=VALUE
  std::string name;               // "learning_rate=5e-5 r=8": for the job's name
};

// In order, the last matrix varying fastest. At most 1,000 combinations. Values are separated by commas outside of
// brackets and quotes, so that a list is a value: export=[peft],[peft,merged].
absl::StatusOr<std::vector<Combination>> ExpandMatrix(const std::vector<std::string>& matrices);

// "90", "90s", "30m", "2h", "1d" to seconds.
absl::StatusOr<uint64_t> ParseDuration(const std::string& text);

}  // namespace hone
