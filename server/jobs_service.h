// hone.v1.Jobs.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include "server/services.h"

namespace hone {

class JobsService final : public v1::Jobs::CallbackService {
 public:
  explicit JobsService(ServiceContext* context) : context_(context) {}

  grpc::ServerUnaryReactor* CreateJob(grpc::CallbackServerContext*, const v1::CreateJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext*, const v1::GetJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext*, const v1::ListJobsRequest*,
                                     v1::ListJobsResponse*) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext*, const v1::CancelJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* PauseJob(grpc::CallbackServerContext*, const v1::PauseJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* ResumeJob(grpc::CallbackServerContext*, const v1::ResumeJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* HoldJob(grpc::CallbackServerContext*, const v1::HoldJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* ReleaseJob(grpc::CallbackServerContext*, const v1::ReleaseJobRequest*, v1::Job*) override;
  grpc::ServerUnaryReactor* UpdateJob(grpc::CallbackServerContext*, const v1::UpdateJobRequest*, v1::Job*) override;
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext*, const v1::WatchJobRequest*) override;
  grpc::ServerWriteReactor<v1::LogChunk>* GetJobLogs(grpc::CallbackServerContext*,
                                                     const v1::GetJobLogsRequest*) override;
  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext*, const v1::ListArtifactsRequest*,
                                          v1::ListArtifactsResponse*) override;
  grpc::ServerWriteReactor<v1::ArtifactChunk>* ReadArtifact(grpc::CallbackServerContext*,
                                                            const v1::ReadArtifactRequest*) override;
  grpc::ServerUnaryReactor* PlanJob(grpc::CallbackServerContext*, const v1::PlanJobRequest*,
                                    v1::PlanJobResponse*) override;

 private:
  absl::Status Create(const v1::CreateJobRequest& request, const Caller& caller, const Admission::Cancelled& cancelled,
                      v1::Job* job);
  absl::Status CreateNew(const v1::CreateJobRequest& request, const Caller& caller, const std::string& fingerprint,
                         const Admission::Cancelled& cancelled, v1::Job* job);
  // Resolves the name, checks that the caller may, does it, answers with the job as it is then.
  template <typename Request>
  grpc::ServerUnaryReactor* Act(grpc::CallbackServerContext* call, const Request* request, v1::Job* job,
                                std::function<absl::Status(const std::string& id)> action);
  absl::StatusOr<v1::JobOptions> CheckOptions(const v1::JobOptions& options) const;
  absl::Status Move(const std::string& id, const v1::UpdateJobRequest& request);
  absl::Status Plan(const v1::PlanJobRequest& request, const Caller& caller, const Admission::Cancelled& cancelled,
                    v1::PlanJobResponse* plan);

  ServiceContext* context_;
  // Requests under way by request_id: a second one with the same id waits for the first instead of planning again.
  std::mutex mutex_;
  std::condition_variable done_;
  std::set<std::string> under_way_;
};

}  // namespace hone
