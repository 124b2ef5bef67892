// steps.jsonl: one line a step or evaluation, appended as they happen. On resume, lines past the checkpoint are
// dropped, so that a resumed run's file equals that of an undisturbed one (times apart).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"

namespace hone {

class StepLog {
 public:
  // Keeps the lines whose "step" is at most `last_step`.
  static absl::StatusOr<std::unique_ptr<StepLog>> Open(const std::string& path, int64_t last_step);
  ~StepLog();
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;
  absl::Status Append(const google::protobuf::Message& record);  // StepRecord or EvalRecord
  absl::Status Flush();                                          // on disk when it returns

 private:
  StepLog(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

}  // namespace hone
