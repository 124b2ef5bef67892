// A few threads and a bounded queue of work. gRPC's reactions post here and return at once; what would wait for a
// worker process runs on an executor of its own, so that it never delays a quick answer.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace hone {

class Executor {
 public:
  Executor(size_t threads, size_t max_queued);
  ~Executor();  // Stop()
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False: the queue is full or the executor has stopped; `work` will not run.
  bool Post(std::function<void()> work);
  // Runs what is queued, then ends the threads. Called from outside the executor's threads.
  void Stop();

 private:
  void Loop();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace hone
