// What was written: the receipt that exports and checkpoints give.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace hone {

struct FileReceipt {
  std::string name;  // relative to the output folder; a single file's own name
  uint64_t bytes = 0;
  std::string sha256;  // 64 lower-case hex digits, of the bytes on disk
};

absl::StatusOr<FileReceipt> ReceiptOf(const std::string& directory, const std::string& name);

}  // namespace hone
