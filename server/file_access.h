// Files beneath a folder that a client names by path: never outside it, never through a link, never a device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/worker.pb.h"

namespace hone {

// An open regular file.
class OpenFile {
 public:
  OpenFile() = default;
  OpenFile(int fd, uint64_t size) : fd_(fd), size_(size) {}
  OpenFile(OpenFile&& other) noexcept;
  OpenFile& operator=(OpenFile&& other) noexcept;
  ~OpenFile();
  bool is_open() const { return fd_ >= 0; }
  uint64_t size() const { return size_; }  // when it was opened
  // At most `limit` bytes from `offset`; "" at the end.
  absl::StatusOr<std::string> ReadAt(uint64_t offset, size_t limit) const;

 private:
  int fd_ = -1;
  uint64_t size_ = 0;
};

// INVALID_ARGUMENT for a path that is absolute or leads out of the folder, NOT_FOUND if there is no such regular file.
absl::StatusOr<OpenFile> OpenBeneath(const std::string& folder, const std::string& path);
absl::StatusOr<OpenFile> OpenRegular(const std::string& path);

// Regular files beneath a folder, by path, without digests; at most `limit`. Links are left out.
std::vector<v1::Artifact> ListFiles(const std::string& folder, size_t limit);

}  // namespace hone
