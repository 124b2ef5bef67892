// What the files of the store share: messages in and out of columns, page tokens, the row of a job. Private to
// server/store.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>

#include "google/protobuf/timestamp.pb.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "server/store/store.h"

namespace hone {

template <typename Message>
absl::Status Parse(const std::string& bytes, Message* message) {
  if (!message->ParseFromString(bytes)) return DataLoss("store: a ", message->GetTypeName(), " cannot be read back");
  return absl::OkStatus();
}

// Page tokens are an ordinal with a letter for the list they belong to.
inline std::string PageToken(char list, int64_t ordinal) { return StrCat(list, ordinal); }

inline absl::StatusOr<int64_t> ParsePageToken(char list, const std::string& token) {
  int64_t ordinal = 0;
  const char* end = token.data() + token.size();
  if (token.size() > 1 && token[0] == list) {
    const auto parsed = std::from_chars(token.data() + 1, end, ordinal);
    if (parsed.ec == std::errc() && parsed.ptr == end && ordinal > 0) return ordinal;
  }
  return FieldError("page_token", "not a token that this list gave");
}

inline absl::StatusOr<int> PageSize(int asked) {
  constexpr int kDefaultPageSize = 50;
  constexpr int kMaxPageSize = 500;
  if (asked < 0) return FieldError("page_size", "must not be negative");
  return asked == 0 ? kDefaultPageSize : std::min(asked, kMaxPageSize);
}

inline google::protobuf::Timestamp ToTimestamp(int64_t us) {
  google::protobuf::Timestamp time;
  time.set_seconds(us / 1'000'000);
  time.set_nanos(static_cast<int32_t>(us % 1'000'000) * 1000);
  return time;
}

// What a change needs to know of the job it changes.
struct Store::Row {
  std::string id;
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  uint64_t last_sequence = 0;
  int64_t failures = 0;
  uint64_t checkpoint_step = 0;
  uint32_t attempt = 0;  // number of the newest, 0: none yet
  std::string reason;
  int64_t blocked = 0;  // jobs it waits for
  int64_t owner_uid = -1;
};

}  // namespace hone
