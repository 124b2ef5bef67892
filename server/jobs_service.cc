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
constexpr size_t kMaxLabels = 32;
constexpr size_t kMaxLabelBytes = 63;
constexpr int kMaxAfter = 64;
constexpr uint32_t kMaxRetries = 1000;
constexpr size_t kMaxHoldMessage = 500;

absl::Status CheckRequestId(const std::string& id) {
  const bool plain = std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
  if (plain && id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return WithField(InvalidArgument("request_id: a UUID is expected"), "request_id");
}

// Of what was asked. A request without options has the digest it had before there were any.
std::string Fingerprint(const v1::CreateJobRequest& request) {
  std::string text = StrCat(CanonicalSpecBytes(request.spec()), "|", request.priority());
  const v1::JobOptions& options = request.options();
  if (request.has_options()) {
    for (const std::string& after : options.after()) text += StrCat("|after ", after);
    const std::map<std::string, std::string> labels(options.labels().begin(), options.labels().end());
    for (const auto& [key, value] : labels) text += StrCat("|label ", key, "=", value);
    for (const std::string& exit : options.retry().exits()) text += StrCat("|retry ", exit);
    text += StrCat("|", options.time_limit_seconds(), "|", options.retry().max_failures(), "|", options.preemptible(),
                   "|", options.hold());
  }
  return Sha256Hex(text);
}

bool IsWord(const std::string& text, bool may_be_empty) {
  if (text.size() > kMaxLabelBytes || (text.empty() && !may_be_empty)) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.' || c == '/' || c == ':' || c == '@' || c == '+';
  });
}

absl::Status CheckLabels(const google::protobuf::Map<std::string, std::string>& labels, bool may_be_empty) {
  if (labels.size() > kMaxLabels) {
    return WithField(InvalidArgument("labels: at most ", kMaxLabels), "options.labels");
  }
  for (const auto& [key, value] : labels) {
    if (IsWord(key, false) && IsWord(value, may_be_empty)) continue;
    return WithField(
        InvalidArgument("labels: \"", ToValidUtf8(key, 80), "=", ToValidUtf8(value, 80),
                        "\": keys and values are 1 to ", kMaxLabelBytes, " letters, digits and any of - _ . / : @ +"),
        "options.labels");
  }
  return absl::OkStatus();
}

Admission::Cancelled CancelledOf(ServiceContext* context, grpc::CallbackServerContext* call) {
  return [context, call] { return context->stopping.load() || call->IsCancelled(); };
}

}  // namespace

Caller CallerOf(const ServiceContext& context, const grpc::ServerContextBase& call) {
  return context.doorman == nullptr ? Caller{-1, true} : context.doorman->Who(call.peer());
}

Readers::Client ClientOf(const ServiceContext& context, const grpc::ServerContextBase& call) {
  const Caller caller = CallerOf(context, call);
  return {caller.uid, caller.pid};
}

absl::Status MayChange(const Caller& caller, int64_t owner_uid, std::string_view what) {
  if (caller.admin || owner_uid < 0 || owner_uid == caller.uid) return absl::OkStatus();
  return WithReason(absl::PermissionDeniedError(
                        ToAbsl(StrCat(what, " belongs to user ", owner_uid, "; you are ",
                                      caller.uid < 0 ? std::string("not known") : StrCat("user ", caller.uid)))),
                    "NOT_OWNER");
}

absl::Status DrainingError() {
  return WithReason(absl::UnavailableError("the daemon is stopping; try again when it runs"), "DRAINING");
}

grpc::ServerUnaryReactor* JobsService::CreateJob(grpc::CallbackServerContext* call, const v1::CreateJobRequest* request,
                                                 v1::Job* job) {
  return RunUnary(context_->slow, call, [this, call, request, job] {
    absl::Status status = Create(*request, CallerOf(*context_, *call), CancelledOf(context_, call), job);
    if (!request->validate_only()) context_->metrics->CountSubmit(status.ok() ? "OK" : ReasonOf(status));
    return status;
  });
}

absl::StatusOr<v1::JobOptions> JobsService::CheckOptions(const v1::JobOptions& options) const {
  v1::JobOptions checked = options;
  HONE_RETURN_IF_ERROR(CheckLabels(options.labels(), false));
  if (options.after_size() > kMaxAfter) {
    return WithField(InvalidArgument("after: at most ", kMaxAfter, " jobs"), "options.after");
  }
  std::set<std::string> after;
  for (const std::string& name : options.after()) {
    const absl::StatusOr<std::string> id = context_->store->ResolveJobName(name);
    if (!id.ok()) return WithField(Annotate(id.status(), "after"), "options.after");
    after.insert(*id);
  }
  checked.clear_after();
  for (const std::string& id : after) checked.add_after(id);
  if (options.retry().max_failures() > kMaxRetries) {
    return WithField(InvalidArgument("retry.max_failures: at most ", kMaxRetries), "options.retry.max_failures");
  }
  for (const std::string& exit : options.retry().exits()) {
    if (exit == "crashed" || exit == "hung" || (exit == "none" && options.retry().exits_size() == 1)) continue;
    return WithField(InvalidArgument("retry.exits: \"", ToValidUtf8(exit, 40), "\"; known: crashed, hung, none"),
                     "options.retry.exits");
  }
  return checked;
}

