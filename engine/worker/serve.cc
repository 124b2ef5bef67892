#include "engine/worker/serve.h"

#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "engine/io/peft.h"
#include "engine/worker/inspect.h"
#include "engine/worker/job.h"
#include "engine/worker/text_session.h"
#include "hone/v1/worker.pb.h"
#include "proto/base/build_info.h"
#include "proto/base/frame.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

// Messages in and out. Writing is done by the working thread only.
class Channel {
 public:
  explicit Channel(int fd) : fd_(fd) {}

  bool Send(const v1::FromWorker& message) {
    if (!WriteFrame(fd_, message.SerializeAsString()).ok()) gone_ = true;
    return !gone_;
  }

  absl::StatusOr<v1::Assign> ReadAssign() {
    std::string bytes;
    HONE_ASSIGN_OR_RETURN(const bool more, ReadFrame(fd_, &bytes));
    v1::ToWorker message;
    if (!more || !message.ParseFromString(bytes) || !message.has_assign())
      return DataLoss("the daemon sent no assignment");
    return message.assign();
  }

  void StartReader() {
    std::thread([this] { Read(); }).detach();
  }

  TrainControl Poll() {
    const std::lock_guard lock(mutex_);
    if (stop_) return TrainControl::kStop;
    if (!checkpoint_) return TrainControl::kContinue;
    checkpoint_ = false;
    return TrainControl::kCheckpoint;
  }

  // All requests that wait, at least one; empty: the channel closed.
  std::vector<v1::GenerateRequest> WaitRequests() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return closed_ || stop_ || !requests_.empty(); });
    std::vector<v1::GenerateRequest> taken(requests_.begin(), requests_.end());
    requests_.clear();
    return taken;
  }

 private:
  void Read() {
    std::string bytes;
    while (true) {
      const auto more = ReadFrame(fd_, &bytes);
      v1::ToWorker message;
      const bool valid = more.ok() && *more && message.ParseFromString(bytes);
      const std::lock_guard lock(mutex_);
      if (!valid) {
        closed_ = stop_ = true;
        arrived_.notify_all();
        return;
      }
      if (message.has_cancel()) stop_ = true;
      if (message.has_checkpoint()) checkpoint_ = true;
      if (message.has_generate()) requests_.push_back(message.generate());
      arrived_.notify_all();
    }
  }

  int fd_;
  bool gone_ = false;
  std::mutex mutex_;
  std::condition_variable arrived_;
  bool stop_ = false, checkpoint_ = false, closed_ = false;
  std::deque<v1::GenerateRequest> requests_;
};

class ChannelEvents : public TrainEvents {
 public:
  explicit ChannelEvents(Channel& channel) : channel_(channel) {}
  void Emit(const v1::FromWorker& event) override { channel_.Send(event); }
  TrainControl Poll() override { return channel_.Poll(); }

 private:
  Channel& channel_;
};

// Of the job's device, or of what "auto" would be.
std::string DeviceDescription(const v1::Assign& assign) {
  DeviceChoice wanted;
  wanted.threads = static_cast<int>(assign.threads());
  if (assign.runs_size() > 0) wanted.device = assign.runs(0).spec().run().device();
  const auto resolved = ResolveDevice(wanted);
  return resolved.ok() ? DescribeDevice(*resolved) : "none";
}

