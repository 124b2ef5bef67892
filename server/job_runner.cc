#include "server/job_runner.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"
#include "server/errors.h"
#include "server/faults.h"
#include "server/job_lock.h"
#include "server/store/states.h"
#include "server/worker_call.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

using std::chrono::steady_clock;
constexpr std::chrono::milliseconds kTick(1000);
constexpr std::chrono::milliseconds kExitGrace(10000);
// After an error nothing is left to be written, and a driver may take long to clear a broken context away.
constexpr std::chrono::milliseconds kExitGraceAfterError(2000);
constexpr std::chrono::milliseconds kLockPatience(10000);
constexpr size_t kMaxText = 4096;
constexpr int kMaxWarnings = 200;  // durable events of one attempt
constexpr int kMaxArtifacts = 10000;
constexpr size_t kMaxBacklog = 1000;
// A worker that has not made a step yet has nothing to lose: it is not waited for when it is to go.
constexpr std::chrono::milliseconds kIdleGrace(2000);

std::string Clip(const std::string& text) { return ToValidUtf8(text, kMaxText) + (text.size() > kMaxText ? "…" : ""); }

}  // namespace

JobRunner::JobRunner(const RunnerContext& context, std::string job_id)
    : context_(context), job_id_(std::move(job_id)) {}

JobRunner::~JobRunner() {
  if (steps_ != nullptr) std::fclose(steps_);
}

void JobRunner::RequestStop(Stop stop) {
  // A user's cancel outranks the daemon's drain.
  Stop current = stop_.load();
  while (static_cast<int>(current) < static_cast<int>(stop) && !stop_.compare_exchange_weak(current, stop)) {
  }
  std::lock_guard lock(mutex_);
  if (worker_ != nullptr) worker_->Wake();
}

// Before an attempt begins: what cannot work is not tried.
bool JobRunner::HoldIfInputMissing() {
  const std::optional<Cause> cause = MissingInput(job_.resolved_spec());
  if (!cause.has_value()) return false;
  JobUpdate update;
  update.states.push_back({v1::HELD, cause->reason, Clip(cause->message)});
  const absl::Status held = context_.store->Update(job_id_, {v1::QUEUED}, update);
  if (held.ok()) spdlog::warn("job {}: held: {}", job_id_, cause->message);
  return held.ok();
}

bool JobRunner::Run() {
  const absl::Status started = Start();
  if (!started.ok()) {
    if (!started_) {
      // Cancelled between choice and start, or the store is not writable: nothing has changed, nothing is to be
      // recorded.
      spdlog::warn("job {}: not started: {}", job_id_, std::string(started.message()));
      return false;
    }
    crash_ = StrCat("could not be started: ", started.message());
  } else {
    Follow();
  }
  Conclude();
  context_.metrics->EndJob(job_id_);
  return true;
}

