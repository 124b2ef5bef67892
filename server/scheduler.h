// Which job runs when: strictly by priority, then by its place in the queue; a later job never overtakes one that waits
// for memory (jobs that wait for other jobs are passed over). On the CPU one job at a time; on a card as many as fit: a
// job starts when its planned bytes are free. A running job that allows it is moved aside for a waiting one of higher
// priority. Jobs held for a resource go on when it is back. Not here: what an attempt does (job_runner), what may enter
// the queue (admission).
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "server/cards.h"
#include "server/job_runner.h"

namespace hone {

struct SchedulerOptions {
  size_t max_running = 1;          // on the CPU
  size_t max_running_on_card = 4;  // they share its time
  std::chrono::milliseconds retry_delay =
      std::chrono::seconds(2);            // times the failures, before a crashed job starts again
  std::function<uint64_t()> free_memory;  // bytes; null: what the machine has available
  // The card that jobs run on; null, or nullopt: unknown, then it is the worker that finds out.
  std::function<std::optional<CardReading>()> card;
  std::function<std::vector<ForeignProcess>()> foreign;  // who else holds its memory, the largest first; null: unknown
  std::function<uint64_t()> free_disk;                   // bytes of the state folder; null: what its file system says
  std::function<absl::Status()> probe_gpu;               // whether the cards answer; null: ProbeGpu
  // How often jobs that are held for a resource are looked at; each time the same job is held again it waits twice as
  // long, up to hold_max.
  std::chrono::milliseconds hold_poll = std::chrono::seconds(2);
  std::chrono::milliseconds hold_max = std::chrono::minutes(10);
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
  // FAILED_PRECONDITION with reason JOB_FINISHED or NOT_PAUSABLE; OK if it is paused or being paused.
  absl::Status Pause(const std::string& job_id);
  // PAUSED (Resume) or HELD (Release) to QUEUED; OK if it waits or runs already. FAILED_PRECONDITION with reason
  // JOB_FINISHED, NOT_PAUSED or NOT_HELD.
  absl::Status Resume(const std::string& job_id);
  absl::Status Release(const std::string& job_id);
  // QUEUED to HELD. FAILED_PRECONDITION with reason JOB_FINISHED or NOT_QUEUED.
  absl::Status Hold(const std::string& job_id, const std::string& message);
  // What keeps jobs from starting now, for people; "": nothing.
  std::string Problem();
  // Device memory that a plan may count on: what is free now and what running jobs will give back; 0: unknown.
  uint64_t CardBudget();
  // Starts nothing more, lets what runs checkpoint and go back to the queue, and returns when no worker is left.
  void Drain();

 private:
  struct Running {
    std::unique_ptr<JobRunner> runner;
    std::thread thread;
    bool finished = false;
    int32_t priority = 0;
    bool preemptible = false;
    bool preempted = false;
    bool on_card = false;
    uint64_t card_bytes = 0;  // planned
  };
  struct Held {
    std::chrono::milliseconds wait;
    std::chrono::steady_clock::time_point look;
  };

  void Loop();
  void Reap();
  void RunOne(JobRunner* runner);
  // Starts the job at the head of the queue if it may run now.
  void StartNext();
  bool FitsNow(const QueuedJob& job);
  // Says that this job waits for memory, once for each cause: an event, and the reason of its state (kWaitsForMemory).
  void SayItWaits(const QueuedJob& job, uint64_t needed, uint64_t free, const std::string& where,
                  const std::string& cause = "");
  // Who holds a card's memory. With mutex_ held.
  std::string HoldersOf(const CardReading& card) const;
  bool DiskHasRoom();
  // Moves aside the running job of lowest priority below this one's, if it allows that.
  void MakeRoomFor(const QueuedJob& job);
  void ReleaseHeld();
  bool CauseIsGone(const HeldJob& job);
  absl::Status Requeue(const std::string& job_id, v1::JobState from, std::string_view reason, bool drop_dependencies);
  // For the states a user asks for: reads the head, applies `decide` and stores the result; again if the job moved.
  // `decide` leaves `states` empty where nothing is to be done.
  absl::Status Change(const std::string& job_id, const std::function<absl::Status(const JobHead&, JobUpdate*)>& decide);
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
  std::map<std::string, int> memory_waits_;  // how often in a row a job found its memory taken
  std::string waiting_for_memory_;           // the job that was last said to wait, and for what
  std::string problem_;
  std::map<std::string, Held> held_;      // the loop's own: how long a held job waits before the next look
  std::vector<std::string> held_forget_;  // ended: to be dropped from it
  std::chrono::steady_clock::time_point look_at_held_{};
  std::thread thread_;
};

// MemAvailable of /proc/meminfo in bytes; 0 if it cannot be read.
uint64_t AvailableMemory();
uint64_t TotalMemory();

}  // namespace hone
