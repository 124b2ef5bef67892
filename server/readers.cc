#include "server/readers.h"

#include <vector>

#include "proto/base/status.h"
#include "server/errors.h"

namespace hone {

absl::Status Readers::Enter(const Client& client, std::function<void(Clock::time_point)> check, uint64_t* number) {
  std::lock_guard lock(mutex_);
  const auto found = of_client_.find(client);
  const size_t of_client = found == of_client_.end() ? 0 : found->second;
  if (readers_.size() >= limits_.in_all || of_client >= limits_.of_client) {
    return WithReason(ResourceExhausted("too many ", limits_.what, " (at most ", limits_.of_client, " by one client, ",
                                        limits_.in_all, " in all); end some of these calls"),
                      limits_.reason);
  }
  ++of_client_[client];
  *number = next_++;
  readers_[*number] = {client, std::move(check)};
  return absl::OkStatus();
}

void Readers::Leave(uint64_t number) {
  std::lock_guard lock(mutex_);
  const auto found = readers_.find(number);
  if (found == readers_.end()) return;
  const auto of_client = of_client_.find(found->second.client);
  if (--of_client->second == 0) of_client_.erase(of_client);
  readers_.erase(found);
}

void Readers::CheckAll() {
  std::vector<std::function<void(Clock::time_point)>> checks;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [number, reader] : readers_) checks.push_back(reader.check);
  }
  const auto now = Clock::now();
  for (const auto& check : checks) check(now);
}

size_t Readers::open() const {
  std::lock_guard lock(mutex_);
  return readers_.size();
}

}  // namespace hone