absl::Status JobRunner::Start() {
  HONE_ASSIGN_OR_RETURN(job_, context_.store->GetJob(job_id_));
  attempt_ = static_cast<uint32_t>(job_.attempts_size()) + 1;
  if (HoldIfInputMissing()) return FailedPrecondition("its files are not there");
  for (std::string& advice : Advice(job_.resolved_spec())) advice_.insert(std::move(advice));
  HONE_RETURN_IF_ERROR(MakeDirectories(context_.layout->Attempt(job_id_, attempt_)));
  HONE_RETURN_IF_ERROR(MakeDirectories(context_.layout->Output(job_id_)));
  HONE_ASSIGN_OR_RETURN(const FileLock lock, FileLock::Seize(context_.layout->JobLock(job_id_), kLockPatience));

  JobUpdate update;
  update.start_attempt = true;
  update.states.push_back({v1::STARTING, "SELECTED", StrCat("attempt ", attempt_)});
  HONE_RETURN_IF_ERROR(context_.store->Update(job_id_, {v1::QUEUED}, update));
  started_ = true;
  context_.metrics->StartJob(job_);
  if (attempt_ > 1) {
    const std::string& before = job_.attempts(static_cast<int>(attempt_) - 2).exit();
    if (before == "crashed" || before == "hung") context_.metrics->WorkerRestart(job_id_);
  }
  steps_ = std::fopen(context_.layout->Steps(job_id_, attempt_).c_str(), "ae");

  WorkerOptions options;
  options.program = context_.options.worker_program;
  options.log_path = context_.layout->WorkerLog(job_id_, attempt_);
  options.lock_fd = lock.fd();
  HONE_ASSIGN_OR_RETURN(std::unique_ptr<WorkerProcess> worker, WorkerProcess::Start(options));
  {
    std::lock_guard guard(mutex_);
    worker_ = std::move(worker);
  }
  v1::ToWorker message;
  message.mutable_assign()->set_verb(v1::VERB_TRAIN);
  v1::Run* run = message.mutable_assign()->add_runs();
  run->set_job_id(job_id_);
  run->set_attempt(attempt_);
  *run->mutable_spec() = job_.resolved_spec();
  *run->mutable_plan() = job_.plan();
  run->set_output_dir(context_.layout->Output(job_id_));
  run->set_reference_cache_dir(context_.layout->ReferenceCache());
  if (const absl::Status sent = worker_->Send(message); !sent.ok()) {
    spdlog::warn("job {}: {}", job_id_, std::string(sent.message()));  // Follow will see it end
  }
  return absl::OkStatus();
}

void JobRunner::Follow() {
  v1::FromWorker message;
  std::string problem;
  heard_ = began_ = steady_clock::now();
  while (!done_.has_value()) {
    const auto now = steady_clock::now();
    CheckTime(now);
    PressStop(now);
    const auto result = worker_->Read(kTick, &message);
    if (!result.ok()) {
      problem = std::string(result.status().message());
      break;
    }
    if (*result == WorkerProcess::ReadResult::kEnd) break;
    if (*result == WorkerProcess::ReadResult::kMessage) {
      heard_ = steady_clock::now();
      Handle(message);
    } else {
      FlushBacklog();
    }
  }
  // After Done, or the end of the channel, the worker has nothing more to say.
  const bool error = done_.has_value() && done_->code() != 0;
  const auto grace = error ? kExitGraceAfterError : kExitGrace;
  const WorkerExit exit = worker_->Wait(problem.empty() ? grace : std::chrono::milliseconds(0));
  if (!done_.has_value()) crash_ = problem.empty() ? exit.text : StrCat(exit.text, ": ", problem);
}

// How long the worker may be silent.
std::chrono::milliseconds JobRunner::Patience() const {
  const RunnerOptions& options = context_.options;
  if (phase_ != v1::PHASE_TRAINING) return std::max(options.quiet_limit, options.hang_minimum);
  const double planned = job_.plan().steps() > 0 ? job_.plan().seconds() / job_.plan().steps() : 0;
  const uint32_t every = std::max<uint32_t>(1, job_.resolved_spec().run().logging_steps());
  const double seconds = options.hang_factor * every * std::max(planned, slowest_step_);
  const auto by_steps = std::chrono::milliseconds(static_cast<int64_t>(std::min(seconds, 1e6) * 1000));
  return std::max(by_steps, options.hang_minimum);
}

// The watchdog and the time limit.
void JobRunner::CheckTime(steady_clock::time_point now) {
  const auto silent = std::chrono::duration_cast<std::chrono::milliseconds>(now - heard_);
  if (stop_.load() == Stop::kNone && silent > Patience()) {
    spdlog::warn("job {}: nothing heard from the worker for {} s; ending it", job_id_, silent.count() / 1000);
    verdict_ = Verdict{v1::QUEUED, "hung", "WORKER_HUNG",
                       StrCat("said nothing for ", silent.count() / 1000, " s and was ended"), false};
    RequestStop(Stop::kHang);
  }
  const uint64_t limit = job_.options().time_limit_seconds();
  const double run = job_.run_seconds() + std::chrono::duration<double>(now - began_).count();
  const bool over = limit > 0 && run >= static_cast<double>(limit);
  if (!over || phase_ == v1::PHASE_FINALIZING || stop_.load() >= Stop::kEnd) return;
  EndWith({v1::FAILED, "time-limit", "TIME_LIMIT",
           StrCat("its time limit of ", limit, " s is over; the last checkpoint is kept"), true});
}

