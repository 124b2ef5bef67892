// honed as a client sees it, with a script: what it answers, when it breaks a stream, what it was asked.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "hone/v1/daemon.grpc.pb.h"
#include "hone/v1/datasets.grpc.pb.h"
#include "hone/v1/jobs.grpc.pb.h"
#include "hone/v1/models.grpc.pb.h"
#include "proto/base/build_info.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {

inline grpc::Status RichStatus(grpc::StatusCode code, const std::string& message, const std::string& reason,
                               const std::string& field = "") {
  google::rpc::Status rich;
  rich.set_code(code);
  rich.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("hone.dev");
  rich.add_details()->PackFrom(info);
  if (!field.empty()) {
    google::rpc::BadRequest bad;
    bad.add_field_violations()->set_field(field);
    bad.mutable_field_violations(0)->set_description(message);
    rich.add_details()->PackFrom(bad);
  }
  return grpc::Status(code, message, rich.SerializeAsString());
}

struct FakeScript {
  std::mutex mutex;
  // CreateJob
  int create_unavailable = 0;  // so many times before it answers
  grpc::Status create_status;
  std::vector<v1::CreateJobRequest> created;
  // Jobs known, by id
  std::map<std::string, v1::Job> jobs;
  // Watch
  std::vector<v1::JobEvent> events;
  size_t break_after = 0;               // end a stream with UNAVAILABLE after so many events (0: never)
  bool hold_open = false;               // after the events, wait until the client goes
  std::vector<uint64_t> watched_after;  // after_sequence of each stream
  int cancels = 0;
  // Data
  std::map<std::string, std::string> blobs;
  int uploads = 0;
  // Artifacts by path; a wrong digest is the script's choice
  std::vector<v1::Artifact> artifacts;
  std::map<std::string, std::string> artifact_bytes;
  size_t artifact_break_at = 0;  // once: UNAVAILABLE after so many bytes
  v1::PlanJobResponse plan;
  std::string plan_device;
  std::vector<v1::GenerateModelRequest> generated;
  std::vector<v1::Model> models;
  std::string imported_path, imported_quantization;
};

class FakeJobs : public v1::Jobs::Service {
 public:
  explicit FakeJobs(FakeScript& script) : s(script) {}
  grpc::Status CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request, v1::Job* job) override {
    const std::lock_guard lock(s.mutex);
    s.created.push_back(*request);
    if (s.create_unavailable > 0) {
      --s.create_unavailable;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not yet");
    }
    if (!s.create_status.ok()) return s.create_status;
    *job = s.jobs.begin()->second;
    return grpc::Status::OK;
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* job) override {
    const std::lock_guard lock(s.mutex);
    const auto found = s.jobs.find(request->name().substr(5));
    if (found == s.jobs.end()) return RichStatus(grpc::StatusCode::NOT_FOUND, "no job " + request->name(), "NOT_FOUND");
    *job = found->second;
    return grpc::Status::OK;
  }
  // Pages of two, whatever was asked for.
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    const std::lock_guard lock(s.mutex);
    const size_t start = request->page_token().empty() ? 0 : std::stoul(request->page_token());
    size_t at = 0;
    for (const auto& [id, job] : s.jobs) {
      if (at >= start && at < start + 2) *response->add_jobs() = job;
      ++at;
    }
    if (start + 2 < s.jobs.size()) response->set_next_page_token(std::to_string(start + 2));
    return grpc::Status::OK;
  }
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request, v1::Job* job) override {
    const std::lock_guard lock(s.mutex);
    ++s.cancels;
    job->set_id(request->name().substr(5));
    job->set_state(v1::CANCELLING);
    return grpc::Status::OK;
  }
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override {
    std::vector<v1::JobEvent> events;
    {
      const std::lock_guard lock(s.mutex);
      s.watched_after.push_back(request->after_sequence());
      events = s.events;
    }
    size_t sent = 0;
    for (const v1::JobEvent& event : events) {
      if (event.sequence() != 0 && event.sequence() <= request->after_sequence()) continue;
      if (s.break_after > 0 && sent == s.break_after)
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken by the script");
      writer->Write(event);
      ++sent;
    }
    while (s.hold_open && !context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return grpc::Status::OK;
  }
  grpc::Status GetJobLogs(grpc::ServerContext*, const v1::GetJobLogsRequest*,
                          grpc::ServerWriter<v1::LogChunk>* writer) override {
    for (const char* text : {"line one\n", "line \x1b[31mtwo\n"}) {
      v1::LogChunk chunk;
      chunk.set_text(text);
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }
  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest*,
                             v1::ListArtifactsResponse* response) override {
    for (const v1::Artifact& artifact : s.artifacts) *response->add_artifacts() = artifact;
    return grpc::Status::OK;
  }
  grpc::Status ReadArtifact(grpc::ServerContext*, const v1::ReadArtifactRequest* request,
                            grpc::ServerWriter<v1::ArtifactChunk>* writer) override {
    const std::string bytes = s.artifact_bytes[request->path()];
    const size_t end = s.artifact_break_at > 0 ? std::min(s.artifact_break_at, bytes.size()) : bytes.size();
    for (size_t at = request->offset(); at < end; at += 7) {
      v1::ArtifactChunk chunk;
      chunk.set_data(bytes.substr(at, std::min<size_t>(7, end - at)));
      chunk.set_total_bytes(bytes.size());
      writer->Write(chunk);
    }
    if (s.artifact_break_at > 0) {
      s.artifact_break_at = 0;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "broken by the script");
    }
    return grpc::Status::OK;
  }
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest* request,
                       v1::PlanJobResponse* response) override {
    s.plan_device = request->device();
    *response = s.plan;
    return grpc::Status::OK;
  }

 private:
  FakeScript& s;
};

