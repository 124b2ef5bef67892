// One attempt of one job: starts the worker, turns its messages into events, records and metrics, and decides what the
// end of the worker means for the job. Not here: which job runs when (scheduler).
//
//   worker ends with        attempt          job
//   Done OK                 succeeded        SUCCEEDED
//   Done with an error      failed           FAILED (RESOURCE_EXHAUSTED while starting: memory-taken, QUEUED, not
//   counted)
//     for want of disk      held             HELD until there is space
//     for a lost device     held             HELD until it answers
//   Done cancelled          cancelled        CANCELLED
//     while PAUSING         paused           PAUSED; moved aside for another job: preempted, QUEUED
//     while draining        daemon-restart   QUEUED
//     at its time limit     time-limit       FAILED
//   no Done                 crashed          QUEUED; FAILED after max_failures in a row without a new checkpoint
//     killed by the watchdog: hung           the same
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "hone/v1/jobs.pb.h"
#include "server/ballast.h"
#include "server/event_hub.h"
#include "server/layout.h"
#include "server/metrics.h"
#include "server/store/store.h"
#include "server/worker_process.h"

namespace hone {

struct RunnerOptions {
  std::string worker_program;
  int max_failures = 3;
  std::chrono::milliseconds cancel_grace = std::chrono::seconds(120);   // from the message to SIGTERM
  std::chrono::milliseconds term_grace = std::chrono::seconds(10);      // from SIGTERM to SIGKILL
  std::chrono::milliseconds record_interval = std::chrono::seconds(1);  // newest step into the store
  // A worker that says nothing for so many planned (or seen) step times, but at least hang_minimum, has hung. Between
  // steps (loading, evaluating, exporting), where nothing is planned, it has quiet_limit.
  double hang_factor = 10;
  std::chrono::milliseconds hang_minimum = std::chrono::seconds(60);
  std::chrono::milliseconds quiet_limit = std::chrono::minutes(30);
  uint64_t min_free_disk = uint64_t{64} << 20;  // below this no attempt starts
};

// state_reason of a job whose memory somebody else took between plan and start; it waits in the queue.
inline constexpr std::string_view kMemoryTaken = "MEMORY_TAKEN";
// state_reason of a job whose turn it is and whose memory is not free.
inline constexpr std::string_view kWaitsForMemory = "WAITS_FOR_MEMORY";
// state_reason of a job that was moved aside; its PAUSING leads to QUEUED.
inline constexpr std::string_view kPreempted = "PREEMPTED";

// What the parts of the daemon share. Everything outlives the runners.
struct RunnerContext {
  const Layout* layout;
  Store* store;
  EventHub* hub;
  Metrics* metrics;
  RunnerOptions options;
  Ballast* ballast = nullptr;  // the last reserve of disk space
};

class JobRunner {
 public:
  JobRunner(const RunnerContext& context, std::string job_id);
  ~JobRunner();

  // One attempt, from QUEUED to its end. On a thread that lives as long as the worker; returns when all is recorded.
  // False if no attempt was made and nothing has changed.
  bool Run();
  // The job is to end; its last checkpoint stays. Thread-safe.
  void RequestCancel() { RequestStop(Stop::kCancel); }
  // The daemon is to end: checkpoint, then back to the queue. Thread-safe.
  void RequestDrain() { RequestStop(Stop::kDrain); }
  // The job is to pause: checkpoint, then as the state PAUSING says. Thread-safe.
  void RequestPause() { RequestStop(Stop::kPause); }
  const std::string& job_id() const { return job_id_; }

 private:
  // What is later outranks what is earlier.
  enum class Stop { kNone, kDrain, kPause, kEnd, kHang, kCancel };
  // How the runner itself ends an attempt.
  struct Verdict {
    v1::JobState to;
    std::string exit;
    std::string reason;
    std::string message;
    bool checkpoint;  // the worker may write one
  };

  void RequestStop(Stop stop);
  absl::Status Start();
  void Follow();
  void PressStop(std::chrono::steady_clock::time_point now);
  void Handle(const v1::FromWorker& message);
  void HandleStep(const v1::StepRecord& step);
  void HandleProgress(const v1::Progress& progress);
  void Record(JobUpdate update);
  bool FlushBacklog();
  void EndWith(Verdict verdict);
  void CheckTime(std::chrono::steady_clock::time_point now);
  std::chrono::milliseconds Patience() const;
  bool HoldIfInputMissing();
  void Advance(v1::JobState to);
  void Publish(v1::JobEvent event);
  void FlushRecords(JobUpdate* update);
  void Conclude();
  bool ConcludeOnce();
  JobUpdate Outcome(const JobHead& head);
  JobUpdate CrashOutcome(const JobHead& head);
  JobUpdate ErrorOutcome(const JobHead& head);
  JobUpdate StoppedOutcome(const JobHead& head);
  JobUpdate PausedOutcome(const JobHead& head, const std::string& note);
  bool Retries(const std::string& exit) const;

  const RunnerContext context_;
  const std::string job_id_;
  v1::Job job_;
  uint32_t attempt_ = 0;

  std::mutex mutex_;  // guards worker_ against RequestStop
  std::unique_ptr<WorkerProcess> worker_;
  std::atomic<Stop> stop_{Stop::kNone};
  Stop pressed_ = Stop::kNone;  // what the worker has been told
  int pressure_ = 0;            // 0 nothing, 1 asked, 2 SIGTERM, 3 SIGKILL
  std::chrono::steady_clock::time_point press_again_;

  bool started_ = false;
  bool left_starting_ = false;
  std::optional<v1::Done> done_;
  std::string crash_;  // how the worker ended, if without Done
  std::optional<Verdict> verdict_;
  std::deque<JobUpdate> backlog_;  // what a full disk kept out of the store, in order
  std::chrono::steady_clock::time_point heard_;
  std::chrono::steady_clock::time_point began_;
  v1::Phase phase_ = v1::PHASE_LOADING;
  double slowest_step_ = 0;  // seconds
  bool stepped_ = false;     // this attempt has reported a step
  std::FILE* steps_ = nullptr;
  std::optional<v1::StepRecord> unsaved_step_;
  std::optional<v1::MemoryUse> unsaved_memory_;
  std::chrono::steady_clock::time_point saved_at_;
  int warnings_ = 0;
  std::set<std::string> advice_;
};

}  // namespace hone