void JobRunner::EndWith(Verdict verdict) {
  if (stop_.load() >= Stop::kEnd) return;
  spdlog::warn("job {}: {}", job_id_, verdict.message);
  verdict_ = std::move(verdict);
  RequestStop(Stop::kEnd);
}

void JobRunner::PressStop(steady_clock::time_point now) {
  const Stop stop = stop_.load();
  if (stop == Stop::kNone) return;
  if (stop != pressed_) {
    pressed_ = stop;
    pressure_ = 1;
    const bool waits = stop == Stop::kHang || (stop == Stop::kEnd && !verdict_->checkpoint);
    const auto grace = stepped_ ? context_.options.cancel_grace : std::min(context_.options.cancel_grace, kIdleGrace);
    press_again_ = waits ? now : now + grace;
    v1::ToWorker message;
    message.mutable_cancel()->set_job_id(job_id_);
    message.mutable_cancel()->set_checkpoint_first(true);
    if (!waits && worker_->Send(message).ok()) return;
    press_again_ = now;
  }
  if (now < press_again_) return;
  if (pressure_ == 1) {
    spdlog::warn("job {}: sending SIGTERM to the worker", job_id_);
    worker_->Signal(SIGTERM);
    pressure_ = 2;
    press_again_ = now + (stepped_ ? context_.options.term_grace : std::min(context_.options.term_grace, kIdleGrace));
  } else if (pressure_ == 2) {
    spdlog::warn("job {}: the worker did not stop on SIGTERM; killing it", job_id_);
    worker_->Signal(SIGKILL);
    pressure_ = 3;
    press_again_ = now + context_.options.term_grace;
  }
}

void JobRunner::Handle(const v1::FromWorker& message) {
  JobUpdate update;
  switch (message.message_case()) {
    case v1::FromWorker::kHello:
      update.device = ToValidUtf8(message.hello().device(), 200);
      return Record(update);
    case v1::FromWorker::kPlan:
      update.plan = message.plan();
      *update.events.emplace_back().mutable_plan() = message.plan();
      return Record(update);
    case v1::FromWorker::kProgress:
      return HandleProgress(message.progress());
    case v1::FromWorker::kStep:
      return HandleStep(message.step());
    case v1::FromWorker::kEval:
      Advance(v1::RUNNING);
      context_.metrics->Eval(job_id_, message.eval());
      *update.events.emplace_back().mutable_eval() = message.eval();
      return Record(update);
    case v1::FromWorker::kCheckpoint:
      context_.metrics->Checkpoint(job_id_);
      if (steps_ != nullptr) fdatasync(fileno(steps_));
      FlushRecords(&update);
      *update.events.emplace_back().mutable_checkpoint() = message.checkpoint();
      return Record(update);
    case v1::FromWorker::kMemory:
      unsaved_memory_ = message.memory();
      return context_.metrics->Memory(job_id_, message.memory());
    case v1::FromWorker::kWarning:
      if (++warnings_ > kMaxWarnings) return;           // all of them are in the worker's log
      if (advice_.contains(message.warning())) return;  // given when the job was submitted
      update.events.emplace_back().set_warning(Clip(message.warning()));
      return Record(update);
    case v1::FromWorker::kDone:
      done_ = message.done();
      return;
    default:
      return;
  }
}

void JobRunner::HandleProgress(const v1::Progress& progress) {
  phase_ = progress.phase();
  if (progress.phase() == v1::PHASE_FINALIZING) {
    Advance(v1::FINALIZING);
  } else if (progress.phase() >= v1::PHASE_REFERENCE) {
    Advance(v1::RUNNING);
  }
  v1::JobEvent event;
  *event.mutable_progress() = progress;
  event.mutable_progress()->set_detail(Clip(progress.detail()));
  Publish(std::move(event));
}