absl::Status JobsService::Create(const v1::CreateJobRequest& request, const Caller& caller,
                                 const Admission::Cancelled& cancelled, v1::Job* job) {
  if (context_->draining) return DrainingError();
  HONE_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return WithField(InvalidArgument("priority: from -", kMaxPriority, " to ", kMaxPriority), "priority");
  }
  const std::string fingerprint = Fingerprint(request);
  const std::string& id = request.request_id();
  if (id.empty() || request.validate_only()) return CreateNew(request, caller, fingerprint, cancelled, job);
  {
    std::unique_lock lock(mutex_);
    while (under_way_.contains(id)) {
      done_.wait_for(lock, kFollowerTick);
      if (cancelled()) return absl::CancelledError("the call was given up");
    }
    under_way_.insert(id);
  }
  absl::Status status = [&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(std::optional<v1::Job> earlier, context_->store->FindRequest(id, fingerprint));
    if (!earlier.has_value()) return CreateNew(request, caller, fingerprint, cancelled, job);
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

absl::Status JobsService::CreateNew(const v1::CreateJobRequest& request, const Caller& caller,
                                    const std::string& fingerprint, const Admission::Cancelled& cancelled,
                                    v1::Job* job) {
  NewJob made;
  made.received_us = NowMicros();
  made.spec = request.spec();
  HONE_ASSIGN_OR_RETURN(made.options, CheckOptions(request.options()));
  HONE_ASSIGN_OR_RETURN(made.resolved_spec, context_->admission->Resolve(request.spec(), caller.uid));
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
  made.owner_uid = caller.uid;
  made.max_unfinished = context_->max_unfinished;
  made.max_unfinished_of_owner = caller.admin ? 0 : context_->max_unfinished_of_owner;
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
    JobFilter filter;
    for (const int state : request->states()) filter.states.push_back(static_cast<v1::JobState>(state));
    HONE_RETURN_IF_ERROR(CheckLabels(request->labels(), false));
    filter.labels.insert(request->labels().begin(), request->labels().end());
    filter.name_contains = request->name_contains();
    if (request->has_owner_uid()) filter.owner_uid = request->owner_uid();
    HONE_ASSIGN_OR_RETURN(JobPage page, context_->store->ListJobs(request->page_size(), request->page_token(), filter));
    for (v1::Job& job : page.jobs) {
      job.clear_result_json();  // a page of them could be too long for a message; GetJob has it
      *response->add_jobs() = std::move(job);
    }
    response->set_next_page_token(page.next_page_token);
    return absl::OkStatus();
  });
}

