// A typed connection to honed over its Unix socket. Blocking calls, absl::Status errors with the daemon's reason and
// field (errors.h). One Client may be used by several threads. Not here: files of jobs (job_file.h), printing.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/daemon.pb.h"
#include "hone/v1/datasets.pb.h"
#include "hone/v1/jobs.pb.h"
#include "hone/v1/models.pb.h"

namespace hone {

// Ends what a call waits for, from another thread or a signal's thread. A cancelled call returns CANCELLED.
class Cancellation {
 public:
  Cancellation();
  ~Cancellation();
  void Cancel();
  bool cancelled() const { return cancelled_; }

 private:
  friend class Client;
  struct Calls;
  std::unique_ptr<Calls> calls_;
  std::atomic<bool> cancelled_{false};
};

// Which daemon, and how to reach it: a Unix socket, or TCP with TLS.
struct Target {
  std::string socket;       // a path
  std::string address;      // HOST:PORT; empty: the socket
  std::string ca;           // PEM file that signed the daemon's certificate
  std::string certificate;  // PEM file to show; empty: none
  std::string key;
  std::string token_file;  // its text is sent as a bearer token; empty: none
};

class Client {
 public:
  // Does not connect yet: the first call does.
  explicit Client(const std::string& socket_path);
  // INVALID_ARGUMENT naming a file that cannot be read.
  static absl::StatusOr<std::unique_ptr<Client>> Open(const Target& target);
  ~Client();

  absl::StatusOr<v1::DaemonStatus> GetStatus(int timeout_seconds = 10);
  absl::StatusOr<v1::ListDevicesResponse> ListDevices();
  absl::Status Shutdown();

  // Sent again with the same request_id while the daemon is unreachable, up to `patience_seconds`; a request_id is made
  // if none is set, so that a job is never stored twice.
  absl::StatusOr<v1::Job> CreateJob(v1::CreateJobRequest request, int patience_seconds = 10);
  absl::StatusOr<v1::Job> GetJob(const std::string& name);
  // All pages, newest first, at most `limit` (0: all).
  absl::StatusOr<std::vector<v1::Job>> ListJobs(const std::vector<v1::JobState>& states, size_t limit);
  absl::StatusOr<std::vector<v1::Job>> ListJobs(v1::ListJobsRequest request, size_t limit);
  absl::StatusOr<v1::Job> CancelJob(const std::string& name);
  absl::StatusOr<v1::Job> PauseJob(const std::string& name);
  absl::StatusOr<v1::Job> ResumeJob(const std::string& name);
  absl::StatusOr<v1::Job> HoldJob(const std::string& name, const std::string& message);
  absl::StatusOr<v1::Job> ReleaseJob(const std::string& name);
  absl::StatusOr<v1::Job> UpdateJob(const v1::UpdateJobRequest& request);
  // One stream, until the daemon ends it, `on_event` returns false, or it is cancelled.
  absl::Status WatchJob(const std::string& name, uint64_t after_sequence,
                        const std::function<bool(const v1::JobEvent&)>& on_event, Cancellation* cancellation);
  absl::Status ReadLogs(const std::string& name, bool follow, const std::function<void(const std::string&)>& on_text,
                        Cancellation* cancellation);
  absl::StatusOr<v1::PlanJobResponse> PlanJob(const v1::JobSpec& spec, const std::string& device);
  absl::StatusOr<std::vector<v1::Artifact>> ListArtifacts(const std::string& name);
  // Chunks in order from `offset`.
  absl::Status ReadArtifact(const std::string& name, const std::string& path, uint64_t offset,
                            const std::function<absl::Status(const std::string&)>& on_data, Cancellation* cancellation);

  absl::StatusOr<v1::ValidateDataResponse> ValidateData(const v1::JobSpec& spec);
  // Uploads a file unless the daemon has it; returns its digest. `on_progress(done, total)` may be null.
  absl::StatusOr<std::string> UploadFile(const std::string& path,
                                         const std::function<void(uint64_t, uint64_t)>& on_progress);

  // `quantization`: "nf4", the daemon writes a quantised copy; empty: the model as it is.
  absl::StatusOr<v1::Model> ImportModel(const std::string& id, const std::string& absolute_path,
                                        const std::string& quantization = "");
  absl::StatusOr<std::vector<v1::Model>> ListModels();
  absl::StatusOr<v1::Model> GetModel(const std::string& name);
  absl::Status DeleteModel(const std::string& name);
  absl::Status Generate(const v1::GenerateModelRequest& request,
                        const std::function<void(const v1::GenerateChunk&)>& on_chunk, Cancellation* cancellation);

 private:
  Client();
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

// A random UUID (version 4).
std::string MakeRequestId();
// "jobs/<id>" for an id or a name. Prefixes stay prefixes; the daemon resolves them.
std::string JobName(const std::string& id_or_name);
// SUCCEEDED, FAILED, CANCELLED: nothing will happen to it any more. PAUSED and HELD rest, too, but may go on.
bool IsFinal(v1::JobState state);
bool IsAtRest(v1::JobState state);

}  // namespace hone