void SendReport(Channel& channel, const nlohmann::ordered_json& report) {
  v1::FromWorker message;
  message.set_report_json(report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  channel.Send(message);
}

absl::Status RunTrain(const v1::Assign& assign, const std::string& fault, Channel& channel, v1::Done& done) {
  const v1::Run& run = assign.runs(0);
  HONE_ASSIGN_OR_RETURN(const PreparedRun prepared, PrepareJob(run.spec(), {}));
  for (const std::string& advice : Advice(prepared.spec)) {
    v1::FromWorker warning;
    warning.set_warning(advice);
    channel.Send(warning);
  }
  TrainJobOptions options;
  options.output_dir = run.output_dir();
  options.reference_cache_dir = run.reference_cache_dir();
  if (run.has_plan()) options.plan = run.plan();
  options.budget_bytes = assign.memory_budget_bytes();
  options.threads = static_cast<int>(assign.threads());
  HONE_ASSIGN_OR_RETURN(options.fault, ParseInjectedFault(fault));
  ChannelEvents events(channel);
  HONE_ASSIGN_OR_RETURN(const TrainJobResult result, TrainJob(prepared, options, events));
  done.set_cancelled(result.stopped);
  done.set_last_step(static_cast<uint64_t>(result.last_step));
  if (!result.stopped) done.set_result_json(result.result.dump());
  for (const v1::Artifact& artifact : result.artifacts) *done.add_artifacts() = artifact;
  return absl::OkStatus();
}

absl::Status RunPlan(const v1::Assign& assign, Channel& channel) {
  HONE_ASSIGN_OR_RETURN(const PreparedRun prepared, PrepareJob(assign.runs(0).spec(), {}, assign.runs(0).device()));
  SendReport(channel, JobReport(prepared));
  if (assign.verb() == v1::VERB_VALIDATE) return absl::OkStatus();
  HONE_ASSIGN_OR_RETURN(
      const v1::Plan plan,
      PlanJob(prepared, {assign.runs(0).device(), assign.memory_budget_bytes(), static_cast<int>(assign.threads()),
                         MachineCacheFolder(assign.runs(0).reference_cache_dir()), assign.card_budget_bytes()}));
  v1::FromWorker message;
  *message.mutable_plan() = plan;
  channel.Send(message);
  return absl::OkStatus();
}

absl::Status RunGenerate(const v1::Assign& assign, Channel& channel) {
  const v1::Run& run = assign.runs(0);
  HONE_ASSIGN_OR_RETURN(const auto files, ModelFiles::Open(run.model_path()));
  HONE_ASSIGN_OR_RETURN(const DeviceChoice device,
                        ResolveDevice({v1::DEVICE_AUTO, v1::PRECISION_AUTO, int(assign.threads()), ""}));
  HONE_ASSIGN_OR_RETURN(const auto backend, OpenBackend(device));
  std::optional<LoraAdapter> adapter;
  if (!run.adapter_path().empty()) {
    HONE_ASSIGN_OR_RETURN(adapter, ReadPeftAdapter(run.adapter_path(), files->config()));
  }
  HONE_ASSIGN_OR_RETURN(const auto session, TextSession::Open(*backend, *files, adapter ? &*adapter : nullptr));
  while (true) {
    const std::vector<v1::GenerateRequest> requests = channel.WaitRequests();
    if (requests.empty()) return absl::OkStatus();
    session->Answer(requests, [&](const v1::GenerateChunk& chunk) {
      v1::FromWorker message;
      *message.mutable_chunk() = chunk;
      channel.Send(message);
    });
  }
}

absl::Status RunExport(const v1::Assign& assign, Channel& channel) {
  const v1::Run& run = assign.runs(0);
  HONE_ASSIGN_OR_RETURN(const auto files, ModelFiles::Open(run.model_path()));
  HONE_ASSIGN_OR_RETURN(const DeviceChoice device,
                        ResolveDevice({v1::DEVICE_AUTO, v1::PRECISION_AUTO, int(assign.threads()), ""}));
  HONE_ASSIGN_OR_RETURN(const auto backend, OpenBackend(device));
  HONE_ASSIGN_OR_RETURN(const auto receipt,
                        ExportJob(*files, run.adapter_path(), run.format(), run.output_dir(), *backend));
  SendReport(channel, receipt);
  return absl::OkStatus();
}

absl::Status RunVerb(const v1::Assign& assign, const std::string& fault, Channel& channel, v1::Done& done) {
  if (assign.runs_size() != 1)
    return Unimplemented("runs: exactly one run an assignment so far, got ", assign.runs_size());
  switch (assign.verb()) {
    case v1::VERB_TRAIN:
      return RunTrain(assign, fault, channel, done);
    case v1::VERB_PLAN:
    case v1::VERB_VALIDATE:
      return RunPlan(assign, channel);
    case v1::VERB_INSPECT: {
      HONE_ASSIGN_OR_RETURN(const auto report, InspectModel(assign.runs(0).model_path()));
      SendReport(channel, report);
      return absl::OkStatus();
    }
    case v1::VERB_GENERATE:
      return RunGenerate(assign, channel);
    case v1::VERB_EXPORT:
      return RunExport(assign, channel);
    default:
      return Unimplemented("verb ", static_cast<int>(assign.verb()), " is not known to this worker");
  }
}

}  // namespace

int Serve(int fd, const std::string& fault) {
  Channel channel(fd);
  const auto assign = channel.ReadAssign();
  if (!assign.ok()) return 1;
  v1::FromWorker hello;
  hello.mutable_hello()->set_version(std::string(BuildVersion()));
  hello.mutable_hello()->set_build_id(std::string(BuildId()));
  hello.mutable_hello()->set_pid(::getpid());
  hello.mutable_hello()->set_device(DeviceDescription(*assign));
  channel.Send(hello);
  channel.StartReader();
  v1::FromWorker message;
  v1::Done& done = *message.mutable_done();
  absl::Status status;
  try {
    status = RunVerb(*assign, fault, channel, done);
  } catch (const std::exception& error) {  // an invariant, or the host out of memory: this job ends, not the daemon
    status = Internal(error.what());
  }
  // Into the job's log, too: it is where people look.
  if (!status.ok()) std::fprintf(stderr, "honed-worker: %s\n", std::string(status.message()).c_str());
  done.set_code(static_cast<int32_t>(status.code()));
  done.set_message(std::string(status.message()));
  done.set_field(FieldOf(status));
  channel.Send(message);
  return status.ok() ? 0 : 1;
}

}  // namespace hone