void JobRunner::HandleStep(const v1::StepRecord& step) {
  Advance(v1::RUNNING);
  context_.metrics->Step(job_id_, step);
  if (steps_ != nullptr) {
    const std::string line = StrCat(MessageToJson(step), "\n");
    const bool written = std::fwrite(line.data(), 1, line.size(), steps_) == line.size() && std::fflush(steps_) == 0;
    // The records are what a resumed attempt goes on with: the step is done again once there is space for its record.
    if (!written && (errno == ENOSPC || errno == EDQUOT)) {
      EndWith({v1::HELD, "held", std::string(kDiskFull),
               "the disk is full: the record of a step cannot be written; goes on by itself when there is space",
               false});
    }
  }
  const auto now = steady_clock::now();
  slowest_step_ = std::max(slowest_step_, step.seconds());
  phase_ = v1::PHASE_TRAINING;
  stepped_ = true;
  unsaved_step_ = step;
  if (now - saved_at_ >= context_.options.record_interval) {
    JobUpdate update;
    FlushRecords(&update);
    Record(update);
    saved_at_ = now;
  }
  v1::JobEvent event;
  *event.mutable_step() = step;
  Publish(std::move(event));
}

void JobRunner::FlushRecords(JobUpdate* update) {
  update->last_step = std::exchange(unsaved_step_, std::nullopt);
  update->memory = std::exchange(unsaved_memory_, std::nullopt);
}

void JobRunner::Record(JobUpdate update) {
  if (backlog_.size() >= kMaxBacklog) backlog_.pop_front();
  backlog_.push_back(std::move(update));
  FlushBacklog();
}

// True: nothing waits. What a full disk keeps out stays and is tried again, in order.
bool JobRunner::FlushBacklog() {
  while (!backlog_.empty()) {
    const absl::Status status = context_.store->Update(job_id_, {}, backlog_.front());
    if (!status.ok()) {
      context_.metrics->CountStoreError();
      spdlog::error("job {}: {}", job_id_, std::string(status.message()));
      if (FaultOf(status) == Fault::kDiskFull) return false;
    }
    backlog_.pop_front();
  }
  return true;
}

void JobRunner::Publish(v1::JobEvent event) {
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(job_id_);
  if (!head.ok()) return;
  const int64_t now = NowMicros();
  event.set_attempt(attempt_);
  event.mutable_time()->set_seconds(now / 1'000'000);
  event.mutable_time()->set_nanos(static_cast<int32_t>(now % 1'000'000) * 1000);
  context_.hub->Publish(job_id_, {head->last_sequence, std::move(event)});
}

// Moves on from STARTING or RUNNING; does nothing if the job is there already, further, or being cancelled.
void JobRunner::Advance(v1::JobState to) {
  if (to == v1::RUNNING && left_starting_) return;
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(job_id_);
  if (!head.ok()) return;
  JobUpdate update;
  if (head->state == v1::STARTING) update.states.push_back({v1::RUNNING, "TRAINING", ""});
  const bool reaches = head->state == v1::STARTING || head->state == v1::RUNNING;
  if (to == v1::FINALIZING && reaches) update.states.push_back({v1::FINALIZING, "EXPORTING", ""});
  if (update.states.empty()) {
    left_starting_ = true;
    return;
  }
  FlushBacklog();
  const absl::Status status = context_.store->Update(job_id_, {head->state}, update);
  left_starting_ = status.ok();
  if (!status.ok() && !absl::IsFailedPrecondition(status)) {
    context_.metrics->CountStoreError();
    spdlog::error("job {}: {}", job_id_, std::string(status.message()));
  }
}

