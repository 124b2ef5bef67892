#include "server/job_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

bool HasOpen(const std::filesystem::path& process, const struct stat& wanted) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(process / "fd", error)) {
    struct stat info;
    if (stat(entry.path().c_str(), &info) == 0 && info.st_dev == wanted.st_dev && info.st_ino == wanted.st_ino) {
      return true;
    }
  }
  return false;
}

// Ends every other process that has the file open.
void KillHolders(const std::string& path) {
  struct stat wanted;
  if (stat(path.c_str(), &wanted) != 0) return;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) continue;
    const pid_t pid = static_cast<pid_t>(std::stol(name));
    if (pid == getpid() || !HasOpen(entry.path(), wanted)) continue;
    kill(pid, SIGKILL);
  }
}

}  // namespace

absl::StatusOr<FileLock> FileLock::TryAcquire(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
  if (fd < 0) return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot open ", path)));
  FileLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return FailedPrecondition(path, " is held by another process");
    return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot lock ", path)));
  }
  return lock;
}

absl::StatusOr<FileLock> FileLock::Seize(const std::string& path, std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (true) {
    absl::StatusOr<FileLock> lock = TryAcquire(path);
    if (lock.ok() || !absl::IsFailedPrecondition(lock.status())) return lock;
    if (std::chrono::steady_clock::now() >= deadline) return lock;
    KillHolders(path);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileLock::~FileLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace hone
