// What a gRPC status tells a person: an absl::Status with the daemon's reason and field as payloads, and the exit code
// that scripts see. Not here: printing (terminal.h).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace hone {

// The exit codes of `hone`, for every command. Only `hone submit` gives kDoesNotFit.
enum ExitCode : int {
  kExitOk = 0,           // done; a watched job succeeded
  kExitFailed = 1,       // the job or the command failed
  kExitUsage = 2,        // wrong flags, a wrong job file, a wrong request
  kExitStopped = 3,      // the watched job was cancelled or paused
  kExitAuth = 4,         // not allowed to talk to the daemon
  kExitUnreachable = 5,  // no daemon answers
  kExitDoesNotFit = 6,   // the plan does not fit the device's memory
  kExitTimeout = 7,      // --timeout passed
  kExitDetached = 130,   // Ctrl-C: what was watched goes on
};

// Carries google.rpc.ErrorInfo and BadRequest over as payloads that FieldOf() (proto/spec) and ErrorReason() read.
absl::Status FromGrpcStatus(const grpc::Status& status);
// The daemon's stable reason, such as PLAN_DOES_NOT_FIT; "" if it gave none.
std::string ErrorReason(const absl::Status& status);
// One sentence on what to do next, or "".
std::string ErrorHint(const absl::Status& status);
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace hone
