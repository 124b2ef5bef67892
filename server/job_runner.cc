#include "server/job_runner.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"
#include "server/errors.h"
#include "server/job_lock.h"
#include "server/store/states.h"
#include "server/worker_call.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

using std::chrono::steady_clock;
constexpr std::chrono::milliseconds kTick(1000);
constexpr std::chrono::milliseconds kExitGrace(10000);
constexpr std::chrono::milliseconds kLockPatience(10000);
constexpr size_t kMaxText = 4096;
constexpr int kMaxWarnings = 200;  // durable events of one attempt
constexpr int kMaxArtifacts = 10000;

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
  if (attempt_ > 1) context_.metrics->WorkerRestart(job_id_);
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
  while (!done_.has_value()) {
    PressStop(steady_clock::now());
    const auto result = worker_->Read(kTick, &message);
    if (!result.ok()) {
      problem = std::string(result.status().message());
      break;
    }
    if (*result == WorkerProcess::ReadResult::kEnd) break;
    if (*result == WorkerProcess::ReadResult::kMessage) Handle(message);
  }
  // After Done, or the end of the channel, the worker has nothing more to say.
  const WorkerExit exit = worker_->Wait(problem.empty() ? kExitGrace : std::chrono::milliseconds(0));
  if (!done_.has_value()) crash_ = problem.empty() ? exit.text : StrCat(exit.text, ": ", problem);
}

void JobRunner::PressStop(steady_clock::time_point now) {
  const Stop stop = stop_.load();
  if (stop == Stop::kNone) return;
  if (stop != pressed_) {
    pressed_ = stop;
    pressure_ = 1;
    press_again_ = now + context_.options.cancel_grace;
    v1::ToWorker message;
    message.mutable_cancel()->set_job_id(job_id_);
    message.mutable_cancel()->set_checkpoint_first(true);
    if (worker_->Send(message).ok()) return;
    press_again_ = now;
  }
  if (now < press_again_) return;
  if (pressure_ == 1) {
    spdlog::warn("job {}: the worker did not stop when asked; sending SIGTERM", job_id_);
    worker_->Signal(SIGTERM);
    pressure_ = 2;
    press_again_ = now + context_.options.term_grace;
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
    std::fwrite(line.data(), 1, line.size(), steps_);
    std::fflush(steps_);
  }
  unsaved_step_ = step;
  const auto now = steady_clock::now();
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

void JobRunner::Record(const JobUpdate& update) {
  const absl::Status status = context_.store->Update(job_id_, {}, update);
  if (status.ok()) return;
  context_.metrics->CountStoreError();
  spdlog::error("job {}: {}", job_id_, std::string(status.message()));
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
  left_starting_ = true;
  if (update.states.empty()) return;
  const absl::Status status = context_.store->Update(job_id_, {head->state}, update);
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
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

bool JobRunner::ConcludeOnce() {
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(job_id_);
  if (head.ok() && !IsActive(head->state)) return true;
  absl::Status status = head.status();
  if (head.ok()) {
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
  context_.metrics->CountStoreError();
  spdlog::error("job {}: {}", job_id_, std::string(status.message()));
  return false;
}

JobUpdate JobRunner::Outcome(const JobHead& head) {
  if (!done_.has_value()) return CrashOutcome(head);
  JobUpdate update;
  if (!done_->cancelled() && done_->code() != 0) return ErrorOutcome(head);
  if (done_->cancelled()) {
    if (head.state == v1::CANCELLING) {
      update.end_attempt = {"cancelled", ""};
      update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", "the last checkpoint is kept"});
    } else if (stop_.load() != Stop::kNone) {
      update.end_attempt = {"daemon-restart", "the daemon stopped"};
      update.states.push_back({v1::QUEUED, "DAEMON_STOPPED", "goes on from its last checkpoint"});
    } else {
      crash_ = "stopped although nobody asked it to";
      return CrashOutcome(head);
    }
    return update;
  }
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

JobUpdate JobRunner::ErrorOutcome(const JobHead& head) {
  const absl::Status error = StatusOfDone(*done_);
  if (absl::IsResourceExhausted(error) && head.state == v1::STARTING) {
    crash_ = StrCat("could not reserve what it needs: ", error.message());
    return CrashOutcome(head);
  }
  JobUpdate update;
  const std::string text = Clip(std::string(error.message()));
  update.end_attempt = {"failed", text};
  update.states.push_back({v1::FAILED, ReasonOf(error), text});
  return update;
}

JobUpdate JobRunner::CrashOutcome(const JobHead& head) {
  JobUpdate update;
  const std::string text = Clip(StrCat("the worker ", crash_));
  if (head.state == v1::CANCELLING) {
    update.end_attempt = {"cancelled", text};
    update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", "the last checkpoint is kept"});
    return update;
  }
  if (stop_.load() == Stop::kDrain) {
    update.end_attempt = {"daemon-restart", text};
    update.states.push_back({v1::QUEUED, "DAEMON_STOPPED", "goes on from its last checkpoint"});
    return update;
  }
  const absl::StatusOr<int64_t> failures = context_.store->Failures(job_id_);
  const int64_t count = failures.value_or(0) + 1;
  update.end_attempt = {"crashed", text};
  update.count_failure = true;
  if (count >= context_.options.max_failures) {
    update.states.push_back(
        {v1::FAILED, "WORKER_CRASHED", Clip(StrCat(text, "; ", count, " attempts in a row without a new checkpoint"))});
  } else {
    update.states.push_back({v1::QUEUED, "WORKER_CRASHED",
                             Clip(StrCat(text, "; starts again from its last checkpoint (", count, " of ",
                                         context_.options.max_failures, " attempts without a new one)"))});
  }
  return update;
}

}  // namespace hone
