#include "server/jobs_service.h"

#include <algorithm>
#include <chrono>

#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "server/errors.h"
#include "server/file_access.h"
#include "server/job_streams.h"
#include "server/reactors.h"
#include "server/store/states.h"

namespace hone {
namespace {

constexpr int kMaxPriority = 1000;
constexpr size_t kMaxRequestIdBytes = 128;
constexpr size_t kMaxListedFiles = 10000;
constexpr size_t kMaxNameBytes = 200;
constexpr std::chrono::milliseconds kFollowerTick(100);

absl::Status CheckRequestId(const std::string& id) {
  const bool plain = std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
  if (plain && id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return WithField(InvalidArgument("request_id: a UUID is expected"), "request_id");
}

std::string Fingerprint(const v1::CreateJobRequest& request) {
  return Sha256Hex(StrCat(CanonicalSpecBytes(request.spec()), "|", request.priority()));
}

Admission::Cancelled CancelledOf(ServiceContext* context, grpc::CallbackServerContext* call) {
  return [context, call] { return context->stopping.load() || call->IsCancelled(); };
}

}  // namespace

absl::Status DrainingError() {
  return WithReason(absl::UnavailableError("the daemon is stopping; try again when it runs"), "DRAINING");
}

grpc::ServerUnaryReactor* JobsService::CreateJob(grpc::CallbackServerContext* call, const v1::CreateJobRequest* request,
                                                 v1::Job* job) {
  return RunUnary(context_->slow, call, [this, call, request, job] {
    const absl::Status status = Create(*request, CancelledOf(context_, call), job);
    if (!request->validate_only()) context_->metrics->CountSubmit(status.ok() ? "OK" : ReasonOf(status));
    return status;
  });
}

absl::Status JobsService::Create(const v1::CreateJobRequest& request, const Admission::Cancelled& cancelled,
                                 v1::Job* job) {
  if (context_->draining) return DrainingError();
  HONE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return WithField(InvalidArgument("priority: from -", kMaxPriority, " to ", kMaxPriority), "priority");
  }
  const std::string fingerprint = Fingerprint(request);
  const std::string& id = request.request_id();
  if (id.empty() || request.validate_only()) return CreateNew(request, fingerprint, cancelled, job);
  {
    std::unique_lock lock(mutex_);
    while (under_way_.contains(id)) {
      done_.wait_for(lock, kFollowerTick);
      if (cancelled()) return absl::CancelledError("the call was given up");
    }
    under_way_.insert(id);
  }
  const absl::Status status = [&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(std::optional<v1::Job> earlier, context_->store->FindRequest(id, fingerprint));
    if (!earlier.has_value()) return CreateNew(request, fingerprint, cancelled, job);
    *job = *std::move(earlier);
    return absl::OkStatus();
  }();
  {
    std::lock_guard lock(mutex_);
    under_way_.erase(id);
  }
  done_.notify_all();
  return status;
}

absl::Status JobsService::CreateNew(const v1::CreateJobRequest& request, const std::string& fingerprint,
                                    const Admission::Cancelled& cancelled, v1::Job* job) {
  NewJob made;
  made.received_us = NowMicros();
  made.spec = request.spec();
  HONE_ASSIGN_OR_RETURN(made.resolved_spec, context_->admission->Resolve(request.spec()));
  HONE_ASSIGN_OR_RETURN(Planned planned, context_->admission->Plan(made.resolved_spec, cancelled));
  HONE_RETURN_IF_ERROR(Admission::CheckFits(planned.plan));
  made.plan = planned.plan;
  made.display_name = ToValidUtf8(made.resolved_spec.name(), kMaxNameBytes);
  made.priority = request.priority();
  made.warnings = std::move(planned.warnings);
  for (const std::string& advice : Advice(made.resolved_spec)) {
    if (std::find(made.warnings.begin(), made.warnings.end(), advice) == made.warnings.end()) {
      made.warnings.push_back(advice);
    }
  }
  if (request.validate_only()) {
    job->set_display_name(made.display_name);
    *job->mutable_spec() = made.spec;
    *job->mutable_resolved_spec() = made.resolved_spec;
    *job->mutable_plan() = made.plan;
    job->set_state(v1::VALIDATING);
    return absl::OkStatus();
  }
  if (context_->draining) return DrainingError();
  made.request_id = request.request_id();
  made.fingerprint = fingerprint;
  HONE_ASSIGN_OR_RETURN(CreatedJob created, context_->store->CreateJob(made));
  *job = std::move(created.job);
  context_->scheduler->Wake();
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* JobsService::GetJob(grpc::CallbackServerContext* call, const v1::GetJobRequest* request,
                                              v1::Job* job) {
  return RunUnary(context_->quick, call, [this, request, job]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, context_->store->ResolveJobName(request->name()));
    HONE_ASSIGN_OR_RETURN(*job, context_->store->GetJob(id));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* JobsService::ListJobs(grpc::CallbackServerContext* call, const v1::ListJobsRequest* request,
                                                v1::ListJobsResponse* response) {
  return RunUnary(context_->quick, call, [this, request, response]() -> absl::Status {
    std::vector<v1::JobState> states;
    for (const int state : request->states()) states.push_back(static_cast<v1::JobState>(state));
    HONE_ASSIGN_OR_RETURN(JobPage page, context_->store->ListJobs(request->page_size(), request->page_token(), states));
    for (v1::Job& job : page.jobs) {
      job.clear_result_json();  // a page of them could be too long for a message; GetJob has it
      *response->add_jobs() = std::move(job);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* JobsService::CancelJob(grpc::CallbackServerContext* call, const v1::CancelJobRequest* request,
                                                 v1::Job* job) {
  return RunUnary(context_->quick, call, [this, request, job]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, context_->store->ResolveJobName(request->name()));
    HONE_RETURN_IF_ERROR(context_->scheduler->Cancel(id));
    HONE_ASSIGN_OR_RETURN(*job, context_->store->GetJob(id));
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::JobEvent>* JobsService::WatchJob(grpc::CallbackServerContext*,
                                                              const v1::WatchJobRequest* request) {
  return StreamPump<v1::JobEvent>::Create<WatchPump>(context_->quick, context_, request->name(),
                                                     request->after_sequence());
}

grpc::ServerWriteReactor<v1::LogChunk>* JobsService::GetJobLogs(grpc::CallbackServerContext*,
                                                                const v1::GetJobLogsRequest* request) {
  return StreamPump<v1::LogChunk>::Create<LogPump>(context_->quick, context_, request->name(), request->follow());
}

grpc::ServerUnaryReactor* JobsService::ListArtifacts(grpc::CallbackServerContext* call,
                                                     const v1::ListArtifactsRequest* request,
                                                     v1::ListArtifactsResponse* response) {
  return RunUnary(context_->quick, call, [this, request, response]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, context_->store->ResolveJobName(request->name()));
    HONE_ASSIGN_OR_RETURN(v1::Job job, context_->store->GetJob(id));
    if (job.artifacts_size() > 0) {
      response->mutable_artifacts()->Swap(job.mutable_artifacts());
      return absl::OkStatus();
    }
    // Not finished: what lies there now, without digests.
    for (v1::Artifact& file : ListFiles(context_->layout->Output(id), kMaxListedFiles)) {
      *response->add_artifacts() = std::move(file);
    }
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::ArtifactChunk>* JobsService::ReadArtifact(grpc::CallbackServerContext*,
                                                                       const v1::ReadArtifactRequest* request) {
  return StreamPump<v1::ArtifactChunk>::Create<ArtifactPump>(context_->quick, context_, *request);
}

grpc::ServerUnaryReactor* JobsService::PlanJob(grpc::CallbackServerContext* call, const v1::PlanJobRequest* request,
                                               v1::PlanJobResponse* response) {
  return RunUnary(context_->slow, call,
                  [this, call, request, response] { return Plan(*request, CancelledOf(context_, call), response); });
}

absl::Status JobsService::Plan(const v1::PlanJobRequest& request, const Admission::Cancelled& cancelled,
                               v1::PlanJobResponse* response) {
  if (context_->draining) return DrainingError();
  v1::JobSpec spec = request.spec();
  if (request.device() == "cpu") {
    spec.mutable_run()->set_device(v1::DEVICE_CPU);
  } else if (!request.device().empty()) {
    return WithField(
        InvalidArgument("device: \"", ToValidUtf8(request.device(), 100),
                        "\" is not a device of this daemon; leave it empty or say cpu (any card can be planned "
                        "for with honed-worker plan --device)"),
        "device");
  }
  HONE_ASSIGN_OR_RETURN(*response->mutable_resolved_spec(), context_->admission->Resolve(spec));
  HONE_ASSIGN_OR_RETURN(Planned planned, context_->admission->Plan(response->resolved_spec(), cancelled));
  *response->mutable_plan() = std::move(planned.plan);
  response->set_report_json(std::move(planned.report_json));
  return absl::OkStatus();
}

}  // namespace hone
