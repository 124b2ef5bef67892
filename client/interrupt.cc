#include "client/interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>

namespace hone {
namespace {

// The handler may only write to a pipe; this is its number. One Interrupt lives at a time.
std::atomic<int> signal_pipe{-1};

void OnSignal(int) {
  const char byte = 's';
  const int fd = signal_pipe;
  if (fd >= 0) [[maybe_unused]]
    const ssize_t written = write(fd, &byte, 1);
}

}  // namespace

Interrupt::Interrupt(int timeout_seconds) {
  if (pipe2(stop_, O_CLOEXEC | O_NONBLOCK) != 0) return;
  signal_pipe = stop_[1];
  struct sigaction action {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  thread_ = std::thread([this, timeout_seconds] { Run(timeout_seconds); });
}

Interrupt::~Interrupt() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal_pipe = -1;
  const char byte = 'q';
  if (stop_[1] >= 0) [[maybe_unused]]
    const ssize_t written = write(stop_[1], &byte, 1);
  if (thread_.joinable()) thread_.join();
  for (int fd : stop_) {
    if (fd >= 0) close(fd);
  }
}

void Interrupt::Run(int timeout_seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_seconds);
  while (true) {
    int wait = -1;
    if (timeout_seconds > 0 && !cancellation_.cancelled()) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      wait = static_cast<int>(std::max<int64_t>(0, left.count()));
    }
    pollfd event{stop_[0], POLLIN, 0};
    const int ready = poll(&event, 1, wait);
    if (ready == 0) {
      timed_out_ = true;
      cancellation_.Cancel();
      continue;
    }
    char byte = 0;
    if (ready < 0 || read(stop_[0], &byte, 1) != 1) continue;
    if (byte == 'q') return;
    interrupted_ = true;
    cancellation_.Cancel();
  }
}

bool Interrupt::Sleep(int milliseconds) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
  while (!cancellation_.cancelled() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return !cancellation_.cancelled();
}

}  // namespace hone
