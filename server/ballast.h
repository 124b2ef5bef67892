// A file that takes up a little disk space for nothing, so that on a full disk there is a last reserve: removed, it
// lets the store record that a job is held. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace hone {

class Ballast {
 public:
  Ballast(std::string path, uint64_t bytes) : path_(std::move(path)), bytes_(bytes) {}
  // Makes it if it is not there and the disk has at least `keep_free` bytes beyond it.
  void Fill(uint64_t keep_free);
  // Gives the space back. False: there was none to give.
  bool Release();

 private:
  const std::string path_;
  const uint64_t bytes_;
  std::mutex mutex_;
};

}  // namespace hone
