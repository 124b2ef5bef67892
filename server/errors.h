// The one place where an absl::Status becomes what a gRPC client sees: google.rpc.Status with exactly one ErrorInfo
// {reason, domain "hone.dev"} and, where a field of the request is at fault, a BadRequest naming it. Reasons are
// UPPER_SNAKE_CASE and stable; a status without one gets its code's name.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hone {

// The same status with a reason for programs.
absl::Status WithReason(absl::Status status, std::string_view reason);
std::string ReasonOf(const absl::Status& status);
// The same status with the path of the field at fault (proto/spec's payload).
absl::Status WithField(absl::Status status, std::string_view field);
// At most `max_bytes`, and valid UTF-8: what is not becomes U+FFFD. For text that may quote a stranger's bytes.
std::string ToValidUtf8(std::string_view text, size_t max_bytes);

grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace hone
