#include "server/event_hub.h"

#include <algorithm>
#include <utility>

namespace hone {
namespace {

constexpr std::chrono::milliseconds kTurn(10);

}  // namespace

void Subscription::Offer(const std::shared_ptr<const Transient>& transient) {
  if (transient != nullptr) {
    std::lock_guard lock(mutex_);
    if (pending_.size() == kMaxPending) pending_.pop_front();
    pending_.push_back(transient);
  } else {
    announced_ = true;
  }
  wake_();
}

void Subscription::Hold(const std::shared_ptr<const Transient>& transient) {
  if (transient == nullptr) {
    announced_ = true;
    return;
  }
  std::lock_guard lock(mutex_);
  std::erase_if(pending_, [&](const std::shared_ptr<const Transient>& older) {
    return older->event.event_case() == transient->event.event_case();
  });
  pending_.push_back(transient);
}

bool Subscription::Take(uint64_t sent_sequence, v1::JobEvent* event) {
  std::lock_guard lock(mutex_);
  if (pending_.empty() || pending_.front()->after_sequence > sent_sequence) return false;
  *event = pending_.front()->event;
  pending_.pop_front();
  return true;
}

EventHub::EventHub(Pace pace) : pace_(pace), pacer_([this] { WakeInTurn(); }) {}

EventHub::~EventHub() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  pacer_.join();
}

std::shared_ptr<Subscription> EventHub::Subscribe(const std::string& job_id, std::function<void()> wake,
                                                  std::function<void(Subscription::Clock::time_point)> check) {
  std::lock_guard lock(mutex_);
  if (count_ >= kMaxSubscriptions) return nullptr;
  ++count_;
  auto subscription = std::make_shared<Subscription>(std::move(wake), std::move(check));
  by_job_[job_id].push_back(subscription);
  return subscription;
}

void EventHub::Unsubscribe(const std::string& job_id, const std::shared_ptr<Subscription>& subscription) {
  std::lock_guard lock(mutex_);
  const auto found = by_job_.find(job_id);
  if (found == by_job_.end()) return;
  count_ -= std::erase(found->second, subscription);
  if (found->second.empty()) by_job_.erase(found);
}

std::vector<std::shared_ptr<Subscription>> EventHub::Of(const std::string& job_id) const {
  std::lock_guard lock(mutex_);
  const auto found = by_job_.find(job_id);
  return found == by_job_.end() ? std::vector<std::shared_ptr<Subscription>>() : found->second;
}

void EventHub::Announce(const std::string& job_id) { Tell(job_id, nullptr); }

void EventHub::Publish(const std::string& job_id, const Transient& transient) {
  Tell(job_id, std::make_shared<const Transient>(transient));
}

void EventHub::Tell(const std::string& job_id, const std::shared_ptr<const Transient>& transient) {
  const auto watchers = Of(job_id);
  if (watchers.size() <= pace_.direct) {
    for (const auto& subscription : watchers) subscription->Offer(transient);
    return;
  }
  for (const auto& subscription : watchers) subscription->Hold(transient);
  {
    std::lock_guard lock(mutex_);
    for (const auto& subscription : watchers) {
      if (!std::exchange(subscription->due_, true)) due_.push_back(subscription);
    }
  }
  changed_.notify_one();
}

void EventHub::WakeInTurn() {
  const size_t each = std::max<size_t>(1, pace_.per_second * static_cast<size_t>(kTurn.count()) / 1000);
  std::vector<std::shared_ptr<Subscription>> turn;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !due_.empty(); });
    if (stopping_) return;
    for (size_t i = 0; i < each && !due_.empty(); ++i) {
      due_.front()->due_ = false;
      turn.push_back(std::move(due_.front()));
      due_.pop_front();
    }
    lock.unlock();
    for (const auto& subscription : turn) subscription->Wake();
    turn.clear();
    std::this_thread::sleep_for(kTurn);
    lock.lock();
  }
}

std::vector<std::shared_ptr<Subscription>> EventHub::All() const {
  std::vector<std::shared_ptr<Subscription>> all;
  std::lock_guard lock(mutex_);
  for (const auto& [id, list] : by_job_) all.insert(all.end(), list.begin(), list.end());
  return all;
}

void EventHub::WakeAll() {
  for (const auto& subscription : All()) subscription->Offer(nullptr);
}

void EventHub::CheckAll() {
  const auto now = Subscription::Clock::now();
  for (const auto& subscription : All()) subscription->Check(now);
}

size_t EventHub::subscriptions() const {
  std::lock_guard lock(mutex_);
  return count_;
}

}  // namespace hone
