// A clock of CUDA events for TimedOps, and a back end whose operations go through TimedOps. Not here: what is made of
// the times.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "proto/base/status.h"
#include "tests/bench/timed_ops.h"

namespace hone {

class EventClock : public OpClock {
 public:
  explicit EventClock(cudaStream_t stream) : stream_(stream) {}
  ~EventClock() override {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  void Grow(size_t count) {  // so that none is made while a step runs
    while (events_.size() < count) {
      cudaEvent_t event = nullptr;
      HONE_CHECK(cudaEventCreate(&event) == cudaSuccess, "no event");
      events_.push_back(event);
    }
  }
  void Mark() override {
    Grow(used_ + 1);
    HONE_CHECK(cudaEventRecord(events_[used_++], stream_) == cudaSuccess, "event");
  }
  std::vector<double> Take() override {
    HONE_CHECK(cudaStreamSynchronize(stream_) == cudaSuccess, "a kernel failed");
    std::vector<double> seconds;
    for (size_t i = 0; i < used_; ++i) {
      float milliseconds = 0;
      HONE_CHECK(cudaEventElapsedTime(&milliseconds, events_[0], events_[i]) == cudaSuccess, "event times");
      seconds.push_back(milliseconds * 1e-3);
    }
    used_ = 0;
    return seconds;
  }

 private:
  cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;
  size_t used_ = 0;
};

class TimedBackend : public Backend {
 public:
  TimedBackend(Backend& inner, OpClock& clock, int64_t vocabulary)
      : inner_(inner), timed_(inner.ops(), clock, vocabulary) {}
  TimedOps& timed() { return timed_; }
  Ops& ops() override { return timed_; }
  std::string name() const override { return inner_.name(); }
  uint64_t FreeBytes() const override { return inner_.FreeBytes(); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) override { return inner_.Reserve(bytes); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) override {
    return inner_.ReservePinned(bytes);
  }
  uint64_t ProcessBytes() const override { return inner_.ProcessBytes(); }
  void BeginWarmUp() override { inner_.BeginWarmUp(); }
  void EndWarmUp() override { inner_.EndWarmUp(); }

 private:
  Backend& inner_;
  TimedOps timed_;
};

}  // namespace hone
