#include "server/daemon.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "server/store/states.h"
#include "server/worker_process.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr int kMaxReceiveBytes = 4 << 20;
constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kMaxStreamsPerConnection = 300;
constexpr size_t kQuotaBytes = size_t{256} << 20;
constexpr int kMinPingIntervalMs = 10000;
constexpr size_t kQuickThreads = 4, kQuickQueue = 4096;
constexpr size_t kSlowThreads = 2, kSlowQueue = 256;
constexpr size_t kSessionThreads = 2, kSessionQueue = 64;
// A client that is idle does not notice that it should hang up; calls have ended by then.
constexpr std::chrono::seconds kCloseGrace(1);
constexpr const char* kServices[] = {"", "hone.v1.Jobs", "hone.v1.Models", "hone.v1.Datasets", "hone.v1.Daemon"};

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
}

}  // namespace

Daemon::Daemon(DaemonOptions options)
    : options_(std::move(options)),
      layout_(options_.state_dir),
      quick_(kQuickThreads, kQuickQueue),
      slow_(kSlowThreads, kSlowQueue),
      sessions_(kSessionThreads, kSessionQueue),
      jobs_(&context_),
      models_(&context_),
      datasets_(&context_),
      daemon_(&context_) {
  if (options_.worker_program.empty()) options_.worker_program = ProgramBeside("honed-worker");
  options_.runner.worker_program = options_.worker_program;
}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(DaemonOptions options) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(options)));
  HONE_RETURN_IF_ERROR(daemon->Open());
  HONE_RETURN_IF_ERROR(daemon->Listen());
  daemon->scheduler_->Start();
  daemon->Tick();
  return daemon;
}

absl::Status Daemon::Open() {
  HONE_RETURN_IF_ERROR(MakeDirectories(layout_.root(), 0700));
  absl::StatusOr<FileLock> lock = FileLock::TryAcquire(layout_.Lock());
  if (absl::IsFailedPrecondition(lock.status())) {
    return FailedPrecondition("another honed runs on ", layout_.root(), "; stop it or give another --state-dir");
  }
  if (!lock.ok()) return lock.status();
  state_lock_ = *std::move(lock);
  for (const std::string& folder : {layout_.Jobs(), layout_.Blobs(), layout_.Models(), layout_.ReferenceCache()}) {
    HONE_RETURN_IF_ERROR(MakeDirectories(folder));
  }
  HONE_ASSIGN_OR_RETURN(store_, Store::Open(layout_.Database()));
  blobs_ = std::make_unique<BlobStore>(&layout_, store_.get());
  HONE_RETURN_IF_ERROR(blobs_->Clean());

  const RunnerContext runner = {&layout_, store_.get(), &hub_, &metrics_, options_.runner};
  scheduler_ = std::make_unique<Scheduler>(runner, options_.scheduler);
  // Plans are held against all memory but a tenth: what else runs now need not run when the job's turn comes. What is
  // free then is checked then.
  admission_ = std::make_unique<Admission>(
      &layout_, store_.get(), Admission::Options{options_.worker_program, [] { return TotalMemory() / 10 * 9; }});
  HONE_RETURN_IF_ERROR(scheduler_->Recover());
  HONE_ASSIGN_OR_RETURN(const auto counts, store_->CountJobs());
  for (const auto& [state, count] : counts) metrics_.SetJobs(state, count);
  store_->SetObserver([this](const std::string& id, v1::JobState from, v1::JobState to) {
    if (from != to) metrics_.CountTransition(from, to);
    hub_.Announce(id);
  });

  context_.layout = &layout_;
  context_.store = store_.get();
  context_.hub = &hub_;
  context_.metrics = &metrics_;
  context_.scheduler = scheduler_.get();
  context_.admission = admission_.get();
  context_.blobs = blobs_.get();
  context_.quick = &quick_;
  context_.slow = &slow_;
  context_.sessions = &sessions_;
  context_.worker_program = options_.worker_program;
  context_.start_time_us = NowMicros();
  context_.request_shutdown = options_.request_shutdown;
  if (options_.metrics_address != "off" && !options_.metrics_address.empty()) metrics_.Expose(options_.metrics_address);
  return absl::OkStatus();
}

absl::Status Daemon::Listen() {
  const std::string& path = options_.socket;
  if (path.empty() || path[0] != '/')
    return InvalidArgument("--socket: an absolute path is expected, got \"", path, "\"");
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return InvalidArgument("--socket: ", path, " is longer than the ", sizeof(sockaddr_un::sun_path) - 1,
                           " bytes that a Unix socket may have; choose a shorter one");
  }
  HONE_RETURN_IF_ERROR(MakeDirectories(ParentOf(path), 0700));
  // gRPC takes over a socket file that is there; the lock tells a stale one from one in use.
  absl::StatusOr<FileLock> lock = FileLock::TryAcquire(path + ".lock");
  if (absl::IsFailedPrecondition(lock.status())) return FailedPrecondition("another honed serves on ", path);
  if (!lock.ok()) return lock.status();
  socket_lock_ = *std::move(lock);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ResourceQuota quota("honed");
  quota.Resize(kQuotaBytes);
  grpc::ServerBuilder builder;
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(StrCat("unix:", path), grpc::InsecureServerCredentials());
  builder.RegisterService(&jobs_);
  builder.RegisterService(&models_);
  builder.RegisterService(&datasets_);
  builder.RegisterService(&daemon_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return absl::UnavailableError(ToAbsl(StrCat("cannot listen on ", path)));
  if (chmod(path.c_str(), 0660) != 0) spdlog::warn("cannot set the permissions of {}", path);
  for (const char* service : kServices) server_->GetHealthCheckService()->SetServingStatus(service, true);
  return absl::OkStatus();
}

void Daemon::Tick() {
  metrics_.SetDiskFree(DiskFree(layout_.root()));
  if (store_->broken() && server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
}

std::string Daemon::Summary() {
  const auto counts = store_->CountJobs();
  if (!counts.ok()) return "the store cannot be read";
  uint64_t queued = 0, active = 0;
  for (const auto& [state, count] : *counts) {
    if (state == v1::QUEUED) queued += count;
    if (IsActive(state)) active += count;
  }
  return StrCat(active, " running, ", queued, " queued");
}

void Daemon::Stop() {
  if (std::exchange(stopped_, true)) return;
  context_.draining = true;
  if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
  if (scheduler_ != nullptr) scheduler_->Drain();
  context_.stopping = true;
  hub_.WakeAll();
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now() + kCloseGrace);
    server_->Wait();
    unlink(options_.socket.c_str());
  }
  sessions_.Stop();
  slow_.Stop();
  quick_.Stop();
  server_.reset();
}

Daemon::~Daemon() { Stop(); }

}  // namespace hone
