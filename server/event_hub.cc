#include "server/event_hub.h"

#include <algorithm>
#include <utility>

namespace hone {

void Subscription::Offer(const Transient* transient) {
  if (transient != nullptr) {
    std::lock_guard lock(mutex_);
    if (pending_.size() == kMaxPending) pending_.pop_front();
    pending_.push_back(*transient);
  } else {
    announced_ = true;
  }
  wake_();
}

bool Subscription::Take(uint64_t sent_sequence, v1::JobEvent* event) {
  std::lock_guard lock(mutex_);
  if (pending_.empty() || pending_.front().after_sequence > sent_sequence) return false;
  *event = std::move(pending_.front().event);
  pending_.pop_front();
  return true;
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

void EventHub::Announce(const std::string& job_id) {
  for (const auto& subscription : Of(job_id)) subscription->Offer(nullptr);
}

void EventHub::Publish(const std::string& job_id, const Transient& transient) {
  for (const auto& subscription : Of(job_id)) subscription->Offer(&transient);
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
