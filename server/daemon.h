// The daemon put together: opens the state folder, recovers what was under way, serves until it is told to stop,
// drains. main.cc adds flags, signals and systemd; tests start it in their own process.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/daemon_service.h"
#include "server/datasets_service.h"
#include "server/job_lock.h"
#include "server/jobs_service.h"
#include "server/models_service.h"
#include "server/retention.h"
#include "server/services.h"
#include "server/tcp_access.h"

namespace hone {

struct DaemonOptions {
  std::string state_dir;     // made if it is not there
  std::string socket;        // path of the Unix socket
  std::string admin_socket;  // a second socket for the daemon's owner; empty: none
  mode_t socket_mode = 0660;
  TcpOptions tcp;  // off unless `listen` is set
  Doorman::Options doorman;
  RetentionOptions retention;
  uint64_t max_jobs = 20000;           // unfinished ones
  uint64_t max_jobs_per_user = 10000;  // unfinished ones; the daemon's own user and root have no limit
  std::chrono::milliseconds slow_reader = std::chrono::seconds(30);
  uint64_t ballast_bytes = uint64_t{4} << 20;      // disk space kept for the store's last words; 0: none
  std::string metrics_address = "127.0.0.1:9464";  // "off": none
  std::string worker_program;                      // empty: honed-worker beside this program
  RunnerOptions runner;                            // worker_program is taken from above
  SchedulerOptions scheduler;
  std::function<void()> request_shutdown;  // what the Shutdown call does; must not block
};

class Daemon {
 public:
  // Errors: FAILED_PRECONDITION if another daemon holds the state folder or the socket; those of store and disk.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(DaemonOptions options);
  ~Daemon();  // Stop()
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Refuses new work, lets what runs checkpoint and go back to the queue, ends every stream, closes the socket.
  void Stop();
  // Now and then: health, gauges.
  void Tick();

  Store* store() { return store_.get(); }
  std::string metrics_address() const { return metrics_.address(); }
  const std::string& socket() const { return options_.socket; }
  // Of TCP; 0: none.
  int tcp_port() const { return tcp_port_; }
  size_t watchers() const { return hub_.subscriptions(); }
  const Doorman* doorman() const { return doorman_.get(); }
  // One line for systemd and people.
  std::string Summary();

 private:
  explicit Daemon(DaemonOptions options);
  absl::Status Open();
  absl::Status Listen();
  void RunRetention();
  static absl::StatusOr<FileLock> LockSocket(const std::string& path, std::string_view flag);

  DaemonOptions options_;
  Layout layout_;
  std::optional<FileLock> state_lock_;
  std::optional<FileLock> socket_lock_;
  std::optional<FileLock> admin_lock_;
  Cards cards_;
  Metrics metrics_;
  EventHub hub_;
  Readers readers_;
  Readers uploads_{{64, 16, "uploads are under way", "TOO_MANY_UPLOADS"}};
  Readers watchers_{{4096, 1024, "jobs are being watched", "TOO_MANY_WATCHES"}};
  std::unique_ptr<Store> store_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Ballast> ballast_;
  std::unique_ptr<Retention> retention_;
  std::unique_ptr<Doorman> doorman_;
  std::chrono::steady_clock::time_point retention_due_{};
  std::atomic<bool> retention_runs_{false};
  Executor quick_;
  Executor streams_;
  Executor slow_;
  Executor sessions_;
  ServiceContext context_;
  JobsService jobs_;
  ModelsService models_;
  DatasetsService datasets_;
  DaemonService daemon_;
  std::unique_ptr<grpc::Server> server_;
  int tcp_port_ = 0;
  bool stopped_ = false;
};

}  // namespace hone
