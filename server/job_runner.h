// One attempt of one job: starts the worker, turns its messages into events, records and metrics, and decides what the
// end of the worker means for the job. Not here: which job runs when (scheduler).
//
//   worker ends with        attempt          job
//   Done OK                 succeeded        SUCCEEDED
//   Done with an error      failed           FAILED (RESOURCE_EXHAUSTED while starting: QUEUED, counted like a crash)
//   Done cancelled          cancelled        CANCELLED; while the daemon drains: daemon-restart, QUEUED
//   no Done                 crashed          QUEUED; FAILED after max_failures in a row without a new checkpoint
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "hone/v1/jobs.pb.h"
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
};

// What the parts of the daemon share. Everything outlives the runners.
struct RunnerContext {
  const Layout* layout;
  Store* store;
  EventHub* hub;
  Metrics* metrics;
  RunnerOptions options;
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
  const std::string& job_id() const { return job_id_; }

 private:
  enum class Stop { kNone, kDrain, kCancel };

  void RequestStop(Stop stop);
  absl::Status Start();
  void Follow();
  void PressStop(std::chrono::steady_clock::time_point now);
  void Handle(const v1::FromWorker& message);
  void HandleStep(const v1::StepRecord& step);
  void HandleProgress(const v1::Progress& progress);
  void Record(const JobUpdate& update);
  void Advance(v1::JobState to);
  void Publish(v1::JobEvent event);
  void FlushRecords(JobUpdate* update);
  void Conclude();
  bool ConcludeOnce();
  JobUpdate Outcome(const JobHead& head);
  JobUpdate CrashOutcome(const JobHead& head);
  JobUpdate ErrorOutcome(const JobHead& head);

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
  std::FILE* steps_ = nullptr;
  std::optional<v1::StepRecord> unsaved_step_;
  std::optional<v1::MemoryUse> unsaved_memory_;
  std::chrono::steady_clock::time_point saved_at_;
  int warnings_ = 0;
  std::set<std::string> advice_;
};

}  // namespace hone
