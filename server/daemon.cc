#include "server/daemon.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/support/server_interceptor.h"
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
constexpr size_t kStreamThreads = 2, kStreamQueue = 8192;
constexpr size_t kSlowThreads = 2, kSlowQueue = 256;
constexpr size_t kSessionThreads = 2, kSessionQueue = 64;
// A client that is idle does not notice that it should hang up; calls have ended by then.
constexpr std::chrono::seconds kCloseGrace(1);
// A connection without calls is closed after a while: clients connect again when they need to.
constexpr int kMaxIdleMs = 10 * 60 * 1000;
constexpr const char* kServices[] = {"", "hone.v1.Jobs", "hone.v1.Models", "hone.v1.Datasets", "hone.v1.Daemon"};

// Tells the doorman and the metrics of each call: made when it comes in, destroyed when it is over.
class CallCount final : public grpc::experimental::Interceptor {
 public:
  CallCount(Doorman* doorman, Metrics* metrics, grpc::experimental::ServerRpcInfo* info)
      : doorman_(doorman), ticket_(doorman->NoteCall(info->server_context()->peer())) {
    if (info->type() != grpc::experimental::ServerRpcInfo::Type::UNARY) return;  // a stream is as long as its reader
    metrics_ = metrics;
    method_ = info->method();
  }
  ~CallCount() override {
    doorman_->NoteEnd(ticket_);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin_;
    if (metrics_ != nullptr) metrics_->CountCall(method_, seconds.count());
  }
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override { methods->Proceed(); }

 private:
  Doorman* doorman_;
  const Doorman::Ticket ticket_;
  Metrics* metrics_ = nullptr;
  std::string method_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

class CallCounter final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  CallCounter(Doorman* doorman, Metrics* metrics) : doorman_(doorman), metrics_(metrics) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new CallCount(doorman_, metrics_, info);
  }

 private:
  Doorman* doorman_;
  Metrics* metrics_;
};

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
}

}  // namespace

Daemon::Daemon(DaemonOptions options)
    : options_(std::move(options)),
      layout_(options_.state_dir),
      quick_(kQuickThreads, kQuickQueue),
      streams_(kStreamThreads, kStreamQueue),
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

  if (options_.ballast_bytes > 0) {
    ballast_ = std::make_unique<Ballast>(layout_.root() + "/reserve", options_.ballast_bytes);
    ballast_->Fill(options_.runner.min_free_disk);
  }
  retention_ = std::make_unique<Retention>(&layout_, store_.get(), options_.retention);
  const RunnerContext runner = {&layout_, store_.get(), &hub_, &metrics_, options_.runner, ballast_.get()};
  if (!options_.scheduler.card) {
    options_.scheduler.card = [this]() -> std::optional<CardReading> {
      const std::vector<CardReading> cards = cards_.Read();
      return cards.empty() ? std::nullopt : std::make_optional(cards.front());  // workers use the first
    };
  }
  if (!options_.scheduler.foreign) {
    options_.scheduler.foreign = [this] {
      std::vector<CardDetail> details = cards_.ReadDetails();
      return details.empty() ? std::vector<ForeignProcess>() : std::move(details.front().foreign);
    };
  }
  scheduler_ = std::make_unique<Scheduler>(runner, options_.scheduler);
  // Plans are held against all memory but a tenth: what else runs now need not run when the job's turn comes. What is
  // free then is checked then.
  admission_ =
      std::make_unique<Admission>(&layout_, store_.get(),
                                  Admission::Options{options_.worker_program, [] { return TotalMemory() / 10 * 9; },
                                                     [this] { return scheduler_->CardBudget(); }});
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
  context_.readers = &readers_;
  context_.uploads = &uploads_;
  context_.watchers = &watchers_;
  context_.metrics = &metrics_;
  context_.scheduler = scheduler_.get();
  context_.admission = admission_.get();
  context_.blobs = blobs_.get();
  context_.cards = &cards_;
  context_.quick = &quick_;
  context_.streams = &streams_;
  context_.slow = &slow_;
  context_.sessions = &sessions_;
  context_.max_unfinished = options_.max_jobs;
  context_.max_unfinished_of_owner = options_.max_jobs_per_user;
  context_.slow_reader = options_.slow_reader;
  context_.worker_program = options_.worker_program;
  context_.start_time_us = NowMicros();
  context_.request_shutdown = options_.request_shutdown;
  if (options_.metrics_address != "off" && !options_.metrics_address.empty()) metrics_.Expose(options_.metrics_address);
  return absl::OkStatus();
}

