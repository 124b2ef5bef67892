#include "client/client.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "client/errors.h"
#include "grpcpp/grpcpp.h"
#include "hone/v1/daemon.grpc.pb.h"
#include "hone/v1/datasets.grpc.pb.h"
#include "hone/v1/jobs.grpc.pb.h"
#include "hone/v1/models.grpc.pb.h"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using Clock = std::chrono::system_clock;

constexpr int kCallSeconds = 30;
// Planning and validating read the whole data set and open the model.
constexpr int kPlanSeconds = 1800;
constexpr size_t kUploadChunk = 1 << 20;

void SetDeadline(grpc::ClientContext& context, int seconds) {
  context.set_deadline(Clock::now() + std::chrono::seconds(seconds));
}

}  // namespace

struct Cancellation::Calls {
  std::mutex mutex;
  std::set<grpc::ClientContext*> contexts;
};

Cancellation::Cancellation() : calls_(std::make_unique<Calls>()) {}
Cancellation::~Cancellation() = default;

void Cancellation::Cancel() {
  cancelled_ = true;
  const std::lock_guard lock(calls_->mutex);
  for (grpc::ClientContext* context : calls_->contexts) context->TryCancel();
}

struct Client::Channel {
  explicit Channel(std::shared_ptr<grpc::Channel> c)
      : jobs(v1::Jobs::NewStub(c)),
        models(v1::Models::NewStub(c)),
        datasets(v1::Datasets::NewStub(c)),
        daemon(v1::Daemon::NewStub(c)) {}
  std::unique_ptr<v1::Jobs::Stub> jobs;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<v1::Datasets::Stub> datasets;
  std::unique_ptr<v1::Daemon::Stub> daemon;

  // Lets a Cancellation reach a running call for as long as this lives.
  class Registration {
   public:
    Registration(Cancellation* cancellation, grpc::ClientContext& context)
        : cancellation_(cancellation), context_(&context) {
      if (cancellation_ == nullptr) return;
      const std::lock_guard lock(cancellation_->calls_->mutex);
      cancellation_->calls_->contexts.insert(context_);
      if (cancellation_->cancelled_) context_->TryCancel();
    }
    ~Registration() {
      if (cancellation_ == nullptr) return;
      const std::lock_guard lock(cancellation_->calls_->mutex);
      cancellation_->calls_->contexts.erase(context_);
    }

   private:
    Cancellation* cancellation_;
    grpc::ClientContext* context_;
  };

  template <typename Response, typename Request, typename Stub>
  static absl::StatusOr<Response> Call(Stub& stub,
                                       grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                       const Request& request, int seconds = kCallSeconds) {
    grpc::ClientContext context;
    SetDeadline(context, seconds);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
};

namespace {

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A restarted daemon should be found at once, not after gRPC's default minute.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  return arguments;
}

constexpr uint64_t kMaxPem = 1 << 20;

absl::Status ReadInto(const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> read = ReadFile(path, kMaxPem);
  if (!read.ok()) return InvalidArgument(read.status().message());
  *text = *std::move(read);
  return absl::OkStatus();
}

// Sends the token with each call; TLS only, which gRPC enforces.
class BearerToken final : public grpc::MetadataCredentialsPlugin {
 public:
  explicit BearerToken(const std::string& token) : value_("Bearer " + token) {}
  bool IsBlocking() const override { return false; }
  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    metadata->insert({"authorization", value_});
    return grpc::Status::OK;
  }

 private:
  const std::string value_;
};

}  // namespace

Client::Client() = default;

Client::Client(const std::string& socket_path)
    : channel_(std::make_unique<Channel>(
          grpc::CreateCustomChannel("unix:" + socket_path, grpc::InsecureChannelCredentials(), Arguments()))) {}

