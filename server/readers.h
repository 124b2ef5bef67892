// The streams of one kind (files that are read, uploads, watches) that clients have open: bounded in all and per
// client, for each holds memory or disk; and looked at now and then, so that a client that does nothing any more is cut
// off. Not here: what goes through them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "absl/status/status.h"

namespace hone {

class Readers {
 public:
  // User and, for the daemon's own user, process; -1 where nothing is known.
  using Client = std::pair<int64_t, int64_t>;
  using Clock = std::chrono::steady_clock;
  struct Limits {
    size_t in_all = 128;
    size_t of_client = 32;
    const char* what = "files are being read";
    const char* reason = "TOO_MANY_READERS";
  };
  Readers() : Readers(Limits()) {}
  explicit Readers(Limits limits) : limits_(limits) {}

  // A number for Leave. `check` must only look and ask for an end. RESOURCE_EXHAUSTED with the limits' reason.
  absl::Status Enter(const Client& client, std::function<void(Clock::time_point)> check, uint64_t* number);
  void Leave(uint64_t number);
  void CheckAll();
  size_t open() const;

 private:
  struct Reader {
    Client client;
    std::function<void(Clock::time_point)> check;
  };
  const Limits limits_;
  mutable std::mutex mutex_;
  std::map<uint64_t, Reader> readers_;
  std::map<Client, size_t> of_client_;
  uint64_t next_ = 1;
};

}  // namespace hone
