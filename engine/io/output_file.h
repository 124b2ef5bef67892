// A file being written at known offsets: temporary until Commit makes it durable and visible. Destroyed earlier it
// leaves nothing. Used by the safetensors and GGUF writers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

class OutputFile {
 public:
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  absl::Status WriteAt(uint64_t offset, std::string_view bytes);
  // Sets the length (bytes never written are zero) and reserves the space, so that a full disk shows at once.
  absl::Status Reserve(uint64_t bytes);
  absl::Status Commit();  // fsync, rename, fsync of the folder

 private:
  OutputFile(int fd, std::string temporary, std::string path);
  int fd_;
  std::string temporary_;
  std::string path_;
};

}  // namespace hone
