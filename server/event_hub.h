// Tells watchers of a job that something happened. Durable events are in the store and only announced here; step
// records and progress are handed over, each watcher keeping a bounded number of them. Not here: gRPC.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hone/v1/jobs.pb.h"

namespace hone {

// A step record or progress, and the durable event it came after.
struct Transient {
  uint64_t after_sequence = 0;
  v1::JobEvent event;
};

// One watcher's mailbox. Thread-safe. When it is full the oldest record goes: records are also in files, and the newest
// matter most.
class Subscription {
 public:
  static constexpr size_t kMaxPending = 256;
  using Clock = std::chrono::steady_clock;
  explicit Subscription(std::function<void()> wake, std::function<void(Clock::time_point)> check = nullptr)
      : wake_(std::move(wake)), check_(std::move(check)) {}

  // Called by the hub.
  void Offer(const Transient* transient);
  // The oldest record whose predecessor has been sent, if there is one.
  bool Take(uint64_t sent_sequence, v1::JobEvent* event);
  // Whether something durable may have come since it was last asked.
  bool TakeAnnounced() { return announced_.exchange(false); }
  void Check(Clock::time_point now) const {
    if (check_) check_(now);
  }

 private:
  std::mutex mutex_;
  std::deque<Transient> pending_;
  std::atomic<bool> announced_{true};
  const std::function<void()> wake_;
  const std::function<void(Clock::time_point)> check_;
};

class EventHub {
 public:
  // `wake` is called, from any thread and possibly with locks of the hub's callers held, when there may be something
  // new: it must only schedule work. Null when kMaxSubscriptions are taken.
  // `check` may be null; it is called now and then (CheckAll).
  std::shared_ptr<Subscription> Subscribe(const std::string& job_id, std::function<void()> wake,
                                          std::function<void(Subscription::Clock::time_point)> check = nullptr);
  void Unsubscribe(const std::string& job_id, const std::shared_ptr<Subscription>& subscription);

  void Announce(const std::string& job_id);
  void Publish(const std::string& job_id, const Transient& transient);
  // Wakes everybody: the daemon is about to stop.
  void WakeAll();
  // Lets everybody see whether its client still reads.
  void CheckAll();
  size_t subscriptions() const;

 private:
  static constexpr size_t kMaxSubscriptions = 4096;
  std::vector<std::shared_ptr<Subscription>> All() const;
  std::vector<std::shared_ptr<Subscription>> Of(const std::string& job_id) const;

  mutable std::mutex mutex_;
  std::map<std::string, std::vector<std::shared_ptr<Subscription>>> by_job_;
  size_t count_ = 0;
};

}  // namespace hone
