// Any of our messages as JSON for people and scripts: `-o json` of the client, JSON columns of the store.
// Proto JSON with the names of the .proto files, with two differences: 64-bit integers are numbers, and enum values
// that carry their enum's prefix lose it and their case (PRECISION_BF16 is "bf16"; JobState's RUNNING stays). Fields
// without presence are always printed, so that "fits": false is seen. Numbers that JSON lacks (NaN, infinities) become
// strings.
#pragma once

#include <string>

#include "google/protobuf/message.h"

namespace hone {

std::string MessageToJson(const google::protobuf::Message& message, bool pretty = false);

}  // namespace hone