class FakeDatasets : public v1::Datasets::Service {
 public:
  explicit FakeDatasets(FakeScript& script) : s(script) {}
  grpc::Status GetBlob(grpc::ServerContext*, const v1::GetBlobRequest* request,
                       v1::GetBlobResponse* response) override {
    const std::lock_guard lock(s.mutex);
    response->set_present(s.blobs.count(request->digest()) > 0);
    return grpc::Status::OK;
  }
  grpc::Status UploadBlob(grpc::ServerContext*, grpc::ServerReader<v1::UploadBlobRequest>* reader,
                          v1::UploadBlobResponse* response) override {
    v1::UploadBlobRequest message;
    std::string digest, bytes;
    uint64_t total = 0;
    while (reader->Read(&message)) {
      if (digest.empty()) {
        digest = message.digest();
        total = message.total_bytes();
      }
      bytes += message.data();
    }
    if (Sha256Hex(bytes) != digest || bytes.size() != total)
      return grpc::Status(grpc::StatusCode::DATA_LOSS, "digest differs");
    const std::lock_guard lock(s.mutex);
    s.blobs[digest] = bytes;
    ++s.uploads;
    response->set_digest(digest);
    return grpc::Status::OK;
  }
  grpc::Status ValidateData(grpc::ServerContext*, const v1::ValidateDataRequest*,
                            v1::ValidateDataResponse* response) override {
    response->set_report_json(
        R"({"examples": 64, "supervised_share": 0.5, "labels": {"true": 32, "false": 32}, "preview": ["a\u001b[31mb"]})");
    return grpc::Status::OK;
  }

 private:
  FakeScript& s;
};

class FakeModels : public v1::Models::Service {
 public:
  explicit FakeModels(FakeScript& script) : s(script) {}
  grpc::Status ImportModel(grpc::ServerContext*, const v1::ImportModelRequest* request, v1::Model* model) override {
    s.imported_path = request->path();
    s.imported_quantization = request->quantization();
    model->set_id(request->id().empty() ? "fromfile" : request->id());
    model->set_path(request->path());
    model->set_bytes(1 << 20);
    s.models.push_back(*model);
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    for (const v1::Model& model : s.models) *response->add_models() = model;
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest* request, v1::Model* model) override {
    for (const v1::Model& known : s.models) {
      if ("models/" + known.id() != request->name()) continue;
      *model = known;
      model->set_inspect_json(R"({"family": "llama", "tensors": 3})");
      return grpc::Status::OK;
    }
    return RichStatus(grpc::StatusCode::NOT_FOUND, "no model " + request->name(), "NOT_FOUND");
  }
  grpc::Status DeleteModel(grpc::ServerContext*, const v1::DeleteModelRequest*, v1::DeleteModelResponse*) override {
    return grpc::Status::OK;
  }
  // The adapter answers in upper case; "fail" fails.
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateModelRequest* request,
                        grpc::ServerWriter<v1::GenerateModelResponse>* writer) override {
    {
      const std::lock_guard lock(s.mutex);
      s.generated.push_back(*request);
    }
    for (const v1::GenerateRequest& one : request->requests()) {
      v1::GenerateModelResponse response;
      v1::GenerateChunk& chunk = *response.mutable_chunk();
      chunk.set_request(one.request());
      chunk.set_text(request->base_only() ? "base " : "ADAPTER ");
      chunk.add_ids(1);
      writer->Write(response);
      chunk.set_text(std::to_string(one.request()));
      chunk.set_ids(0, 2);
      chunk.set_done(true);
      chunk.set_finish_reason("stop");
      if (one.prompt() == "fail") {
        chunk.set_error_code(3);
        chunk.set_error_message("as the script says");
      }
      writer->Write(response);
    }
    return grpc::Status::OK;
  }

 private:
  FakeScript& s;
};

class FakeDaemonService : public v1::Daemon::Service {
 public:
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::DaemonStatus* status) override {
    status->set_version("0.1.0");
    status->set_build_id(std::string(BuildId()));
    status->set_pid(getpid());
    status->set_state_dir("/state");
    (*status->mutable_jobs())["QUEUED"] = 2;
    return grpc::Status::OK;
  }
  grpc::Status ListDevices(grpc::ServerContext*, const v1::ListDevicesRequest*,
                           v1::ListDevicesResponse* response) override {
    v1::DeviceInfo& device = *response->add_devices();
    device.set_name("cpu");
    device.set_description("a processor");
    device.set_total_bytes(uint64_t{8} << 30);
    device.set_free_bytes(uint64_t{4} << 30);
    device.set_usable(true);
    return grpc::Status::OK;
  }
};

class FakeDaemon {
 public:
  explicit FakeDaemon(const std::string& socket) : jobs_(script), datasets_(script), models_(script) {
    std::filesystem::create_directories(std::filesystem::path(socket).parent_path());
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.RegisterService(&jobs_);
    builder.RegisterService(&datasets_);
    builder.RegisterService(&models_);
    builder.RegisterService(&daemon_);
    server_ = builder.BuildAndStart();
  }
  ~FakeDaemon() { server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(200)); }

  FakeScript script;

 private:
  FakeJobs jobs_;
  FakeDatasets datasets_;
  FakeModels models_;
  FakeDaemonService daemon_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace hone
