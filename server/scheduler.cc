#include "server/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "server/blobs.h"
#include "server/errors.h"
#include "server/faults.h"
#include "server/job_lock.h"
#include "server/store/states.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr std::chrono::milliseconds kTick(1000);
constexpr int kMostDoublings = 5;  // of the delay of a job that finds its memory taken again
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
  } else if (head.state == v1::PAUSING && head.reason != kPreempted) {
    update.states.push_back({v1::PAUSED, "PAUSED_BY_USER", "goes on from its last checkpoint when it is resumed"});
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
    ReleaseHeld();
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

namespace {

bool OnCard(const v1::Plan& plan) { return !plan.device().empty() && !plan.device().starts_with("cpu"); }

}  // namespace

uint64_t Scheduler::CardBudget() {
  const auto card = options_.card ? options_.card() : std::nullopt;
  if (!card.has_value()) return 0;
  std::lock_guard lock(mutex_);
  uint64_t planned = 0;
  for (const auto& [id, running] : running_) planned += running.card_bytes;
  return std::min(card->total_bytes, card->free_bytes + planned);
}

// With mutex_ held.
bool Scheduler::FitsNow(const QueuedJob& job) {
  const bool on_card = OnCard(job.plan);
  size_t beside = 0;
  uint64_t promised = 0;
  for (const auto& [id, running] : running_) {
    if (running.on_card == on_card) ++beside;
    promised += running.card_bytes;
  }
  if (beside >= (on_card ? options_.max_running_on_card : options_.max_running)) return false;
  const uint64_t free = options_.free_memory ? options_.free_memory() : AvailableMemory();
  const uint64_t needed = on_card ? job.plan.host_bytes() : job.plan.bytes().total();
  if (free != 0 && needed > free) {
    SayItWaits(job, needed, free, "of the machine");
    return false;
  }
  // What running jobs were promised is theirs even before they have taken it. Where the card cannot be asked the worker
  // ends for want of memory before anything is lost, and the job waits.
  const auto card = on_card && options_.card ? options_.card() : std::nullopt;
  if (card.has_value()) {
    const uint64_t unpromised = card->total_bytes > promised ? card->total_bytes - promised : 0;
    const uint64_t room = std::min(card->free_bytes, unpromised);
    if (job.plan.bytes().total() > room) {
      SayItWaits(job, job.plan.bytes().total(), room, StrCat("of ", card->name), HoldersOf(*card));
      return false;
    }
  }
  waiting_for_memory_.clear();
  return true;
}

std::string Scheduler::HoldersOf(const CardReading& card) const {
  constexpr uint64_t kWorthSaying = uint64_t{256} << 20;  // below it is what a driver keeps for itself
  uint64_t promised = 0;
  size_t jobs = 0;
  for (const auto& [id, running] : running_) {
    promised += running.card_bytes;
    if (running.on_card) ++jobs;
  }
  std::string text;
  if (jobs > 0) text = StrCat("; ", promised >> 20, " MiB are promised to running jobs (", jobs, ")");
  // Jobs that still load hold less than they were promised, so others hold at least this.
  const uint64_t others = card.used_bytes > promised ? card.used_bytes - promised : 0;
  if (others < kWorthSaying) return text;
  text += StrCat("; other programs hold ", jobs > 0 ? "at least " : "", others >> 20, " MiB");
  constexpr int kMostNamed = 3;
  int named = 0;
  for (const ForeignProcess& process : options_.foreign ? options_.foreign() : std::vector<ForeignProcess>()) {
    if (process.command == "unknown") continue;  // its number says nothing here
    if (++named > kMostNamed) break;
    text +=
        StrCat(named == 1 ? ": " : ", ", process.command, " (process ", process.pid, ") ", process.bytes >> 20, " MiB");
  }
  return text;
}

void Scheduler::SayItWaits(const QueuedJob& job, uint64_t needed, uint64_t free, const std::string& where,
                           const std::string& cause) {
  // Figures change all the time; that is no news.
  std::string now = job.id + where;
  std::copy_if(cause.begin(), cause.end(), std::back_inserter(now), [](char c) { return c < '0' || c > '9'; });
  if (waiting_for_memory_ == now) return;
  waiting_for_memory_ = std::move(now);
  const std::string text = StrCat("waits for memory ", where, ": the plan takes ", needed >> 20, " MiB, ", free >> 20,
                                  " MiB are free", cause);
  spdlog::warn("job {}: {}", job.id, text);
  JobUpdate update;
  update.events.emplace_back().set_warning(ToValidUtf8(text, 1000));
  update.because = {v1::QUEUED, std::string(kWaitsForMemory), ToValidUtf8(text, 1000)};
  (void)context_.store->Update(job.id, {v1::QUEUED}, update);
}

// Nothing is started on a disk that is as good as full: it would only fail.
bool Scheduler::DiskHasRoom() {
  const uint64_t least = context_.options.min_free_disk;
  const uint64_t free = options_.free_disk ? options_.free_disk() : DiskFree(context_.layout->root());
  std::string problem;
  if (free < least) {
    problem = StrCat("the disk of ", context_.layout->root(), " has ", free >> 20, " MiB free; jobs start again when ",
                     least >> 20, " MiB are");
  } else if (context_.ballast != nullptr) {
    context_.ballast->Fill(least);
  }
  std::lock_guard lock(mutex_);
  if (!problem.empty() && problem_.empty()) spdlog::warn("{}", problem);
  problem_ = problem;
  return problem_.empty();
}

std::string Scheduler::Problem() {
  std::lock_guard lock(mutex_);
  return problem_;
}

void Scheduler::StartNext() {
  while (true) {
    const absl::StatusOr<std::optional<QueuedJob>> next = context_.store->NextQueued();
    if (!next.ok()) {
      context_.metrics->CountStoreError();
      spdlog::error("scheduler: {}", std::string(next.status().message()));
      return;
    }
    if (!next->has_value() || !DiskHasRoom()) return;
    const QueuedJob& job = **next;
    std::unique_lock lock(mutex_);
    if (draining_ || running_.contains(job.id)) return;
    const auto delayed = not_before_.find(job.id);
    if (delayed != not_before_.end() && std::chrono::steady_clock::now() < delayed->second) {
      look_again_ = delayed->second;
      return;
    }
    if (!FitsNow(job)) {
      lock.unlock();
      return MakeRoomFor(job);
    }
    not_before_.erase(job.id);
    Running& running = running_[job.id];
    running.priority = job.priority;
    running.preemptible = job.preemptible;
    running.on_card = OnCard(job.plan);
    running.card_bytes = running.on_card ? job.plan.bytes().total() : 0;
    running.runner = std::make_unique<JobRunner>(context_, job.id);
    running.thread = std::thread([this, runner = running.runner.get()] { RunOne(runner); });
  }
}

void Scheduler::MakeRoomFor(const QueuedJob& job) {
  std::string victim;
  {
    std::lock_guard lock(mutex_);
    int32_t lowest = job.priority;
    for (const auto& [id, running] : running_) {
      if (running.preempted && !running.finished) return;  // room is being made
      if (!running.preemptible || running.finished || running.priority >= lowest) continue;
      lowest = running.priority;
      victim = id;
    }
  }
  if (victim.empty()) return;
  JobUpdate update;
  update.states.push_back({v1::PAUSING, std::string(kPreempted), StrCat("makes room for job ", job.id)});
  const absl::Status status = context_.store->Update(victim, {v1::STARTING, v1::RUNNING}, update);
  if (!status.ok()) return;  // it is ending by itself
  spdlog::info("job {}: makes room for job {} of priority {}", victim, job.id, job.priority);
  std::lock_guard lock(mutex_);
  const auto found = running_.find(victim);
  if (found == running_.end()) return;
  found->second.preempted = true;
  found->second.runner->RequestPause();
}

bool Scheduler::CauseIsGone(const HeldJob& job) {
  if (job.reason == kDiskFull) {
    const uint64_t free = options_.free_disk ? options_.free_disk() : DiskFree(context_.layout->root());
    return free >= SpaceToGoOn(job.plan, context_.options.min_free_disk);
  }
  if (job.reason == kModelMissing || job.reason == kDataMissing) return !MissingInput(job.resolved_spec).has_value();
  if (job.reason == kGpuUnhealthy) return (options_.probe_gpu ? options_.probe_gpu() : ProbeGpu()).ok();
  return false;
}

// What was held for a resource goes on when it is back. A job that is held again and again waits longer each time.
void Scheduler::ReleaseHeld() {
  const auto now = std::chrono::steady_clock::now();
  {
    std::lock_guard lock(mutex_);
    for (const std::string& id : held_forget_) held_.erase(id);
    held_forget_.clear();
  }
  if (now < look_at_held_) return;
  look_at_held_ = now + options_.hold_poll;
  const auto jobs = context_.store->HeldJobs();
  if (!jobs.ok()) return;
  for (const HeldJob& job : *jobs) {
    const bool by_itself = job.reason == kDiskFull || job.reason == kModelMissing || job.reason == kDataMissing ||
                           job.reason == kGpuUnhealthy;
    if (!by_itself) continue;
    const auto [at, fresh] = held_.try_emplace(job.id, Held{options_.hold_poll, now});
    Held& held = at->second;
    if (now < held.look || !CauseIsGone(job)) continue;
    held.wait = std::min(held.wait * 2, options_.hold_max);
    held.look = now + held.wait;
    if (Requeue(job.id, v1::HELD, "CAUSE_GONE", false).ok()) spdlog::info("job {}: {} is over", job.id, job.reason);
  }
}

void Scheduler::RunOne(JobRunner* runner) {
  const std::string id = runner->job_id();
  const bool attempted = runner->Run();
  // A crashed job waits a little before its next attempt; one that could not even be started must not spin.
  const int64_t failures = context_.store->Failures(id).value_or(0);
  const absl::StatusOr<JobHead> head = context_.store->GetJobHead(id);
  const bool queued = head.ok() && head->state == v1::QUEUED;
  const bool memory = queued && head->reason == kMemoryTaken;
  const bool waits = queued && (failures > 0 || !attempted || memory);
  const bool ended = head.ok() && IsTerminal(head->state);
  std::lock_guard lock(mutex_);
  if (!memory) {  // what it held is free now
    for (const auto& [waiting, times] : memory_waits_) not_before_.erase(waiting);
    memory_waits_.clear();
  }
  if (waits) {
    const int64_t doubled = memory ? int64_t{1} << std::min(memory_waits_[id]++, kMostDoublings) : 1;
    not_before_[id] =
        std::chrono::steady_clock::now() + options_.retry_delay * std::max<int64_t>({failures, doubled, 1});
  }
  if (ended) held_forget_.push_back(id);
  running_.at(id).finished = true;
  poked_ = true;
  changed_.notify_all();
}

absl::Status Scheduler::Change(const std::string& job_id,
                               const std::function<absl::Status(const JobHead&, JobUpdate*)>& decide) {
  while (true) {
    HONE_ASSIGN_OR_RETURN(const JobHead head, context_.store->GetJobHead(job_id));
    JobUpdate update;
    HONE_RETURN_IF_ERROR(decide(head, &update));
    if (update.states.empty()) return absl::OkStatus();
    absl::Status status = context_.store->Update(job_id, {head.state}, update);
    if (absl::IsFailedPrecondition(status)) {
      HONE_ASSIGN_OR_RETURN(const JobHead now, context_.store->GetJobHead(job_id));
      if (now.state != head.state) continue;  // it moved meanwhile
    }
    return status;
  }
}

namespace {

absl::Status Finished(const std::string& job_id, const JobHead& head) {
  return WithReason(FailedPrecondition("job ", job_id, " has already ended: ", StateName(head.state)), "JOB_FINISHED");
}

}  // namespace

absl::Status Scheduler::Cancel(const std::string& job_id) {
  bool active = false;
  HONE_RETURN_IF_ERROR(Change(job_id, [&](const JobHead& head, JobUpdate* update) -> absl::Status {
    active = IsActive(head.state);
    if (head.state == v1::CANCELLED || head.state == v1::CANCELLING) return absl::OkStatus();
    if (IsTerminal(head.state)) return Finished(job_id, head);
    if (active) {
      update->states.push_back({v1::CANCELLING, "CANCELLED_BY_USER", "finishes its step and writes a checkpoint"});
    } else {
      update->states.push_back({v1::CANCELLED, "CANCELLED_BY_USER", ""});
    }
    return absl::OkStatus();
  }));
  if (active) {
    std::lock_guard lock(mutex_);
    const auto found = running_.find(job_id);
    if (found != running_.end()) found->second.runner->RequestCancel();
  }
  Wake();
  return absl::OkStatus();
}

absl::Status Scheduler::Pause(const std::string& job_id) {
  bool active = false;
  HONE_RETURN_IF_ERROR(Change(job_id, [&](const JobHead& head, JobUpdate* update) -> absl::Status {
    active = IsActive(head.state);
    const bool pausing = head.state == v1::PAUSING && head.reason != kPreempted;
    if (head.state == v1::PAUSED || pausing) return absl::OkStatus();
    if (IsTerminal(head.state)) return Finished(job_id, head);
    if (IsLegalTransition(head.state, v1::PAUSED) && !active) {
      update->states.push_back({v1::PAUSED, "PAUSED_BY_USER", "waits until it is resumed"});
    } else if (IsLegalTransition(head.state, v1::PAUSING)) {
      update->states.push_back({v1::PAUSING, "PAUSED_BY_USER", "finishes its step and writes a checkpoint"});
    } else {
      return WithReason(FailedPrecondition("job ", job_id, " is ", StateName(head.state), " (", head.reason,
                                           ") and cannot be paused now"),
                        "NOT_PAUSABLE");
    }
    return absl::OkStatus();
  }));
  if (active) {
    std::lock_guard lock(mutex_);
    const auto found = running_.find(job_id);
    if (found != running_.end()) found->second.runner->RequestPause();
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Requeue(const std::string& job_id, v1::JobState from, std::string_view reason,
                                bool drop_dependencies) {
  return Change(job_id, [&](const JobHead& head, JobUpdate* update) -> absl::Status {
    if (head.state == from) {
      update->drop_dependencies = drop_dependencies && head.reason == "DEPENDENCY_FAILED";
      update->states.push_back({v1::QUEUED, std::string(reason), "waits for its turn"});
      return absl::OkStatus();
    }
    if (IsTerminal(head.state)) return Finished(job_id, head);
    const bool goes_on =
        head.state == v1::QUEUED || (IsActive(head.state) && head.state != v1::CANCELLING && head.state != v1::PAUSING);
    if (goes_on) return absl::OkStatus();
    const std::string_view hint = head.state == v1::HELD     ? "; release it"
                                  : head.state == v1::PAUSED ? "; resume it"
                                                             : "; try again when it is at rest";
    return WithReason(FailedPrecondition("job ", job_id, " is ", StateName(head.state), hint),
                      from == v1::PAUSED ? "NOT_PAUSED" : "NOT_HELD");
  });
}

absl::Status Scheduler::Resume(const std::string& job_id) {
  HONE_RETURN_IF_ERROR(Requeue(job_id, v1::PAUSED, "RESUMED_BY_USER", false));
  Wake();
  return absl::OkStatus();
}

absl::Status Scheduler::Release(const std::string& job_id) {
  HONE_RETURN_IF_ERROR(Requeue(job_id, v1::HELD, "RELEASED_BY_USER", true));
  Wake();
  return absl::OkStatus();
}

absl::Status Scheduler::Hold(const std::string& job_id, const std::string& message) {
  return Change(job_id, [&](const JobHead& head, JobUpdate* update) -> absl::Status {
    if (head.state == v1::HELD) return absl::OkStatus();
    if (IsTerminal(head.state)) return Finished(job_id, head);
    if (head.state != v1::QUEUED) {
      return WithReason(FailedPrecondition("job ", job_id, " is ", StateName(head.state),
                                           "; only a waiting job can be held, a running one paused"),
                        "NOT_QUEUED");
    }
    update->states.push_back(
        {v1::HELD, "HELD_BY_USER", message.empty() ? std::string("waits until it is released") : message});
    return absl::OkStatus();
  });
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