// The lock tells the socket of a daemon that is gone from one in use.
absl::StatusOr<FileLock> Daemon::LockSocket(const std::string& path, std::string_view flag) {
  if (path.empty() || path[0] != '/') {
    return InvalidArgument(flag, ": an absolute path is expected, got \"", path, "\"");
  }
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return InvalidArgument(flag, ": ", path, " is longer than the ", sizeof(sockaddr_un::sun_path) - 1,
                           " bytes that a Unix socket may have; choose a shorter one");
  }
  HONE_RETURN_IF_ERROR(MakeDirectories(ParentOf(path), 0700));
  absl::StatusOr<FileLock> lock = FileLock::TryAcquire(path + ".lock");
  if (absl::IsFailedPrecondition(lock.status())) return FailedPrecondition("another honed serves on ", path);
  return lock;
}

absl::Status Daemon::Listen() {
  HONE_ASSIGN_OR_RETURN(socket_lock_, LockSocket(options_.socket, "--socket"));
  doorman_ = std::make_unique<Doorman>(options_.doorman);
  HONE_RETURN_IF_ERROR(doorman_->Listen(options_.socket, options_.socket_mode, false));
  if (!options_.admin_socket.empty()) {
    HONE_ASSIGN_OR_RETURN(admin_lock_, LockSocket(options_.admin_socket, "--admin-socket"));
    HONE_RETURN_IF_ERROR(doorman_->Listen(options_.admin_socket, 0600, true));
  }
  context_.doorman = doorman_.get();

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
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kMaxIdleMs);
  int port = 0;
  if (!options_.tcp.listen.empty()) {
    HONE_ASSIGN_OR_RETURN(const auto credentials, TcpCredentials(options_.tcp));
    builder.AddListeningPort(options_.tcp.listen, credentials, &port);
  }
  builder.RegisterService(&jobs_);
  builder.RegisterService(&models_);
  builder.RegisterService(&datasets_);
  builder.RegisterService(&daemon_);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<CallCounter>(doorman_.get(), &metrics_));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || (!options_.tcp.listen.empty() && port == 0)) {
    return absl::UnavailableError(ToAbsl(StrCat("cannot listen on ", options_.tcp.listen)));
  }
  tcp_port_ = port;
  HONE_RETURN_IF_ERROR(doorman_->Start(server_.get()));
  for (const char* service : kServices) server_->GetHealthCheckService()->SetServingStatus(service, true);
  return absl::OkStatus();
}

void Daemon::Tick() {
  metrics_.SetDiskFree(DiskFree(layout_.root()));
  metrics_.SetCards(cards_.ReadDetails());
  if (const auto since = store_->OldestWait(); since.ok()) {
    metrics_.SetQueueAge(since->has_value() ? std::max(0.0, static_cast<double>(NowMicros() - **since) * 1e-6) : 0);
  }
  hub_.CheckAll();
  readers_.CheckAll();
  uploads_.CheckAll();
  RunRetention();
  if (store_->broken() && server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
}

void Daemon::RunRetention() {
  const auto now = std::chrono::steady_clock::now();
  if (now < retention_due_ || context_.stopping || retention_runs_.exchange(true)) return;
  retention_due_ = now + retention_->options().every;
  const bool posted = slow_.Post([this] {
    retention_->Run(context_.stopping);
    retention_runs_ = false;
  });
  if (!posted) retention_runs_ = false;
}

std::string Daemon::Summary() {
  const auto counts = store_->CountJobs();
  if (!counts.ok()) return "the store cannot be read";
  uint64_t queued = 0, active = 0;
  for (const auto& [state, count] : *counts) {
    if (state == v1::QUEUED) queued += count;
    if (IsActive(state)) active += count;
  }
  const std::string problem = scheduler_ == nullptr ? "" : scheduler_->Problem();
  return StrCat(active, " running, ", queued, " queued", problem.empty() ? "" : "; ", problem);
}

void Daemon::Stop() {
  if (std::exchange(stopped_, true)) return;
  context_.draining = true;
  if (server_ != nullptr) server_->GetHealthCheckService()->SetServingStatus(false);
  if (scheduler_ != nullptr) scheduler_->Drain();
  context_.stopping = true;
  hub_.WakeAll();
  if (doorman_ != nullptr) doorman_->Stop();
  if (server_ != nullptr) {
    if (doorman_ != nullptr) doorman_->CloseAllAfter(2 * kCloseGrace);
    server_->Shutdown(std::chrono::system_clock::now() + kCloseGrace);
    server_->Wait();
  }
  sessions_.Stop();
  slow_.Stop();
  streams_.Stop();
  quick_.Stop();
  server_.reset();
}

Daemon::~Daemon() { Stop(); }

}  // namespace hone
