// JSON lines on stdin and stdout for the verbs.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

// One line without its newline; false at the end. Lines over 64 MiB end the stream with an error line.
class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}
  bool Next(std::string* line);
  bool Ready();  // whether a whole line is there without waiting

 private:
  bool Fill();
  int fd_;
  std::string buffer_;
  size_t begin_ = 0;
  bool ended_ = false;
};

void PrintLine(const nlohmann::ordered_json& value);
nlohmann::ordered_json ErrorLine(const absl::Status& status);
// Prints the error of a whole run to stderr; returns 1.
int Fail(const absl::Status& status);
// Reads every line as a JSON object and prints what `answer` gives for it.
int ForEachLine(const std::function<absl::StatusOr<nlohmann::ordered_json>(const nlohmann::ordered_json&)>& answer);

}  // namespace hone
