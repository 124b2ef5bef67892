#include "server/ballast.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/blobs.h"

namespace hone {

void Ballast::Fill(uint64_t keep_free) {
  std::lock_guard lock(mutex_);
  struct stat info;
  if (stat(path_.c_str(), &info) == 0 && static_cast<uint64_t>(info.st_size) >= bytes_) return;
  const size_t slash = path_.rfind('/');
  if (DiskFree(path_.substr(0, slash)) < keep_free + bytes_) return;
  const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return;
  const bool filled = posix_fallocate(fd, 0, static_cast<off_t>(bytes_)) == 0;
  close(fd);
  if (!filled) unlink(path_.c_str());
}

bool Ballast::Release() {
  std::lock_guard lock(mutex_);
  return unlink(path_.c_str()) == 0;
}

}  // namespace hone
