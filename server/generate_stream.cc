#include "server/generate_stream.h"

#include <sys/stat.h>

#include <chrono>

#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "server/errors.h"
#include "server/worker_call.h"

namespace hone {
namespace {

constexpr int kMaxRequests = 256;
constexpr std::chrono::milliseconds kRoomTick(200);

}  // namespace

StreamPump<v1::GenerateModelResponse>::Next GeneratePump::Produce(v1::GenerateModelResponse* response,
                                                                  absl::Status* status) {
  if (!begun_) {
    begun_ = true;
    if (context_->draining) {
      *status = DrainingError();
      return Next::kEnd;
    }
    const auto self = std::static_pointer_cast<GeneratePump>(weak_.lock());
    if (!context_->sessions->Post([self] { self->Serve(); })) {
      *status = Overloaded();
      return Next::kEnd;
    }
  }
  std::lock_guard lock(queue_mutex_);
  if (!queue_.empty()) {
    *response->mutable_chunk() = std::move(queue_.front());
    queue_.pop_front();
    room_.notify_all();
    return Next::kMessage;
  }
  if (!ended_.has_value()) return Next::kWait;
  *status = *ended_;
  return Next::kEnd;
}

void GeneratePump::End() {
  std::lock_guard lock(queue_mutex_);
  over_ = true;
  room_.notify_all();
}

bool GeneratePump::gone() {
  if (cancelled() || context_->stopping) return true;
  std::lock_guard lock(queue_mutex_);
  return over_;
}

void GeneratePump::Serve() {
  const absl::Status status =
      gone() ? absl::CancelledError("the call was given up") : Guarded([this] { return Converse(); });
  {
    std::lock_guard lock(queue_mutex_);
    ended_ = context_->stopping ? DrainingError() : status;
  }
  Kick();
}

absl::StatusOr<v1::Run> GeneratePump::MakeRun() const {
  v1::Run run;
  run.set_reference_cache_dir(context_->layout->ReferenceCache());
  if (request_.requests_size() == 0) return WithField(InvalidArgument("requests: at least one is needed"), "requests");
  if (request_.requests_size() > kMaxRequests) {
    return WithField(InvalidArgument("requests: at most ", kMaxRequests), "requests");
  }
  if (request_.job().empty()) {
    if (request_.model().empty()) {
      return WithField(InvalidArgument("model: name a model of the registry, a path, or a job"), "model");
    }
    auto path = context_->admission->ModelPath(request_.model());
    if (!path.ok()) return WithField(path.status(), "model");
    if (IsModelPath(request_.model()) && request_.model()[0] == '/' && !UserMayRead(uid_, request_.model())) {
      return WithReason(
          WithField(absl::PermissionDeniedError(ToAbsl(StrCat("model: user ", uid_, " may not read it"))), "model"),
          "NOT_READABLE");
    }
    run.set_model_path(*path);
    run.mutable_spec()->mutable_model()->set_source(*path);
    return run;
  }
  HONE_ASSIGN_OR_RETURN(*run.mutable_job_id(), context_->store->ResolveJobName(request_.job()));
  HONE_ASSIGN_OR_RETURN(const v1::Job job, context_->store->GetJob(run.job_id()));
  *run.mutable_spec() = job.resolved_spec();
  run.set_model_path(job.resolved_spec().model().source());
  if (request_.base_only()) return run;
  const std::string adapter = context_->layout->Adapter(run.job_id());
  struct stat info;
  if (stat(adapter.c_str(), &info) != 0) {
    return WithReason(FailedPrecondition("job ", run.job_id(), " has no adapter yet"), "NO_ADAPTER");
  }
  run.set_adapter_path(adapter);
  return run;
}

absl::Status GeneratePump::Converse() {
  WorkerCall call;
  call.options.program = context_->worker_program;
  call.assign.set_verb(v1::VERB_GENERATE);
  HONE_ASSIGN_OR_RETURN(*call.assign.add_runs(), MakeRun());
  const bool use_adapter = !call.assign.runs(0).adapter_path().empty();
  for (int i = 0; i < request_.requests_size(); ++i) {
    v1::GenerateRequest* request = call.then.emplace_back().mutable_generate();
    *request = request_.requests(i);
    request->set_request(static_cast<uint64_t>(i));
    request->set_use_adapter(use_adapter);
  }
  call.cancelled = [this] { return gone(); };
  call.on_message = [this](const v1::FromWorker& message) {
    return message.has_chunk() ? Push(message.chunk()) : absl::OkStatus();
  };
  return CallWorker(call).status();
}

absl::Status GeneratePump::Push(const v1::GenerateChunk& chunk) {
  {
    std::unique_lock lock(queue_mutex_);
    // A client that does not read holds the worker up, not the daemon's memory.
    while (queue_.size() >= kMaxPending) {
      room_.wait_for(lock, kRoomTick);
      if (over_ || context_->stopping || cancelled()) return absl::CancelledError("the call was given up");
    }
    queue_.push_back(chunk);
  }
  Kick();
  return absl::OkStatus();
}

}  // namespace hone
