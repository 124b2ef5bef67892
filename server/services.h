// What the gRPC services share. The services themselves are thin: they check a request, call the part that knows, and
// map its status (errors.h).
#pragma once

#include <atomic>
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
#include "server/event_hub.h"
#include "server/executor.h"
#include "server/layout.h"
#include "server/metrics.h"
#include "server/scheduler.h"
#include "server/store/store.h"

namespace hone {

struct ServiceContext {
  const Layout* layout = nullptr;
  Store* store = nullptr;
  EventHub* hub = nullptr;
  Metrics* metrics = nullptr;
  Scheduler* scheduler = nullptr;
  Admission* admission = nullptr;
  BlobStore* blobs = nullptr;
  Executor* quick = nullptr;     // the store and files: never waits for a worker
  Executor* slow = nullptr;      // plans, validations, inspections
  Executor* sessions = nullptr;  // generation
  std::string worker_program;
  int64_t start_time_us = 0;
  std::function<void()> request_shutdown;
  std::atomic<bool> draining{false};  // no new work
  std::atomic<bool> stopping{false};  // streams end
};

// UNAVAILABLE with reason DRAINING.
absl::Status DrainingError();

}  // namespace hone
