#include "engine/train/step_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

std::string KeptLines(std::string_view text, int64_t last_step) {
  std::string kept;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // cut short by a crash
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    const auto parsed = ParseJson(line);
    if (!parsed.ok() || !parsed->is_object() || !parsed->contains("step") || !(*parsed)["step"].is_number_integer())
      continue;
    if ((*parsed)["step"].get<int64_t>() <= last_step) kept += StrCat(line, "\n");
  }
  return kept;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepLog>> StepLog::Open(const std::string& path, int64_t last_step) {
  std::string kept;
  if (last_step > 0 && ::access(path.c_str(), F_OK) == 0) {
    HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    kept = KeptLines(text, last_step);
  }
  HONE_RETURN_IF_ERROR(WriteFileDurably(path, kept));
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return Internal(path, ": cannot be opened: ", std::strerror(errno));
  return std::unique_ptr<StepLog>(new StepLog(fd, path));
}

StepLog::~StepLog() { ::close(fd_); }

absl::Status StepLog::Append(const google::protobuf::Message& record) {
  const std::string line = MessageToJson(record) + "\n";
  for (size_t written = 0; written < line.size();) {
    const ssize_t n = ::write(fd_, line.data() + written, line.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const std::string message = StrCat(path_, ": cannot be written: ", std::strerror(errno));
      return errno == ENOSPC ? ResourceExhausted(message) : Internal(message);
    }
    written += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status StepLog::Flush() {
  if (::fdatasync(fd_) != 0) return Internal(path_, ": cannot be synced: ", std::strerror(errno));
  return absl::OkStatus();
}

}  // namespace hone
