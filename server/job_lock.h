// The lock of a job's folder: held by the one worker that may write there, through a descriptor it inherited. It is
// free exactly when no worker (and no child of one) is left, whatever happened to the daemon.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

class FileLock {
 public:
  // Takes the lock at once or fails with FAILED_PRECONDITION. The file is made if it is not there.
  static absl::StatusOr<FileLock> TryAcquire(const std::string& path);
  // The same after ending every process that holds it: workers that an earlier daemon left behind.
  static absl::StatusOr<FileLock> Seize(const std::string& path, std::chrono::milliseconds patience);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();
  int fd() const { return fd_; }

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace hone