// The end must be recorded. If the disk is full it is tried until it works or the daemon stops; what is not recorded
// then is found and put right at the next start.
void JobRunner::Conclude() {
  while (!ConcludeOnce()) {
    if (stop_.load() == Stop::kDrain || context_.store->broken()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
}

bool JobRunner::ConcludeOnce() {
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(job_id_);
  if (head.ok() && !IsActive(head->state)) return true;
  absl::Status status = head.status();
  if (head.ok() && FlushBacklog()) {
    JobUpdate update = Outcome(*head);
    if (unsaved_step_.has_value()) update.last_step = unsaved_step_;
    if (unsaved_memory_.has_value()) update.memory = unsaved_memory_;
    status = context_.store->Update(job_id_, {head->state}, update);
    if (status.ok()) {
      const JobUpdate::Step& end = update.states.back();
      spdlog::info("job {}: attempt {} {}, now {} {}", job_id_, attempt_, update.end_attempt->exit, StateName(end.to),
                   end.message);
      return true;
    }
  }
  if (absl::IsFailedPrecondition(status)) return false;  // cancelled just now: look again
  if (head.ok() && context_.ballast != nullptr && (status.ok() || FaultOf(status) == Fault::kDiskFull) &&
      context_.ballast->Release()) {
    spdlog::warn("job {}: the disk is full; its end is recorded in the reserve", job_id_);
    return ConcludeOnce();
  }
  context_.metrics->CountStoreError();
  spdlog::error("job {}: {}", job_id_, std::string(status.message()));
  return false;
}

JobUpdate JobRunner::Outcome(const JobHead& head) {
  if (!done_.has_value()) return CrashOutcome(head);
  JobUpdate update;
  if (!done_->cancelled() && done_->code() != 0) return ErrorOutcome(head);
  if (done_->cancelled()) return StoppedOutcome(head);
  update.end_attempt = {"succeeded", ""};
  std::vector<v1::Artifact> artifacts(done_->artifacts().begin(), done_->artifacts().end());
  if (artifacts.size() > kMaxArtifacts) artifacts.resize(kMaxArtifacts);
  update.artifacts = std::move(artifacts);
  update.result_json = done_->result_json();
  if (head.state == v1::STARTING) update.states.push_back({v1::RUNNING, "TRAINING", ""});
  if (head.state == v1::STARTING || head.state == v1::RUNNING)
    update.states.push_back({v1::FINALIZING, "EXPORTING", ""});
  update.states.push_back({v1::SUCCEEDED, "DONE", ""});
  return update;
}

// It stopped because it was asked to.
JobUpdate JobRunner::StoppedOutcome(const JobHead& head) {
  JobUpdate update;
  if (head.state == v1::CANCELLING) {
    update.end_attempt = {"cancelled", ""};
    update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", "the last checkpoint is kept"});
  } else if (head.state == v1::PAUSING) {
    return PausedOutcome(head, "");
  } else if (verdict_.has_value()) {
    update.end_attempt = {verdict_->exit, verdict_->message};
    update.states.push_back({verdict_->to, verdict_->reason, verdict_->message});
  } else if (stop_.load() != Stop::kNone) {
    update.end_attempt = {"daemon-restart", "the daemon stopped"};
    update.states.push_back({v1::QUEUED, "DAEMON_STOPPED", "goes on from its last checkpoint"});
  } else {
    crash_ = "stopped although nobody asked it to";
    return CrashOutcome(head);
  }
  return update;
}

JobUpdate JobRunner::PausedOutcome(const JobHead& head, const std::string& note) {
  JobUpdate update;
  if (head.reason == kPreempted) {
    update.end_attempt = {"preempted", note};
    update.states.push_back(
        {v1::QUEUED, std::string(kPreempted), "made room for a job of higher priority; goes on from its checkpoint"});
    return update;
  }
  update.end_attempt = {"paused", note};
  update.states.push_back(
      {v1::PAUSED, "PAUSED_BY_USER",
       Clip(StrCat("goes on from its last checkpoint when it is resumed", note.empty() ? "" : "; ", note))});
  return update;
}

JobUpdate JobRunner::ErrorOutcome(const JobHead& head) {
  const absl::Status error = StatusOfDone(*done_);
  const Fault fault = FaultOf(error);
  const std::string text = Clip(std::string(error.message()));
  JobUpdate update;
  if (fault == Fault::kDiskFull || fault == Fault::kDeviceLost) {
    if (head.state == v1::CANCELLING || head.state == v1::PAUSING) {
      crash_ = StrCat("could not write a last checkpoint: ", error.message());
      return CrashOutcome(head);
    }
    const bool disk = fault == Fault::kDiskFull;
    update.end_attempt = {"held", text};
    update.states.push_back({v1::HELD, std::string(disk ? kDiskFull : kGpuUnhealthy),
                             Clip(StrCat(text, disk ? "; goes on by itself when there is space"
                                                    : "; goes on by itself when the device answers"))});
    return update;
  }
  if (const auto cause = MissingInput(job_.resolved_spec());
      cause.has_value() && IsLegalTransition(head.state, v1::HELD)) {
    update.end_attempt = {"held", text};
    update.states.push_back({v1::HELD, cause->reason, Clip(cause->message)});
    return update;
  }
  if (absl::IsResourceExhausted(error) && head.state == v1::STARTING) {
    // Nothing was lost and nothing is at fault with the job: it waits for its turn, however often.
    update.end_attempt = {"memory-taken", text};
    update.states.push_back({v1::QUEUED, std::string(kMemoryTaken), Clip(StrCat("waits for memory: ", text))});
    return update;
  }
  const std::string reason = fault == Fault::kDeviceError ? "DEVICE_ERROR"
                             : fault == Fault::kNotFinite ? "LOSS_NOT_FINITE"
                                                          : ReasonOf(error);
  update.end_attempt = {"failed", text};
  update.states.push_back(
      {v1::FAILED, reason, fault == Fault::kDeviceError ? Clip(DeviceErrorText(ToStd(error.message()))) : text});
  return update;
}

// Whether the job's policy tries again after such an end of an attempt.
bool JobRunner::Retries(const std::string& exit) const {
  const auto& exits = job_.options().retry().exits();
  return exits.empty() || std::find(exits.begin(), exits.end(), exit) != exits.end();
}

JobUpdate JobRunner::CrashOutcome(const JobHead& head) {
  JobUpdate update;
  const std::string text = Clip(StrCat("the worker ", crash_));
  if (head.state == v1::CANCELLING) {
    update.end_attempt = {"cancelled", text};
    update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", "the last checkpoint is kept"});
    return update;
  }
  if (head.state == v1::PAUSING) return PausedOutcome(head, text);
  const bool hung = verdict_.has_value() && verdict_->to == v1::QUEUED;
  if (verdict_.has_value() && !hung) {
    update.end_attempt = {verdict_->exit, Clip(StrCat(verdict_->message, "; ", text))};
    update.states.push_back({verdict_->to, verdict_->reason, verdict_->message});
    return update;
  }
  if (stop_.load() == Stop::kDrain) {
    update.end_attempt = {"daemon-restart", text};
    update.states.push_back({v1::QUEUED, "DAEMON_STOPPED", "goes on from its last checkpoint"});
    return update;
  }
  const std::string what = hung ? Clip(StrCat("the worker ", verdict_->message)) : text;
  const std::string exit = hung ? "hung" : "crashed";
  const std::string reason = hung ? "WORKER_HUNG" : "WORKER_CRASHED";
  const absl::StatusOr<int64_t> failures = context_.store->Failures(job_id_);
  const int64_t count = failures.value_or(0) + 1;
  const int64_t most =
      job_.options().retry().max_failures() > 0 ? job_.options().retry().max_failures() : context_.options.max_failures;
  update.end_attempt = {exit, what};
  update.count_failure = true;
  if (!Retries(exit)) {
    update.states.push_back({v1::FAILED, reason, Clip(StrCat(what, "; its retry policy does not try that again"))});
  } else if (count >= most) {
    update.states.push_back(
        {v1::FAILED, reason, Clip(StrCat(what, "; ", count, " attempts in a row without a new checkpoint"))});
  } else {
    update.states.push_back({v1::QUEUED, reason,
                             Clip(StrCat(what, "; starts again from its last checkpoint (", count, " of ", most,
                                         " attempts without a new one)"))});
  }
  return update;
}

}  // namespace hone
