#include "proto/base/file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

absl::Status Errno(std::string_view action, const std::string& path) {
  return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot ", action, " ", path)));
}

// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }
  int Close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

std::string ParentOf(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The size of a regular file. A FIFO would block the first read and a folder fails late, so both are refused here.
absl::StatusOr<uint64_t> RegularSize(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return Errno("stat", path);
  if (S_ISDIR(info.st_mode)) return FailedPrecondition(path, " is a folder, expected a file");
  if (!S_ISREG(info.st_mode)) return FailedPrecondition(path, " is not a regular file");
  return static_cast<uint64_t>(info.st_size);
}

absl::Status WriteAll(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno("write", path);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status FsyncPath(const std::string& path, int flags) {
  Descriptor fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (!fd.ok()) return Errno("open", path);
  if (::fsync(fd.get()) != 0) return Errno("fsync", path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  // O_NONBLOCK: opening a FIFO must not hang; it has no effect on regular files.
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return Errno("open", path);
  HONE_ASSIGN_OR_RETURN(const uint64_t size, RegularSize(fd.get(), path));
  if (size > max_bytes) {
    return ResourceExhausted(path, " is ", size, " bytes, more than the limit of ", max_bytes, " bytes");
  }
  // Some files under /proc and /sys say 0 and a file may grow while it is read: read to the end, within the limit.
  std::string bytes(size, '\0');
  size_t used = 0;
  while (true) {
    if (used == bytes.size()) {
      char probe[4096];
      const ssize_t count = ::read(fd.get(), probe, sizeof(probe));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Errno("read", path);
      if (count == 0) break;
      if (used + static_cast<size_t>(count) > max_bytes) {
        return ResourceExhausted(path, " is larger than the limit of ", max_bytes, " bytes");
      }
      bytes.append(probe, static_cast<size_t>(count));
      used = bytes.size();
      continue;
    }
    const ssize_t count = ::read(fd.get(), bytes.data() + used, bytes.size() - used);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno("read", path);
    if (count == 0) break;
    used += static_cast<size_t>(count);
  }
  bytes.resize(used);
  return bytes;
}

absl::Status WriteFileDurably(const std::string& path, std::string_view bytes) {
  std::string temporary = path + ".tmp-XXXXXX";
  Descriptor fd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.ok()) return Errno("create a temporary file beside", path);
  const auto write = [&]() -> absl::Status {
    HONE_RETURN_IF_ERROR(WriteAll(fd.get(), bytes, temporary));
    // mkstemp makes 0600; artefacts are read by the group that may use the daemon.
    if (::fchmod(fd.get(), 0640) != 0) return Errno("chmod", temporary);
    if (::fsync(fd.get()) != 0) return Errno("fsync", temporary);
    if (fd.Close() != 0) return Errno("close", temporary);
    if (::rename(temporary.c_str(), path.c_str()) != 0) return Errno("rename a temporary file to", path);
    return absl::OkStatus();
  };
  if (absl::Status status = write(); !status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  return FsyncDirectory(ParentOf(path));
}

absl::Status FsyncFile(const std::string& path) { return FsyncPath(path, O_RDONLY); }
absl::Status FsyncDirectory(const std::string& path) { return FsyncPath(path, O_RDONLY | O_DIRECTORY); }

absl::Status MakeDirectories(const std::string& path, unsigned mode) {
  if (path.empty()) return InvalidArgument("cannot create a folder with an empty name");
  for (size_t end = 1; end <= path.size(); ++end) {
    if (end < path.size() && path[end] != '/') continue;
    const std::string prefix = path.substr(0, end);
    if (::mkdir(prefix.c_str(), mode) == 0) continue;
    struct stat info;
    if (::stat(prefix.c_str(), &info) == 0) {
      if (S_ISDIR(info.st_mode)) continue;
      return FailedPrecondition("cannot create folder ", path, ": ", prefix, " is a file");
    }
    return Errno("create folder", prefix);
  }
  return absl::OkStatus();
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return Errno("open", path);
  HONE_ASSIGN_OR_RETURN(const uint64_t size, RegularSize(fd.get(), path));
  MappedFile file;
  file.path_ = path;
  if (size == 0) return file;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return Errno("map", path);
  file.data_ = data;
  file.size_ = size;
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace hone
