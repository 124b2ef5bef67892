// The stream of hone.v1.Models.Generate: a worker on the sessions executor fills a bounded queue, the stream empties
// it.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "server/reactors.h"
#include "server/services.h"

namespace hone {

class GeneratePump final : public StreamPump<v1::GenerateModelResponse> {
 public:
  // `uid`: who asks; a model named by its path must be that user's to read.
  GeneratePump(ServiceContext* context, v1::GenerateModelRequest request, int64_t uid)
      : context_(context), request_(std::move(request)), uid_(uid) {}

 private:
  static constexpr size_t kMaxPending = 256;

  void Begin(const std::shared_ptr<StreamPump>& self) override { weak_ = self; }
  Next Produce(v1::GenerateModelResponse* response, absl::Status* status) override;
  void End() override;
  // On the sessions executor, until the worker is done or the client has left.
  void Serve();
  absl::StatusOr<v1::Run> MakeRun() const;
  absl::Status Converse();
  absl::Status Push(const v1::GenerateChunk& chunk);
  bool gone();

  ServiceContext* context_;
  const v1::GenerateModelRequest request_;
  const int64_t uid_;
  std::weak_ptr<StreamPump> weak_;
  bool begun_ = false;

  std::mutex queue_mutex_;
  std::condition_variable room_;
  std::deque<v1::GenerateChunk> queue_;
  std::optional<absl::Status> ended_;  // the worker's last word
  bool over_ = false;                  // the stream has ended
};

}  // namespace hone
