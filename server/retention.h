// What is kept of jobs that have ended, and for how long: logs (worker.log, steps.jsonl of attempts), checkpoints and
// events, by age and by size. Never of an unfinished job; results (adapters, exports) are the user's and
// stay.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "server/layout.h"
#include "server/store/store.h"

namespace hone {

struct RetentionOptions {
  // Zero: kept for ever.
  std::chrono::seconds logs{0};
  std::chrono::seconds checkpoints{0};
  std::chrono::seconds events{0};
  // Of all ended jobs together; the oldest go first. 0: no limit.
  uint64_t log_bytes = 0;
  uint64_t checkpoint_bytes = 0;
  uint64_t event_count = 0;
  std::chrono::seconds every = std::chrono::minutes(10);
};

struct RetentionReport {
  int logs = 0, checkpoints = 0, events = 0;  // jobs of which something was removed
  uint64_t bytes = 0;                         // freed
};

class Retention {
 public:
  Retention(const Layout* layout, Store* store, RetentionOptions options)
      : layout_(layout), store_(store), options_(options) {}
  // One round. Blocking; on a thread that may take its time. Stops early once `stop` is set.
  RetentionReport Run(const std::atomic<bool>& stop);
  const RetentionOptions& options() const { return options_; }

 private:
  uint64_t RemoveLogs(const std::string& id);
  uint64_t RemoveCheckpoints(const std::string& id);
  // Removes what `bit` (Purged) names and notes it. False: it could not be noted.
  bool Remove(const std::string& id, int64_t bit, RetentionReport* report);
  void ByAge(int64_t bit, std::chrono::seconds age, const std::atomic<bool>& stop, RetentionReport* report);
  void BySize(int64_t bit, uint64_t limit, const std::atomic<bool>& stop, RetentionReport* report);

  const Layout* layout_;
  Store* store_;
  const RetentionOptions options_;
};

}  // namespace hone
