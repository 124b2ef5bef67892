#include "engine/worker/lines.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {
constexpr size_t kMaxLineBytes = size_t{64} << 20;
}

bool LineReader::Fill() {
  char chunk[65536];
  const ssize_t n = ::read(fd_, chunk, sizeof(chunk));
  if (n < 0 && errno == EINTR) return true;
  if (n <= 0) return !(ended_ = true);
  buffer_.erase(0, begin_);
  begin_ = 0;
  buffer_.append(chunk, static_cast<size_t>(n));
  return true;
}

bool LineReader::Next(std::string* line) {
  while (true) {
    const size_t end = buffer_.find('\n', begin_);
    if (end != std::string::npos) {
      *line = buffer_.substr(begin_, end - begin_);
      begin_ = end + 1;
      return true;
    }
    if (buffer_.size() - begin_ > kMaxLineBytes) {
      PrintLine(ErrorLine(ResourceExhausted("a line has more than ", kMaxLineBytes, " bytes")));
      return false;
    }
    if (!ended_ && Fill() && !ended_) continue;
    if (begin_ >= buffer_.size()) return false;
    *line = buffer_.substr(begin_);  // a last line without a newline
    begin_ = buffer_.size();
    return true;
  }
}

bool LineReader::Ready() {
  if (buffer_.find('\n', begin_) != std::string::npos) return true;
  pollfd waiting{fd_, POLLIN, 0};
  while (!ended_ && ::poll(&waiting, 1, 0) > 0 && Fill()) {
    if (buffer_.find('\n', begin_) != std::string::npos) return true;
  }
  return ended_ && begin_ < buffer_.size();
}

void PrintLine(const nlohmann::ordered_json& value) {
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

nlohmann::ordered_json ErrorLine(const absl::Status& status) { return {{"error", std::string(status.message())}}; }

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "honed-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

int ForEachLine(const std::function<absl::StatusOr<nlohmann::ordered_json>(const nlohmann::ordered_json&)>& answer) {
  LineReader reader(STDIN_FILENO);
  std::string line;
  while (reader.Next(&line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto checked = ParseJson(line);
    if (!checked.ok()) {
      PrintLine(ErrorLine(checked.status()));
      continue;
    }
    if (!checked->is_object()) {
      PrintLine(ErrorLine(InvalidArgument("expected a JSON object a line")));
      continue;
    }
    const auto result = answer(nlohmann::ordered_json::parse(line));
    PrintLine(result.ok() ? *result : ErrorLine(result.status()));
  }
  return 0;
}

}  // namespace hone
