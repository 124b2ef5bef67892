// What a model source is, as one JSON object: family, configuration, tokenizer, tensors. Opens files, computes nothing.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

absl::StatusOr<nlohmann::ordered_json> InspectModel(const std::string& source);

}  // namespace hone
