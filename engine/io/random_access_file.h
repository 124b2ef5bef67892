// A file read at any place by any number of threads at once. Not a mapping: what the disk fails to give is an error,
// not a signal, and large reads need no page tables.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

class RandomAccessFile {
 public:
  static absl::StatusOr<RandomAccessFile> Open(const std::string& path);
  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;
  ~RandomAccessFile();

  // Exactly `bytes` from `offset` on; an error naming the path and the offset where the file ends before.
  absl::Status ReadAt(uint64_t offset, uint64_t bytes, void* out) const;

 private:
  RandomAccessFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

}  // namespace hone
