// What the daemon's tests share: a temporary folder, a daemon in this process with a fake worker, stubs on its socket.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "hone/v1/daemon.grpc.pb.h"
#include "hone/v1/datasets.grpc.pb.h"
#include "hone/v1/jobs.grpc.pb.h"
#include "hone/v1/models.grpc.pb.h"
#include "proto/base/status.h"

namespace hone {

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/hone-daemon-XXXXXX";
    path_ = mkdtemp(name);
    std::ofstream(path_ + "/data.jsonl") << "{\"text\": \"a\"}\n";
    std::filesystem::create_directory(path_ + "/model");
  }
  ~Folder() {
    if (!testing::Test::HasFailure() && !getenv("HONE_KEEP")) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A spec for the fake worker, which does what the name says.
inline v1::JobSpec FakeSpec(const Folder& folder, const std::string& script) {
  v1::JobSpec spec;
  spec.set_name(script);
  spec.mutable_model()->set_source(folder / "model");
  spec.mutable_objective()->mutable_sft();
  spec.mutable_data()->set_train(folder / "data.jsonl");
  spec.mutable_batch()->set_examples(2);
  spec.mutable_optimizer()->set_learning_rate(1e-4);
  return spec;
}

// Sequence numbers of durable events are 1, 2, 3, ... (or go on after `after`) and states follow each other.
inline void ExpectGapless(const std::vector<v1::JobEvent>& events, uint64_t after = 0) {
  uint64_t next = after + 1;
  for (const v1::JobEvent& event : events) {
    if (event.sequence() == 0) continue;
    EXPECT_EQ(event.sequence(), next++);
  }
}

// The four services on one socket.
class Client {
 public:
  explicit Client(const std::string& socket)
      : channel_(grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), Arguments())),
        jobs(v1::Jobs::NewStub(channel_)),
        models(v1::Models::NewStub(channel_)),
        datasets(v1::Datasets::NewStub(channel_)),
        daemon(v1::Daemon::NewStub(channel_)) {}

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Jobs::Stub> jobs;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<v1::Datasets::Stub> datasets;
  std::unique_ptr<v1::Daemon::Stub> daemon;

  grpc::Status Create(const v1::JobSpec& spec, v1::Job* job, const std::string& request_id = "", int priority = 0) {
    grpc::ClientContext context;
    Deadline(&context);
    v1::CreateJobRequest request;
    *request.mutable_spec() = spec;
    request.set_request_id(request_id);
    request.set_priority(priority);
    return jobs->CreateJob(&context, request, job);
  }
  std::string MustCreate(const v1::JobSpec& spec, int priority = 0) {
    v1::Job job;
    const grpc::Status status = Create(spec, &job, "", priority);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job.id();
  }
  v1::Job Get(const std::string& id) {
    grpc::ClientContext context;
    Deadline(&context);
    v1::GetJobRequest request;
    request.set_name(id);
    v1::Job job;
    const grpc::Status status = jobs->GetJob(&context, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  grpc::Status Cancel(const std::string& id, v1::Job* job) {
    grpc::ClientContext context;
    Deadline(&context);
    v1::CancelJobRequest request;
    request.set_name(id);
    return jobs->CancelJob(&context, request, job);
  }
  grpc::Status Create(const v1::CreateJobRequest& request, v1::Job* job) {
    grpc::ClientContext context;
    Deadline(&context);
    return jobs->CreateJob(&context, request, job);
  }
  std::string MustCreate(const v1::JobSpec& spec, const v1::JobOptions& options, int priority = 0) {
    v1::CreateJobRequest request;
    *request.mutable_spec() = spec;
    *request.mutable_options() = options;
    request.set_priority(priority);
    v1::Job job;
    const grpc::Status status = Create(request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job.id();
  }
  grpc::Status Pause(const std::string& id) { return Act<v1::PauseJobRequest>(&v1::Jobs::Stub::PauseJob, id); }
  grpc::Status Resume(const std::string& id) { return Act<v1::ResumeJobRequest>(&v1::Jobs::Stub::ResumeJob, id); }
  grpc::Status Hold(const std::string& id) { return Act<v1::HoldJobRequest>(&v1::Jobs::Stub::HoldJob, id); }
  grpc::Status Release(const std::string& id) { return Act<v1::ReleaseJobRequest>(&v1::Jobs::Stub::ReleaseJob, id); }
  template <typename Request>
  grpc::Status Act(grpc::Status (v1::Jobs::Stub::*method)(grpc::ClientContext*, const Request&, v1::Job*),
                   const std::string& id) {
    grpc::ClientContext context;
    Deadline(&context);
    Request request;
    request.set_name(id);
    v1::Job job;
    return (jobs.get()->*method)(&context, request, &job);
  }
  grpc::Status Update(const v1::UpdateJobRequest& request) {
    grpc::ClientContext context;
    Deadline(&context);
    v1::Job job;
    return jobs->UpdateJob(&context, request, &job);
  }
  // All events after a number; the stream's status in *status.
  std::vector<v1::JobEvent> Watch(const std::string& id, uint64_t after = 0, grpc::Status* status = nullptr,
                                  const std::function<bool(const v1::JobEvent&)>& more = nullptr) {
    grpc::ClientContext context;
    Deadline(&context);
    v1::WatchJobRequest request;
    request.set_name(id);
    request.set_after_sequence(after);
    auto reader = jobs->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    v1::JobEvent event;
    while (reader->Read(&event)) {
      events.push_back(event);
      if (more && !more(event)) context.TryCancel();
    }
    const grpc::Status end = reader->Finish();
    if (status != nullptr) *status = end;
    return events;
  }
  // Follows a job until it is at rest and returns it; a broken connection is taken up again where it broke.
  v1::Job Await(const std::string& id) {
    grpc::Status status;
    uint64_t sequence = 0;
    do {
      const auto events = Watch(id, sequence, &status);
      ExpectGapless(events, sequence);
      for (const v1::JobEvent& event : events) sequence = std::max(sequence, event.sequence());
    } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return Get(id);
  }
  bool AwaitState(const std::string& id, v1::JobState state) {
    for (int i = 0; i < 500; ++i) {
      if (Get(id).state() == state) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
  static void Deadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    context->set_wait_for_ready(true);
  }

 private:
  static grpc::ChannelArguments Arguments() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
    return arguments;
  }
};

// Reason and field of a rich error; "" where there is none.
inline std::pair<std::string, std::string> RichError(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details())) << status.error_message();
  EXPECT_EQ(rich.code(), static_cast<int>(status.error_code()));
  std::string reason, field;
  int infos = 0;
  for (const auto& detail : rich.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    if (detail.UnpackTo(&info)) {
      ++infos;
      reason = info.reason();
      EXPECT_EQ(info.domain(), "hone.dev");
    }
    if (detail.UnpackTo(&bad)) field = bad.field_violations(0).field();
  }
  EXPECT_EQ(infos, 1);
  return {reason, field};
}

}  // namespace hone