absl::StatusOr<std::unique_ptr<Client>> Client::Open(const Target& target) {
  if (target.address.empty()) return std::make_unique<Client>(target.socket);
  grpc::SslCredentialsOptions tls;
  HONE_RETURN_IF_ERROR(ReadInto(target.ca, &tls.pem_root_certs));
  HONE_RETURN_IF_ERROR(ReadInto(target.certificate, &tls.pem_cert_chain));
  HONE_RETURN_IF_ERROR(ReadInto(target.key, &tls.pem_private_key));
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::SslCredentials(tls);
  if (!target.token_file.empty()) {
    std::string token;
    HONE_RETURN_IF_ERROR(ReadInto(target.token_file, &token));
    while (!token.empty() && (token.back() == '\n' || token.back() == '\r' || token.back() == ' ')) token.pop_back();
    credentials = grpc::CompositeChannelCredentials(
        credentials, grpc::MetadataCredentialsFromPlugin(std::make_unique<BearerToken>(token)));
  }
  std::unique_ptr<Client> client(new Client());
  client->channel_ = std::make_unique<Channel>(grpc::CreateCustomChannel(target.address, credentials, Arguments()));
  return client;
}

Client::~Client() = default;

absl::StatusOr<v1::DaemonStatus> Client::GetStatus(int timeout_seconds) {
  return Channel::Call(*channel_->daemon, &v1::Daemon::Stub::GetStatus, v1::GetStatusRequest(), timeout_seconds);
}

absl::StatusOr<v1::ListDevicesResponse> Client::ListDevices() {
  return Channel::Call(*channel_->daemon, &v1::Daemon::Stub::ListDevices, v1::ListDevicesRequest());
}

absl::Status Client::Shutdown() {
  return Channel::Call(*channel_->daemon, &v1::Daemon::Stub::Shutdown, v1::ShutdownRequest()).status();
}

absl::StatusOr<v1::Job> Client::CreateJob(v1::CreateJobRequest request, int patience_seconds) {
  if (request.request_id().empty()) request.set_request_id(MakeRequestId());
  const auto give_up = Clock::now() + std::chrono::seconds(patience_seconds);
  auto pause = std::chrono::milliseconds(100);
  while (true) {
    absl::StatusOr<v1::Job> job = Channel::Call(*channel_->jobs, &v1::Jobs::Stub::CreateJob, request, kPlanSeconds);
    if (job.ok() || !absl::IsUnavailable(job.status()) || Clock::now() + pause > give_up) return job;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(2000));
  }
}

absl::StatusOr<v1::Job> Client::GetJob(const std::string& name) {
  v1::GetJobRequest request;
  request.set_name(JobName(name));
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::GetJob, request);
}

absl::StatusOr<std::vector<v1::Job>> Client::ListJobs(const std::vector<v1::JobState>& states, size_t limit) {
  v1::ListJobsRequest request;
  for (v1::JobState state : states) request.add_states(state);
  return ListJobs(request, limit);
}

absl::StatusOr<std::vector<v1::Job>> Client::ListJobs(v1::ListJobsRequest request, size_t limit) {
  std::vector<v1::Job> jobs;
  while (true) {
    request.set_page_size(limit == 0 ? 200 : static_cast<int>(std::min<size_t>(200, limit - jobs.size())));
    HONE_ASSIGN_OR_RETURN(v1::ListJobsResponse page,
                          Channel::Call(*channel_->jobs, &v1::Jobs::Stub::ListJobs, request));
    for (v1::Job& job : *page.mutable_jobs()) jobs.push_back(std::move(job));
    if (page.next_page_token().empty() || (limit > 0 && jobs.size() >= limit)) break;
    request.set_page_token(page.next_page_token());
  }
  if (limit > 0 && jobs.size() > limit) jobs.resize(limit);
  return jobs;
}

absl::StatusOr<v1::Job> Client::CancelJob(const std::string& name) {
  v1::CancelJobRequest request;
  request.set_name(JobName(name));
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::CancelJob, request);
}

absl::StatusOr<v1::Job> Client::PauseJob(const std::string& name) {
  v1::PauseJobRequest request;
  request.set_name(JobName(name));
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::PauseJob, request);
}

absl::StatusOr<v1::Job> Client::ResumeJob(const std::string& name) {
  v1::ResumeJobRequest request;
  request.set_name(JobName(name));
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::ResumeJob, request);
}

