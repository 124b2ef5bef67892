#include "server/worker_call.h"

#include <memory>

#include "proto/base/status.h"
#include "server/errors.h"

namespace hone {
namespace {

using ReadResult = WorkerProcess::ReadResult;
constexpr std::chrono::milliseconds kTick(200);
constexpr std::chrono::milliseconds kExitGrace(2000);

absl::Status Converse(const WorkerCall& call, WorkerProcess* worker, v1::Done* done) {
  v1::ToWorker assign;
  *assign.mutable_assign() = call.assign;
  HONE_RETURN_IF_ERROR(worker->Send(assign));
  for (const v1::ToWorker& message : call.then) HONE_RETURN_IF_ERROR(worker->Send(message));
  if (!call.then.empty()) worker->CloseSending();
  const auto deadline = std::chrono::steady_clock::now() + call.timeout;
  v1::FromWorker message;
  while (true) {
    if (call.cancelled && call.cancelled()) return absl::CancelledError("the call was given up");
    if (std::chrono::steady_clock::now() > deadline) {
      return absl::DeadlineExceededError("the worker did not answer in time");
    }
    HONE_ASSIGN_OR_RETURN(const ReadResult result, worker->Read(kTick, &message));
    if (result == ReadResult::kNothing) continue;
    if (result == ReadResult::kEnd) return absl::UnavailableError("ended without an answer");
    if (message.has_done()) {
      *done = message.done();
      return absl::OkStatus();
    }
    if (!message.has_hello() && call.on_message) HONE_RETURN_IF_ERROR(call.on_message(message));
  }
}

}  // namespace

absl::Status StatusOfDone(const v1::Done& done) {
  if (done.code() == 0) return absl::OkStatus();
  const bool known = done.code() > 0 && done.code() <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  const auto code = known ? static_cast<absl::StatusCode>(done.code()) : absl::StatusCode::kUnknown;
  return WithField(absl::Status(code, done.message()), done.field());
}

absl::StatusOr<v1::Done> CallWorker(const WorkerCall& call) {
  HONE_ASSIGN_OR_RETURN(std::unique_ptr<WorkerProcess> worker, WorkerProcess::Start(call.options));
  v1::Done done;
  const absl::Status talked = Converse(call, worker.get(), &done);
  if (talked.ok()) {
    worker->Wait(kExitGrace);
    HONE_RETURN_IF_ERROR(StatusOfDone(done));
    return done;
  }
  const bool crashed = absl::IsUnavailable(talked) || absl::IsDataLoss(talked);
  const WorkerExit exit = worker->Wait(crashed ? kExitGrace : std::chrono::milliseconds(0));
  if (!crashed) return talked;
  return WithReason(absl::UnavailableError(ToAbsl(StrCat("the worker ", exit.text, " before it answered"))),
                    "WORKER_CRASHED");
}

}  // namespace hone
