#include "kernels/cpu/thread_pool.h"

#include "proto/base/status.h"

namespace hone {
namespace {

// A step is a quick succession of short operations: a waiting thread looks for about 100 microseconds before it
// sleeps, since waking it would take as long as many an operation.
constexpr int kSpins = 2000;

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <typename T>
void WaitWhile(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  HONE_CHECK(threads >= 1, "threads ", threads);
  for (int part = 1; part < threads; ++part) workers_.emplace_back([this, part] { Loop(part); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(Function function, void* context) {
  if (workers_.empty()) return function(context, 0);
  function_ = function;
  context_ = context;
  pending_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  function(context, 0);
  for (int32_t left = pending_.load(std::memory_order_acquire); left != 0;
       left = pending_.load(std::memory_order_acquire)) {
    WaitWhile(pending_, left);
  }
}

void ThreadPool::Loop(int part) {
  uint32_t seen = 0;
  while (true) {
    WaitWhile(generation_, seen);
    ++seen;  // Run waits for everybody, so no generation is ever missed
    if (stop_) return;
    function_(context_, part);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace hone