absl::StatusOr<v1::Job> Client::HoldJob(const std::string& name, const std::string& message) {
  v1::HoldJobRequest request;
  request.set_name(JobName(name));
  request.set_message(message);
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::HoldJob, request);
}

absl::StatusOr<v1::Job> Client::ReleaseJob(const std::string& name) {
  v1::ReleaseJobRequest request;
  request.set_name(JobName(name));
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::ReleaseJob, request);
}

absl::StatusOr<v1::Job> Client::UpdateJob(const v1::UpdateJobRequest& request) {
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::UpdateJob, request);
}

absl::Status Client::WatchJob(const std::string& name, uint64_t after_sequence,
                              const std::function<bool(const v1::JobEvent&)>& on_event, Cancellation* cancellation) {
  grpc::ClientContext context;
  const Channel::Registration registration(cancellation, context);
  v1::WatchJobRequest request;
  request.set_name(JobName(name));
  request.set_after_sequence(after_sequence);
  const auto reader = channel_->jobs->WatchJob(&context, request);
  v1::JobEvent event;
  bool wanted = true;
  while (wanted && reader->Read(&event)) wanted = on_event(event);
  if (wanted) return FromGrpcStatus(reader->Finish());
  context.TryCancel();
  reader->Finish();
  return absl::OkStatus();
}

absl::Status Client::ReadLogs(const std::string& name, bool follow,
                              const std::function<void(const std::string&)>& on_text, Cancellation* cancellation) {
  grpc::ClientContext context;
  const Channel::Registration registration(cancellation, context);
  v1::GetJobLogsRequest request;
  request.set_name(JobName(name));
  request.set_follow(follow);
  const auto reader = channel_->jobs->GetJobLogs(&context, request);
  v1::LogChunk chunk;
  while (reader->Read(&chunk)) on_text(chunk.text());
  return FromGrpcStatus(reader->Finish());
}

absl::StatusOr<v1::PlanJobResponse> Client::PlanJob(const v1::JobSpec& spec, const std::string& device) {
  v1::PlanJobRequest request;
  *request.mutable_spec() = spec;
  request.set_device(device);
  return Channel::Call(*channel_->jobs, &v1::Jobs::Stub::PlanJob, request, kPlanSeconds);
}

absl::StatusOr<std::vector<v1::Artifact>> Client::ListArtifacts(const std::string& name) {
  v1::ListArtifactsRequest request;
  request.set_name(JobName(name));
  HONE_ASSIGN_OR_RETURN(const v1::ListArtifactsResponse response,
                        Channel::Call(*channel_->jobs, &v1::Jobs::Stub::ListArtifacts, request));
  return std::vector<v1::Artifact>(response.artifacts().begin(), response.artifacts().end());
}

absl::Status Client::ReadArtifact(const std::string& name, const std::string& path, uint64_t offset,
                                  const std::function<absl::Status(const std::string&)>& on_data,
                                  Cancellation* cancellation) {
  grpc::ClientContext context;
  const Channel::Registration registration(cancellation, context);
  v1::ReadArtifactRequest request;
  request.set_name(JobName(name));
  request.set_path(path);
  request.set_offset(offset);
  const auto reader = channel_->jobs->ReadArtifact(&context, request);
  v1::ArtifactChunk chunk;
  while (reader->Read(&chunk)) {
    absl::Status taken = on_data(chunk.data());
    if (taken.ok()) continue;
    context.TryCancel();
    reader->Finish();
    return taken;
  }
  return FromGrpcStatus(reader->Finish());
}

absl::StatusOr<v1::ValidateDataResponse> Client::ValidateData(const v1::JobSpec& spec) {
  v1::ValidateDataRequest request;
  *request.mutable_spec() = spec;
  return Channel::Call(*channel_->datasets, &v1::Datasets::Stub::ValidateData, request, kPlanSeconds);
}

