// Tells watchers of a job that something happened. Durable events are in the store and only announced here; step
// records and progress are handed over, each watcher keeping a bounded number of them. Where many watch one job they
// are woken in turn, so many a second that the machine has time for others; what comes to one of them meanwhile is
// coalesced: the newest record of each kind is kept. Not here: gRPC.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
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

  // Called by the hub: something happened; null: something durable.
  void Offer(const std::shared_ptr<const Transient>& transient);
  // The same without waking, the record in the place of older ones of its kind.
  void Hold(const std::shared_ptr<const Transient>& transient);
  void Wake() const { wake_(); }
  // The oldest record whose predecessor has been sent, if there is one.
  bool Take(uint64_t sent_sequence, v1::JobEvent* event);
  // Whether something durable may have come since it was last asked.
  bool TakeAnnounced() { return announced_.exchange(false); }
  void Check(Clock::time_point now) const {
    if (check_) check_(now);
  }

 private:
  std::mutex mutex_;
  std::deque<std::shared_ptr<const Transient>> pending_;  // shared with the other watchers
  std::atomic<bool> announced_{true};
  const std::function<void()> wake_;
  const std::function<void(Clock::time_point)> check_;
  bool due_ = false;  // the hub's, under its lock
  friend class EventHub;
};

class EventHub {
 public:
  struct Pace {
    size_t direct = 32;       // watchers of one job that are woken at once; where there are more, in turn
    size_t per_second = 500;  // so many of those
  };
  EventHub() : EventHub(Pace()) {}
  explicit EventHub(Pace pace);
  ~EventHub();
  EventHub(const EventHub&) = delete;
  EventHub& operator=(const EventHub&) = delete;

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
  void Tell(const std::string& job_id, const std::shared_ptr<const Transient>& transient);
  void WakeInTurn();

  const Pace pace_;
  mutable std::mutex mutex_;
  std::map<std::string, std::vector<std::shared_ptr<Subscription>>> by_job_;
  size_t count_ = 0;
  std::deque<std::shared_ptr<Subscription>> due_;  // to be woken, each at most once
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread pacer_;
};

}  // namespace hone
