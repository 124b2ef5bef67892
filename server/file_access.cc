#include "server/file_access.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "proto/base/status.h"
#include "server/errors.h"

namespace hone {
namespace {

constexpr size_t kMaxPathBytes = 1024;

absl::StatusOr<OpenFile> Regular(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return WithField(NotFound("path: \"", path, "\" is not a regular file"), "path");
  }
  return OpenFile(fd, static_cast<uint64_t>(info.st_size));
}

}  // namespace

OpenFile::OpenFile(OpenFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

OpenFile::~OpenFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::string> OpenFile::ReadAt(uint64_t offset, size_t limit) const {
  if (offset > static_cast<uint64_t>(INT64_MAX)) return std::string();
  std::string bytes(limit, '\0');
  ssize_t got;
  do {
    got = pread(fd_, bytes.data(), limit, static_cast<off_t>(offset));
  } while (got < 0 && errno == EINTR);
  if (got < 0) return absl::UnavailableError(ToAbsl(StrCat("reading a file: ", std::strerror(errno))));
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

// Walks the path a component at a time, each opened relative to the one before and never through a link, so that
// neither the text of the path nor a change of the folders meanwhile can lead outside. (openat2 would do the same in
// one call, but some containers refuse it.)
absl::StatusOr<OpenFile> OpenBeneath(const std::string& folder, const std::string& path) {
  const auto bad = [&](std::string_view why) { return WithField(InvalidArgument("path: ", why), "path"); };
  if (path.empty()) return bad("is empty; name a file as ListArtifacts shows it");
  if (path.size() > kMaxPathBytes) return bad(StrCat("at most ", kMaxPathBytes, " bytes"));
  if (path.find('\0') != std::string::npos) return bad("has a NUL byte");
  if (path[0] == '/') return bad("must be relative to the job's output");
  int at = open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (at < 0) return WithField(NotFound("path: the job has no output yet"), "path");
  size_t begin = 0;
  while (true) {
    const size_t slash = path.find('/', begin);
    const bool last = slash == std::string::npos;
    const std::string part = path.substr(begin, last ? std::string::npos : slash - begin);
    if (part.empty() || part == "." || part == "..") {
      close(at);
      return bad("empty, \".\" and \"..\" components are not allowed");
    }
    const int flags = O_CLOEXEC | O_NOFOLLOW | (last ? O_RDONLY | O_NONBLOCK | O_NOCTTY : O_PATH | O_DIRECTORY);
    const int next = openat(at, part.c_str(), flags);
    const int error = errno;
    close(at);
    if (next < 0 && (error == ELOOP || (error == ENOTDIR && !last))) return bad("leads through a link or a file");
    if (next < 0 && error == ENOENT) return WithField(NotFound("path: no such artifact \"", path, "\""), "path");
    if (next < 0) return WithField(absl::ErrnoToStatus(error, "path: cannot open the artifact"), "path");
    if (last) return Regular(next, path);
    at = next;
    begin = slash + 1;
  }
}

absl::StatusOr<OpenFile> OpenRegular(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot open ", path)));
  return Regular(fd, path);
}

std::vector<v1::Artifact> ListFiles(const std::string& folder, size_t limit) {
  namespace fs = std::filesystem;
  std::vector<v1::Artifact> files;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, fs::directory_options::skip_permission_denied, error);
  for (; !error && it != fs::recursive_directory_iterator() && files.size() < limit; it.increment(error)) {
    std::error_code ignored;
    if (it->is_symlink(ignored) || !it->is_regular_file(ignored)) continue;
    v1::Artifact& file = files.emplace_back();
    file.set_path(fs::path(it->path()).lexically_relative(folder).string());
    file.set_bytes(it->file_size(ignored));
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.path() < b.path(); });
  return files;
}

}  // namespace hone
