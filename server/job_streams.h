// The server streams of hone.v1.Jobs: events, logs, artifacts. Each produces one message at a time (reactors.h).
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "grpcpp/alarm.h"
#include "hone/v1/jobs.pb.h"
#include "server/errors.h"
#include "server/event_hub.h"
#include "server/file_access.h"
#include "server/reactors.h"
#include "server/readers.h"
#include "server/services.h"

namespace hone {

// Replays durable events after a sequence number, in order and without a gap, then follows until the job is at rest.
// Between them come step records and progress, the newest kMaxPending of them if the client is slow. A client that
// takes longer than slow_reader over one message is cut off, with the number to go on from.
class WatchPump final : public StreamPump<v1::JobEvent> {
 public:
  WatchPump(ServiceContext* context, Readers::Client client, std::string name, uint64_t after_sequence)
      : context_(context), client_(client), name_(std::move(name)), sent_(after_sequence) {}

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
  const Readers::Client client_;
  const std::string name_;
  uint64_t number_ = 0;  // among the client's watches
  std::string id_;
  std::weak_ptr<StreamPump> weak_;
  std::shared_ptr<Subscription> subscription_;
  uint64_t sent_;
  std::deque<v1::JobEvent> batch_;
  uint32_t step_attempt_ = 0;  // the newest step record sent
  uint64_t step_ = 0;
};

// What the streams of files share: a place among the open ones (readers.h), and the limit on how long a client may take
// over one message. A client that takes longer gets what is left cut off with SLOW_READER.
// People page through logs: the limit is kPatience times that of watchers.
template <typename Message>
class FilePump : public StreamPump<Message> {
 public:
  FilePump(ServiceContext* context, Readers::Client client) : context_(context), client_(client) {}

 protected:
  void Begin(const std::shared_ptr<StreamPump<Message>>& self) override {
    weak_ = self;
    this->LimitWrites(kPatience * context_->slow_reader);
  }
  // Before anything is opened.
  absl::Status Enter() {
    if (number_ != 0 || context_->readers == nullptr) return absl::OkStatus();
    return context_->readers->Enter(
        client_,
        [weak = weak_](Readers::Clock::time_point now) {
          if (const auto pump = weak.lock()) pump->CheckStall(now);
        },
        &number_);
  }
  void End() override {
    if (number_ != 0) context_->readers->Leave(number_);
  }
  absl::Status TooSlow() override {
    return WithReason(absl::AbortedError("the client reads too slowly; read again from where it stopped"),
                      "SLOW_READER");
  }

  ServiceContext* context_;
  std::weak_ptr<StreamPump<Message>> weak_;

 private:
  static constexpr int kPatience = 10;
  const Readers::Client client_;
  uint64_t number_ = 0;  // among the readers
};

// The logs of all attempts, one after the other; with `follow` until the job is at rest.
class LogPump final : public FilePump<v1::LogChunk> {
 public:
  LogPump(ServiceContext* context, Readers::Client client, std::string name, bool follow)
      : FilePump(context, client), name_(std::move(name)), follow_(follow) {}

 private:
  Next Produce(v1::LogChunk* chunk, absl::Status* status) override;
  void End() override {
    alarm_.Cancel();
    FilePump::End();
  }
  absl::StatusOr<std::string> ReadMore();

  const std::string name_;
  const bool follow_;
  std::string id_;
  uint32_t attempt_ = 1;
  uint64_t offset_ = 0;
  OpenFile file_;
  grpc::Alarm alarm_;
};

class ArtifactPump final : public FilePump<v1::ArtifactChunk> {
 public:
  ArtifactPump(ServiceContext* context, Readers::Client client, v1::ReadArtifactRequest request)
      : FilePump(context, client), request_(std::move(request)), offset_(request_.offset()) {}

 private:
  Next Produce(v1::ArtifactChunk* chunk, absl::Status* status) override;
  absl::Status Open();

  const v1::ReadArtifactRequest request_;
  OpenFile file_;
  uint64_t offset_;
  bool sent_any_ = false;
};

}  // namespace hone