absl::StatusOr<std::string> Client::UploadFile(const std::string& path,
                                               const std::function<void(uint64_t, uint64_t)>& on_progress) {
  HONE_ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(path));
  v1::GetBlobRequest have;
  have.set_digest(digest);
  HONE_ASSIGN_OR_RETURN(const v1::GetBlobResponse known,
                        Channel::Call(*channel_->datasets, &v1::Datasets::Stub::GetBlob, have));
  if (known.present()) return digest;

  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return NotFound("cannot open ", path);
  const uint64_t total = static_cast<uint64_t>(file.tellg());
  file.seekg(0);
  grpc::ClientContext context;
  v1::UploadBlobResponse response;
  const auto writer = channel_->datasets->UploadBlob(&context, &response);
  v1::UploadBlobRequest message;
  message.set_digest(digest);
  message.set_total_bytes(total);
  bool open = writer->Write(message);
  message.Clear();
  uint64_t done = 0;
  std::string buffer(kUploadChunk, '\0');
  while (open && done < total) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    const auto count = static_cast<size_t>(file.gcount());
    if (count == 0) break;  // it shrank while we read; the daemon refuses what does not match the digest
    message.set_data(buffer.data(), count);
    open = writer->Write(message);
    done += count;
    if (on_progress) on_progress(done, total);
  }
  writer->WritesDone();
  const absl::Status status = FromGrpcStatus(writer->Finish());
  if (!status.ok()) return Annotate(status, path);
  return digest;
}

absl::StatusOr<v1::Model> Client::ImportModel(const std::string& id, const std::string& absolute_path,
                                              const std::string& quantization) {
  v1::ImportModelRequest request;
  request.set_quantization(quantization);
  request.set_id(id);
  request.set_path(absolute_path);
  request.set_request_id(MakeRequestId());
  return Channel::Call(*channel_->models, &v1::Models::Stub::ImportModel, request, kPlanSeconds);
}

absl::StatusOr<std::vector<v1::Model>> Client::ListModels() {
  v1::ListModelsRequest request;
  request.set_page_size(200);
  std::vector<v1::Model> models;
  while (true) {
    HONE_ASSIGN_OR_RETURN(v1::ListModelsResponse page,
                          Channel::Call(*channel_->models, &v1::Models::Stub::ListModels, request));
    for (v1::Model& model : *page.mutable_models()) models.push_back(std::move(model));
    if (page.next_page_token().empty()) return models;
    request.set_page_token(page.next_page_token());
  }
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) {
  v1::GetModelRequest request;
  request.set_name(name.rfind("models/", 0) == 0 ? name : "models/" + name);
  return Channel::Call(*channel_->models, &v1::Models::Stub::GetModel, request);
}

absl::Status Client::DeleteModel(const std::string& name) {
  v1::DeleteModelRequest request;
  request.set_name(name.rfind("models/", 0) == 0 ? name : "models/" + name);
  return Channel::Call(*channel_->models, &v1::Models::Stub::DeleteModel, request).status();
}

absl::Status Client::Generate(const v1::GenerateModelRequest& request,
                              const std::function<void(const v1::GenerateChunk&)>& on_chunk,
                              Cancellation* cancellation) {
  grpc::ClientContext context;
  SetDeadline(context, kPlanSeconds);
  const Channel::Registration registration(cancellation, context);
  const auto reader = channel_->models->Generate(&context, request);
  v1::GenerateModelResponse response;
  while (reader->Read(&response)) on_chunk(response.chunk());
  return FromGrpcStatus(reader->Finish());
}

std::string MakeRequestId() {
  std::random_device entropy;
  static constexpr char kHex[] = "0123456789abcdef";
  std::string id = "xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx";
  for (char& c : id) {
    if (c == 'x') c = kHex[entropy() & 15];
    if (c == 'y') c = kHex[8 + (entropy() & 3)];
  }
  return id;
}

std::string JobName(const std::string& id_or_name) {
  return id_or_name.rfind("jobs/", 0) == 0 ? id_or_name : "jobs/" + id_or_name;
}

bool IsFinal(v1::JobState state) { return state == v1::SUCCEEDED || state == v1::FAILED || state == v1::CANCELLED; }

bool IsAtRest(v1::JobState state) { return IsFinal(state) || state == v1::PAUSED || state == v1::HELD; }

}  // namespace hone
