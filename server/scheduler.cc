#include "server/scheduler.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/job_lock.h"
#include "server/store/states.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr std::chrono::milliseconds kTick(1000);
constexpr std::chrono::milliseconds kLockPatience(10000);

uint64_t MemInfo(std::string_view key) {
  const absl::StatusOr<std::string> text = ReadFile("/proc/meminfo", 1 << 16);
  if (!text.ok()) return 0;
  const size_t at = text->find(StrCat(key, ":"));
  if (at == std::string::npos) return 0;
  return std::strtoull(text->c_str() + at + key.size() + 1, nullptr, 10) * 1024;
}

}  // namespace

uint64_t AvailableMemory() { return MemInfo("MemAvailable"); }
uint64_t TotalMemory() { return MemInfo("MemTotal"); }

Scheduler::Scheduler(const RunnerContext& context, SchedulerOptions options)
    : context_(context), options_(std::move(options)) {}

Scheduler::~Scheduler() { Drain(); }

absl::Status Scheduler::Recover() {
  HONE_ASSIGN_OR_RETURN(
      const std::vector<std::string> ids,
      context_.store->JobsIn({v1::VALIDATING, v1::STARTING, v1::RUNNING, v1::FINALIZING, v1::CANCELLING, v1::PAUSING}));
  for (const std::string& id : ids) HONE_RETURN_IF_ERROR(RecoverJob(id));
  return absl::OkStatus();
}

absl::Status Scheduler::RecoverJob(const std::string& job_id) {
  HONE_RETURN_IF_ERROR(MakeDirectories(context_.layout->Job(job_id)));
  // Held only while a worker of the daemon's earlier life still writes there.
  const absl::StatusOr<FileLock> lock = FileLock::Seize(context_.layout->JobLock(job_id), kLockPatience);
  HONE_ASSIGN_OR_RETURN(const JobHead head, context_.store->GetJobHead(job_id));
  JobUpdate update;
  update.end_attempt = {"daemon-restart", "the daemon was started again"};
  if (head.state == v1::CANCELLING) {
    update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", "the last checkpoint is kept"});
  } else if (!lock.ok() && IsLegalTransition(head.state, v1::HELD)) {
    // One job whose worker cannot be ended must not keep the others from running.
    update.states.push_back(
        {v1::HELD, "WORKER_LEFT_BEHIND", StrCat("its worker cannot be ended: ", lock.status().message())});
  } else {
    update.states.push_back({v1::QUEUED, "DAEMON_RESTARTED", "goes on from its last checkpoint"});
  }
  spdlog::info("job {}: was {} when the daemon ended, now {}", job_id, StateName(head.state),
               StateName(update.states.back().to));
  return context_.store->Update(job_id, {head.state}, update);
}

void Scheduler::Start() {
  poked_ = true;  // what waits from before need not wait for a tick
  thread_ = std::thread([this] { Loop(); });
}

void Scheduler::Wake() {
  {
    std::lock_guard lock(mutex_);
    poked_ = true;
  }
  changed_.notify_all();
}

void Scheduler::Loop() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const auto tick = std::chrono::steady_clock::now() + kTick;
      changed_.wait_until(lock, std::min(tick, look_again_), [this] { return poked_ || draining_; });
      poked_ = false;
      look_again_ = std::chrono::steady_clock::time_point::max();
      if (draining_) return;
    }
    Reap();
    context_.metrics->Prune();
    StartNext();
  }
}

void Scheduler::Reap() {
  std::vector<Running> ended;
  {
    std::lock_guard lock(mutex_);
    for (auto it = running_.begin(); it != running_.end();) {
      if (!it->second.finished) {
        ++it;
        continue;
      }
      ended.push_back(std::move(it->second));
      it = running_.erase(it);
    }
  }
  for (Running& running : ended) running.thread.join();
}

