// What the gRPC services share. The services themselves are thin: they check a request, call the part that knows, and
// map its status (errors.h).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "grpcpp/grpcpp.h"
#include "hone/v1/daemon.grpc.pb.h"
#include "hone/v1/datasets.grpc.pb.h"
#include "hone/v1/jobs.grpc.pb.h"
#include "hone/v1/models.grpc.pb.h"
#include "server/admission.h"
#include "server/blobs.h"
#include "server/cards.h"
#include "server/doorman.h"
#include "server/event_hub.h"
#include "server/executor.h"
#include "server/layout.h"
#include "server/metrics.h"
#include "server/readers.h"
#include "server/scheduler.h"
#include "server/store/store.h"

namespace hone {

struct ServiceContext {
  const Layout* layout = nullptr;
  Store* store = nullptr;
  EventHub* hub = nullptr;
  Readers* readers = nullptr;  // of files
  Readers* uploads = nullptr;
  Readers* watchers = nullptr;  // by client; null (tests): no bound, as the two above
  Metrics* metrics = nullptr;
  Scheduler* scheduler = nullptr;
  Admission* admission = nullptr;
  BlobStore* blobs = nullptr;
  const Cards* cards = nullptr;
  Executor* quick = nullptr;         // the store and files: never waits for a worker
  Executor* streams = nullptr;       // what feeds server streams: many watchers delay no other call
  Executor* slow = nullptr;          // plans, validations, inspections
  Executor* sessions = nullptr;      // generation
  const Doorman* doorman = nullptr;  // null: everybody is an admin (tests without sockets)
  uint64_t max_unfinished = 20000;   // jobs; NewJob says more
  uint64_t max_unfinished_of_owner = 10000;
  std::chrono::milliseconds slow_reader = std::chrono::seconds(30);  // a write that takes longer ends the stream
  std::string worker_program;
  int64_t start_time_us = 0;
  std::function<void()> request_shutdown;
  std::atomic<bool> draining{false};  // no new work
  std::atomic<bool> stopping{false};  // streams end
};

// Who calls.
Caller CallerOf(const ServiceContext& context, const grpc::ServerContextBase& call);
// The same for what is bounded per client.
Readers::Client ClientOf(const ServiceContext& context, const grpc::ServerContextBase& call);
// PERMISSION_DENIED with reason NOT_OWNER unless the caller is an admin, or the owner, or nobody owns it.
absl::Status MayChange(const Caller& caller, int64_t owner_uid, std::string_view what);

// UNAVAILABLE with reason DRAINING.
absl::Status DrainingError();

}  // namespace hone
