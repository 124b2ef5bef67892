// One `honed-worker serve --fd 3` process and the channel to it. The worker has its own process group, dies with the
// daemon (PR_SET_PDEATHSIG) and holds the lock of its job's folder for as long as it lives, so that a second copy never
// runs. Not here: what the messages mean (job_runner, worker_call).
//
// The death signal follows the *thread* that called Start, not the process: call it on a thread that outlives the
// worker.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/worker.pb.h"

namespace hone {

struct WorkerOptions {
  std::string program;
  std::string log_path;  // stdout and stderr are appended to it; empty: the daemon's own stderr
  int lock_fd = -1;      // passed on, so that the lock lives as long as the worker; -1: none
};

struct WorkerExit {
  int status = 0;    // exit status, if it was not killed
  int signal = 0;    // 0: it exited
  std::string text;  // "exited with status 1", "was killed by signal 9 (Killed)"
};

class WorkerProcess {
 public:
  enum class ReadResult { kMessage, kNothing, kEnd };

  static absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(const WorkerOptions& options);
  // Kills and reaps it if it still runs.
  ~WorkerProcess();
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  pid_t pid() const { return pid_; }
  // Thread-safe. UNAVAILABLE if it is gone, DEADLINE_EXCEEDED if it does not read.
  absl::Status Send(const v1::ToWorker& message);
  // No more messages to the worker; its own still arrive.
  void CloseSending();
  // Waits for a message. kNothing: the time is over or Wake was called. kEnd: the worker closed the channel. DATA_LOSS:
  // what arrived is no message. One reading thread.
  absl::StatusOr<ReadResult> Read(std::chrono::milliseconds timeout, v1::FromWorker* message);
  // Makes a Read in another thread return.
  void Wake();
  // To the whole process group.
  void Signal(int signal);
  // Waits until it has ended, killing it after `grace`.
  WorkerExit Wait(std::chrono::milliseconds grace);

 private:
  WorkerProcess(pid_t pid, int channel, int wake) : pid_(pid), channel_(channel), wake_(wake) {}

  const pid_t pid_;
  const int channel_;
  const int wake_;  // eventfd
  std::mutex send_mutex_;
  bool reaped_ = false;
};

// `name` in the folder of the running program.
std::string ProgramBeside(const std::string& name);

}  // namespace hone
