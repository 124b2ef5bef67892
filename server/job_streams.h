// The server streams of hone.v1.Jobs: events, logs, artifacts. Each produces one message at a time (reactors.h).
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "grpcpp/alarm.h"
#include "hone/v1/jobs.pb.h"
#include "server/event_hub.h"
#include "server/file_access.h"
#include "server/reactors.h"
#include "server/services.h"

namespace hone {

// Replays durable events after a sequence number, in order and without a gap, then follows until the job is at rest.
// Between them come step records and progress, the newest kMaxPending of them if the client is slow. A client that
// takes longer than slow_reader over one message is cut off, with the number to go on from.
class WatchPump final : public StreamPump<v1::JobEvent> {
 public:
  WatchPump(ServiceContext* context, std::string name, uint64_t after_sequence)
      : context_(context), name_(std::move(name)), sent_(after_sequence) {}

 private:
  void Begin(const std::shared_ptr<StreamPump>& self) override {
    weak_ = self;
    LimitWrites(context_->slow_reader);
  }
  Next Produce(v1::JobEvent* event, absl::Status* status) override;
  void End() override;
  absl::Status TooSlow() override;
  void SkipRemoved(v1::JobEvent* event);
  absl::Status Attach();
  bool TakeRecord(v1::JobEvent* event);

  ServiceContext* context_;
  const std::string name_;
  std::string id_;
  std::weak_ptr<StreamPump> weak_;
  std::shared_ptr<Subscription> subscription_;
  uint64_t sent_;
  std::deque<v1::JobEvent> batch_;
  uint32_t step_attempt_ = 0;  // the newest step record sent
  uint64_t step_ = 0;
};

// The logs of all attempts, one after the other; with `follow` until the job is at rest.
class LogPump final : public StreamPump<v1::LogChunk> {
 public:
  LogPump(ServiceContext* context, std::string name, bool follow)
      : context_(context), name_(std::move(name)), follow_(follow) {}

 private:
  void Begin(const std::shared_ptr<StreamPump>& self) override { weak_ = self; }
  Next Produce(v1::LogChunk* chunk, absl::Status* status) override;
  void End() override { alarm_.Cancel(); }
  absl::StatusOr<std::string> ReadMore();

  ServiceContext* context_;
  const std::string name_;
  const bool follow_;
  std::string id_;
  std::weak_ptr<StreamPump> weak_;
  uint32_t attempt_ = 1;
  uint64_t offset_ = 0;
  OpenFile file_;
  grpc::Alarm alarm_;
};

class ArtifactPump final : public StreamPump<v1::ArtifactChunk> {
 public:
  ArtifactPump(ServiceContext* context, v1::ReadArtifactRequest request)
      : context_(context), request_(std::move(request)), offset_(request_.offset()) {}

 private:
  Next Produce(v1::ArtifactChunk* chunk, absl::Status* status) override;
  absl::Status Open();

  ServiceContext* context_;
  const v1::ReadArtifactRequest request_;
  OpenFile file_;
  uint64_t offset_;
  bool sent_any_ = false;
};

}  // namespace hone
