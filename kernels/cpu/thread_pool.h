// The process's one set of computing threads: persistent, with work divided by position and never by timing, so that a
// result does not depend on which thread was quicker. Not a task queue.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace hone {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller is one of them: threads - 1 are started
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // f(part) for part in [0, threads()), one per thread; returns when all are done. Not reentrant; f must not throw.
  template <typename F>
  void Parts(F&& f) {
    Run([](void* context, int part) noexcept { (*static_cast<std::remove_reference_t<F>*>(context))(part); }, &f);
  }

  // f(begin, end) over [0, n) in at most threads() contiguous ranges of at least `grain`.
  template <typename F>
  void Ranges(int64_t n, int64_t grain, F&& f) {
    const int64_t parts = std::min<int64_t>(threads(), n / std::max<int64_t>(grain, 1));
    if (parts <= 1) {
      if (n > 0) f(int64_t{0}, n);
      return;
    }
    Parts([&](int part) {
      if (part < parts) f(n * part / parts, n * (part + 1) / parts);
    });
  }

 private:
  using Function = void (*)(void*, int) noexcept;
  void Run(Function function, void* context);
  void Loop(int part);

  std::vector<std::thread> workers_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int32_t> pending_{0};
  std::atomic<bool> stop_{false};
  Function function_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace hone