template <typename Request>
grpc::ServerUnaryReactor* JobsService::Act(grpc::CallbackServerContext* call, const Request* request, v1::Job* job,
                                           std::function<absl::Status(const std::string& id)> action) {
  return RunUnary(context_->quick, call, [this, call, request, job, action = std::move(action)]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const std::string id, context_->store->ResolveJobName(request->name()));
    HONE_ASSIGN_OR_RETURN(const JobHead head, context_->store->GetJobHead(id));
    HONE_RETURN_IF_ERROR(MayChange(CallerOf(*context_, *call), head.owner_uid, StrCat("job ", id)));
    HONE_RETURN_IF_ERROR(action(id));
    HONE_ASSIGN_OR_RETURN(*job, context_->store->GetJob(id));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* JobsService::CancelJob(grpc::CallbackServerContext* call, const v1::CancelJobRequest* request,
                                                 v1::Job* job) {
  return Act(call, request, job, [this](const std::string& id) { return context_->scheduler->Cancel(id); });
}

grpc::ServerUnaryReactor* JobsService::PauseJob(grpc::CallbackServerContext* call, const v1::PauseJobRequest* request,
                                                v1::Job* job) {
  return Act(call, request, job, [this](const std::string& id) { return context_->scheduler->Pause(id); });
}

grpc::ServerUnaryReactor* JobsService::ResumeJob(grpc::CallbackServerContext* call, const v1::ResumeJobRequest* request,
                                                 v1::Job* job) {
  return Act(call, request, job, [this](const std::string& id) { return context_->scheduler->Resume(id); });
}

grpc::ServerUnaryReactor* JobsService::HoldJob(grpc::CallbackServerContext* call, const v1::HoldJobRequest* request,
                                               v1::Job* job) {
  return Act(call, request, job, [this, request](const std::string& id) {
    return context_->scheduler->Hold(id, ToValidUtf8(request->message(), kMaxHoldMessage));
  });
}

grpc::ServerUnaryReactor* JobsService::ReleaseJob(grpc::CallbackServerContext* call,
                                                  const v1::ReleaseJobRequest* request, v1::Job* job) {
  return Act(call, request, job, [this](const std::string& id) { return context_->scheduler->Release(id); });
}

grpc::ServerUnaryReactor* JobsService::UpdateJob(grpc::CallbackServerContext* call, const v1::UpdateJobRequest* request,
                                                 v1::Job* job) {
  return Act(call, request, job, [this, request](const std::string& id) -> absl::Status {
    HONE_RETURN_IF_ERROR(CheckLabels(request->labels(), true));
    JobUpdate update;
    update.labels.insert(request->labels().begin(), request->labels().end());
    if (request->has_priority()) {
      if (request->priority() < -kMaxPriority || request->priority() > kMaxPriority) {
        return WithField(InvalidArgument("priority: from -", kMaxPriority, " to ", kMaxPriority), "priority");
      }
      update.priority = request->priority();
    }
    HONE_RETURN_IF_ERROR(context_->store->Update(id, {}, update));
    HONE_RETURN_IF_ERROR(Move(id, *request));
    context_->scheduler->Wake();
    return absl::OkStatus();
  });
}

absl::Status JobsService::Move(const std::string& id, const v1::UpdateJobRequest& request) {
  const int wishes = !request.before().empty() + !request.behind().empty() + request.first();
  if (wishes == 0) return absl::OkStatus();
  if (wishes > 1) return WithField(InvalidArgument("before, behind, first: give one of them"), "before");
  QueuePlace place;
  if (!request.first()) {
    const bool before = !request.before().empty();
    place.kind = before ? QueuePlace::Kind::kBefore : QueuePlace::Kind::kBehind;
    HONE_ASSIGN_OR_RETURN(place.other, context_->store->ResolveJobName(before ? request.before() : request.behind()));
    if (place.other == id) return WithField(InvalidArgument("before, behind: another job is expected"), "before");
  }
  return context_->store->MoveJob(id, place);
}

grpc::ServerWriteReactor<v1::JobEvent>* JobsService::WatchJob(grpc::CallbackServerContext* call,
                                                              const v1::WatchJobRequest* request) {
  return StreamPump<v1::JobEvent>::Create<WatchPump>(context_->streams, call, context_, ClientOf(*context_, *call),
                                                     request->name(), request->after_sequence());
}

grpc::ServerWriteReactor<v1::LogChunk>* JobsService::GetJobLogs(grpc::CallbackServerContext* call,
                                                                const v1::GetJobLogsRequest* request) {
  return StreamPump<v1::LogChunk>::Create<LogPump>(context_->streams, call, context_, ClientOf(*context_, *call),
                                                   request->name(), request->follow());
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

grpc::ServerWriteReactor<v1::ArtifactChunk>* JobsService::ReadArtifact(grpc::CallbackServerContext* call,
                                                                       const v1::ReadArtifactRequest* request) {
  return StreamPump<v1::ArtifactChunk>::Create<ArtifactPump>(context_->streams, call, context_,
                                                             ClientOf(*context_, *call), *request);
}

grpc::ServerUnaryReactor* JobsService::PlanJob(grpc::CallbackServerContext* call, const v1::PlanJobRequest* request,
                                               v1::PlanJobResponse* response) {
  return RunUnary(context_->slow, call, [this, call, request, response] {
    return Plan(*request, CallerOf(*context_, *call), CancelledOf(context_, call), response);
  });
}

absl::Status JobsService::Plan(const v1::PlanJobRequest& request, const Caller& caller,
                               const Admission::Cancelled& cancelled, v1::PlanJobResponse* response) {
  if (context_->draining) return DrainingError();
  if (request.device().size() > 100) return FieldError("device", "cpu, cuda or the name of a card");
  HONE_ASSIGN_OR_RETURN(*response->mutable_resolved_spec(), context_->admission->Resolve(request.spec(), caller.uid));
  HONE_ASSIGN_OR_RETURN(Planned planned,
                        context_->admission->Plan(response->resolved_spec(), cancelled, request.device()));
  *response->mutable_plan() = std::move(planned.plan);
  response->set_report_json(std::move(planned.report_json));
  return absl::OkStatus();
}

}  // namespace hone
