// One question to a worker of its own, answered on the calling thread: plan, validate, inspect, generate.
// Not here: training (job_runner).
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/worker.pb.h"
#include "server/worker_process.h"

namespace hone {

struct WorkerCall {
  WorkerOptions options;
  v1::Assign assign;
  std::vector<v1::ToWorker> then;  // sent after Assign; afterwards the channel to the worker is closed
  // Each message that is neither Hello nor Done. An error ends the worker and is the answer.
  std::function<absl::Status(const v1::FromWorker&)> on_message;
  std::function<bool()> cancelled;  // asked a few times a second; null: never
  std::chrono::milliseconds timeout = std::chrono::minutes(30);
};

// The worker's Done, or its error as a status with the field at fault. UNAVAILABLE with reason WORKER_CRASHED if it
// ended without one, CANCELLED, DEADLINE_EXCEEDED.
absl::StatusOr<v1::Done> CallWorker(const WorkerCall& call);

// Done as a status: OK, or the worker's error.
absl::Status StatusOfDone(const v1::Done& done);

}  // namespace hone
