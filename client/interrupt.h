// Ctrl-C and --timeout as a Cancellation: while an Interrupt lives, SIGINT and SIGTERM end the calls instead of the
// program. One at a time.
#pragma once

#include <atomic>
#include <thread>

#include "client/client.h"

namespace hone {

class Interrupt {
 public:
  // timeout_seconds <= 0: none.
  explicit Interrupt(int timeout_seconds = 0);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  Cancellation* cancellation() { return &cancellation_; }
  bool interrupted() const { return interrupted_; }
  bool timed_out() const { return timed_out_; }
  // Sleeps, or returns early (false) once cancelled.
  bool Sleep(int milliseconds) const;

 private:
  void Run(int timeout_seconds);

  Cancellation cancellation_;
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> timed_out_{false};
  int stop_[2] = {-1, -1};
  std::thread thread_;
};

}  // namespace hone
