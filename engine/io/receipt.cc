#include "engine/io/receipt.h"

#include <sys/stat.h>

#include <cerrno>

#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {

absl::StatusOr<FileReceipt> ReceiptOf(const std::string& directory, const std::string& name) {
  const std::string path = directory + "/" + name;
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot stat ", path)));
  FileReceipt receipt{.name = name, .bytes = static_cast<uint64_t>(info.st_size)};
  HONE_ASSIGN_OR_RETURN(receipt.sha256, Sha256HexOfFile(path));
  return receipt;
}

}  // namespace hone