bool Scheduler::FitsNow(const QueuedJob& job) {
  const uint64_t free = options_.free_memory ? options_.free_memory() : AvailableMemory();
  const uint64_t needed = job.plan.bytes().total();
  if (free == 0 || needed <= free) {
    waiting_for_memory_.clear();
    return true;
  }
  if (waiting_for_memory_ != job.id) {
    waiting_for_memory_ = job.id;
    spdlog::warn("job {}: waits for memory: planned {} bytes, free {}", job.id, needed, free);
    JobUpdate update;
    update.events.emplace_back().set_warning(
        StrCat("waits for memory: the plan takes ", needed >> 20, " MiB, ", free >> 20, " MiB are free"));
    (void)context_.store->Update(job.id, {v1::QUEUED}, update);
  }
  return false;
}

void Scheduler::StartNext() {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (draining_ || running_.size() >= options_.max_running) return;
    }
    const absl::StatusOr<std::optional<QueuedJob>> next = context_.store->NextQueued();
    if (!next.ok()) {
      context_.metrics->CountStoreError();
      spdlog::error("scheduler: {}", std::string(next.status().message()));
      return;
    }
    if (!next->has_value()) return;
    const QueuedJob& job = **next;
    std::lock_guard lock(mutex_);
    if (draining_ || running_.contains(job.id)) return;
    const auto delayed = not_before_.find(job.id);
    if (delayed != not_before_.end() && std::chrono::steady_clock::now() < delayed->second) {
      look_again_ = delayed->second;
      return;
    }
    if (!FitsNow(job)) return;
    not_before_.erase(job.id);
    Running& running = running_[job.id];
    running.runner = std::make_unique<JobRunner>(context_, job.id);
    running.thread = std::thread([this, runner = running.runner.get()] { RunOne(runner); });
  }
}

void Scheduler::RunOne(JobRunner* runner) {
  const std::string id = runner->job_id();
  const bool attempted = runner->Run();
  // A crashed job waits a little before its next attempt; one that could not even be started must not spin.
  const int64_t failures = context_.store->Failures(id).value_or(0);
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(id);
  const bool waits = head.ok() && head->state == v1::QUEUED && (failures > 0 || !attempted);
  std::lock_guard lock(mutex_);
  if (waits) {
    not_before_[id] = std::chrono::steady_clock::now() + options_.retry_delay * std::max<int64_t>(failures, 1);
  }
  running_.at(id).finished = true;
  poked_ = true;
  changed_.notify_all();
}

absl::Status Scheduler::Cancel(const std::string& job_id) {
  while (true) {
    HONE_ASSIGN_OR_RETURN(const JobHead head, context_.store->GetJobHead(job_id));
    if (head.state == v1::CANCELLED || head.state == v1::CANCELLING) return absl::OkStatus();
    if (IsTerminal(head.state)) {
      return WithReason(FailedPrecondition("job ", job_id, " has already ended: ", StateName(head.state)),
                        "JOB_FINISHED");
    }
    JobUpdate update;
    const bool active = IsActive(head.state);
    if (active) {
      update.states.push_back({v1::CANCELLING, "CANCELLED_BY_USER", "finishes its step and writes a checkpoint"});
    } else {
      update.states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", ""});
    }
    const absl::Status status = context_.store->Update(job_id, {head.state}, update);
    if (absl::IsFailedPrecondition(status)) continue;  // it moved meanwhile
    HONE_RETURN_IF_ERROR(status);
    if (active) {
      std::lock_guard lock(mutex_);
      const auto found = running_.find(job_id);
      if (found != running_.end()) found->second.runner->RequestCancel();
    }
    Wake();
    return absl::OkStatus();
  }
}

void Scheduler::Drain() {
  {
    std::lock_guard lock(mutex_);
    draining_ = true;
    for (auto& [id, running] : running_) running.runner->RequestDrain();
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  std::map<std::string, Running> left;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] {
      for (const auto& [id, running] : running_) {
        if (!running.finished) return false;
      }
      return true;
    });
    left.swap(running_);
  }
  for (auto& [id, running] : left) {
    if (running.thread.joinable()) running.thread.join();
  }
}

}  // namespace hone
