// Which job runs when: strictly by priority, then by order of submission; a later job never overtakes one that waits.
// On the CPU one job at a time, and only when its planned bytes fit into the memory that is free. Not here: what an
// attempt does (job_runner), what may enter the queue (admission).
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "server/job_runner.h"

namespace hone {

struct SchedulerOptions {
  size_t max_running = 1;
  std::chrono::milliseconds retry_delay =
      std::chrono::seconds(2);            // times the failures, before a crashed job starts again
  std::function<uint64_t()> free_memory;  // bytes; null: what the machine has available
};

class Scheduler {
 public:
  Scheduler(const RunnerContext& context, SchedulerOptions options);
  ~Scheduler();  // Drain()

  // Before Start: ends workers that an earlier daemon left behind, and puts every job that was under way back where it
  // can go on: into the queue (the attempt ends as "daemon-restart", which is never counted as a failure) or, if it was
  // being cancelled, to CANCELLED.
  absl::Status Recover();
  void Start();
  // Something may have changed: a job came.
  void Wake();
  // FAILED_PRECONDITION with reason JOB_FINISHED if it has ended otherwise; OK if it is cancelled or being cancelled.
  absl::Status Cancel(const std::string& job_id);
  // Starts nothing more, lets what runs checkpoint and go back to the queue, and returns when no worker is left.
  void Drain();

 private:
  struct Running {
    std::unique_ptr<JobRunner> runner;
    std::thread thread;
    bool finished = false;
  };

  void Loop();
  void Reap();
  void RunOne(JobRunner* runner);
  // Starts the job at the head of the queue if it may run now.
  void StartNext();
  bool FitsNow(const QueuedJob& job);
  absl::Status RecoverJob(const std::string& job_id);

  const RunnerContext context_;
  const SchedulerOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool poked_ = false;
  bool draining_ = false;
  std::chrono::steady_clock::time_point look_again_ = std::chrono::steady_clock::time_point::max();
  std::map<std::string, Running> running_;
  std::map<std::string, std::chrono::steady_clock::time_point> not_before_;
  std::string waiting_for_memory_;  // the job that was last said to wait
  std::thread thread_;
};

// MemAvailable of /proc/meminfo in bytes; 0 if it cannot be read.
uint64_t AvailableMemory();
uint64_t TotalMemory();

}  // namespace hone
