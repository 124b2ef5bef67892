#include "engine/io/output_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

absl::Status Errno(int error, std::string_view action, const std::string& path) {
  if (error == ENOSPC || error == EDQUOT) return ResourceExhausted("cannot ", action, " ", path, ": the disk is full");
  return absl::ErrnoToStatus(error, ToAbsl(StrCat("cannot ", action, " ", path)));
}

}  // namespace

OutputFile::OutputFile(int fd, std::string temporary, std::string path)
    : fd_(fd), temporary_(std::move(temporary)), path_(std::move(path)) {}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path) {
  std::string temporary = path + ".tmp-XXXXXX";
  const int fd = ::mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return Errno(errno, "create a temporary file beside", path);
  return std::unique_ptr<OutputFile>(new OutputFile(fd, temporary, path));
}

absl::Status OutputFile::WriteAt(uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno(errno, "write", path_);
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Reserve(uint64_t bytes) {
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return Errno(errno, "extend", path_);
  if (bytes == 0) return absl::OkStatus();
  const int error = ::posix_fallocate(fd_, 0, static_cast<off_t>(bytes));
  if (error != 0 && error != EOPNOTSUPP && error != EINVAL) return Errno(error, "reserve space for", path_);
  return absl::OkStatus();
}

absl::Status OutputFile::Commit() {
  if (::fchmod(fd_, 0640) != 0) return Errno(errno, "chmod", path_);
  if (::fsync(fd_) != 0) return Errno(errno, "fsync", path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return Errno(errno, "rename a temporary file to", path_);
  ::close(std::exchange(fd_, -1));
  const size_t slash = path_.find_last_of('/');
  return FsyncDirectory(slash == std::string::npos ? "." : slash == 0 ? "/" : path_.substr(0, slash));
}

}  // namespace hone
