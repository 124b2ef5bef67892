// Files: whole reads with a bound, read-only mappings, and writes that are on disk when they return.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

// Reads a whole file; an error naming the path and the limit if it is larger than max_bytes.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes = uint64_t{1} << 30);

// Temporary file beside `path`, write, fsync, rename, fsync of the folder. On error `path` is as it was.
absl::Status WriteFileDurably(const std::string& path, std::string_view bytes);
absl::Status FsyncFile(const std::string& path);
absl::Status FsyncDirectory(const std::string& path);
absl::Status MakeDirectories(const std::string& path, unsigned mode = 0750);

// A read-only private mapping. Empty files map to an empty view.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

}  // namespace hone
