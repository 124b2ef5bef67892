// Every RPC's request, structured: the first byte picks the method, the rest is its request. Mutations change fields of
// the message (names of jobs that exist, extreme numbers, long and invalid strings) as often as bytes. The daemon is a
// real one in this process, over its socket, with a worker that ends at once. It must answer each call with a status
// that a client can read, and with exactly one ErrorInfo where that is an error.
#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "google/protobuf/stubs/logging.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "hone/v1/daemon.grpc.pb.h"
#include "hone/v1/datasets.grpc.pb.h"
#include "hone/v1/jobs.grpc.pb.h"
#include "hone/v1/models.grpc.pb.h"
#include "proto/base/status.h"
#include "server/daemon.h"
#include "spdlog/spdlog.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) __attribute__((weak));

namespace hone {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

struct Method {
  std::function<std::unique_ptr<Message>()> make;
  std::function<grpc::Status(grpc::ClientContext*, const Message&)> call;
};

class World {
 public:
  World() {
    spdlog::set_level(spdlog::level::off);
    google::protobuf::SetLogHandler(nullptr);  // it complains of each string that is no UTF-8
    char name[] = "/tmp/hone-fuzz-XXXXXX";
    folder_ = mkdtemp(name);
    std::ofstream(folder_ + "/data.jsonl") << "{\"text\": \"a\"}\n";
    std::filesystem::create_directory(folder_ + "/model");
    DaemonOptions options;
    options.state_dir = folder_ + "/state";
    options.socket = folder_ + "/s";
    options.metrics_address = "off";
    options.worker_program = "/bin/false";
    options.ballast_bytes = 0;
    options.doorman.max_bad = 1e18;  // it cancels more streams than a client should
    options.max_jobs = 200;
    // Nothing may start before the jobs below are in their states.
    options.scheduler.free_disk = [this] { return placed_ ? uint64_t{1} << 40 : 0; };
    auto daemon = Daemon::Start(options);
    if (!daemon.ok()) {
      std::fprintf(stderr, "%s\n", daemon.status().ToString().c_str());
      abort();
    }
    daemon_ = *std::move(daemon);
    AddJobs();
    placed_ = true;
    channel_ = grpc::CreateChannel("unix:" + options.socket, grpc::InsecureChannelCredentials());
    jobs_ = v1::Jobs::NewStub(channel_);
    models_ = v1::Models::NewStub(channel_);
    datasets_ = v1::Datasets::NewStub(channel_);
    service_ = v1::Daemon::NewStub(channel_);
    AddMethods();
  }
  ~World() {
    daemon_.reset();
    std::filesystem::remove_all(folder_);
  }

  const std::vector<Method>& methods() const { return methods_; }
  const std::vector<std::string>& words() const { return words_; }

 private:
  // One job in each state at rest.
  void AddJobs() {
    for (const v1::JobState state : {v1::PAUSED, v1::HELD, v1::CANCELLED, v1::FAILED}) {
      NewJob job;
      job.spec.set_name("n");
      job.display_name = "n";
      auto created = daemon_->store()->CreateJob(job);
      if (!created.ok()) {
        std::fprintf(stderr, "%s\n", created.status().ToString().c_str());
        abort();
      }
      JobUpdate update;
      update.states.push_back({state, "HELD_BY_USER", "m"});
      const absl::Status moved = daemon_->store()->Update(created->job.id(), {}, update);
      if (!moved.ok()) {
        std::fprintf(stderr, "%s\n", moved.ToString().c_str());
        abort();
      }
      words_.push_back(created->job.id());
      words_.push_back(created->job.name());
    }
    for (const char* word : {"", "../..", "jobs/", "sha256:", "adapter/adapter_model.safetensors", "cpu", "\xff\xfe",
                             "%s%n", "a\0b", "random:/", "/dev/zero", "/proc/self/mem", "[peft]", "' OR 1=1 --"}) {
      words_.push_back(word);
    }
    words_.push_back(folder_ + "/data.jsonl");
    words_.push_back(folder_ + "/model");
    words_.push_back(std::string(64, 'a'));
    words_.push_back("sha256:" + std::string(64, '0'));
    words_.push_back(std::string(70000, 'x'));
  }

  template <typename Stub, typename Request, typename Response>
  void Unary(Stub* stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
    methods_.push_back({[] { return std::make_unique<Request>(); },
                        [stub, method](grpc::ClientContext* context, const Message& request) {
                          Response response;
                          return (stub->*method)(context, static_cast<const Request&>(request), &response);
                        }});
  }
  template <typename Request, typename Response, typename Stub>
  void Stream(Stub* stub,
              std::unique_ptr<grpc::ClientReader<Response>> (Stub::*method)(grpc::ClientContext*, const Request&)) {
    methods_.push_back({[] { return std::make_unique<Request>(); },
                        [stub, method](grpc::ClientContext* context, const Message& request) {
                          auto reader = (stub->*method)(context, static_cast<const Request&>(request));
                          Response response;
                          for (int i = 0; i < 100 && reader->Read(&response); ++i) {
                          }
                          context->TryCancel();
                          reader->Finish();
                          return grpc::Status::OK;
                        }});
  }

  void AddMethods() {
    v1::Jobs::Stub* jobs = jobs_.get();
    using J = v1::Jobs::Stub;
    Unary(jobs, &J::CreateJob);
    Unary(jobs, &J::GetJob);
    Unary(jobs, &J::ListJobs);
    Unary(jobs, &J::CancelJob);
    Unary(jobs, &J::PauseJob);
    Unary(jobs, &J::ResumeJob);
    Unary(jobs, &J::HoldJob);
    Unary(jobs, &J::ReleaseJob);
    Unary(jobs, &J::UpdateJob);
    Unary(jobs, &J::ListArtifacts);
    Unary(jobs, &J::PlanJob);
    Stream<v1::WatchJobRequest, v1::JobEvent>(jobs, &J::WatchJob);
    Stream<v1::GetJobLogsRequest, v1::LogChunk>(jobs, &J::GetJobLogs);
    Stream<v1::ReadArtifactRequest, v1::ArtifactChunk>(jobs, &J::ReadArtifact);
    v1::Models::Stub* models = models_.get();
    Unary(models, &v1::Models::Stub::ImportModel);
    Unary(models, &v1::Models::Stub::ListModels);
    Unary(models, &v1::Models::Stub::GetModel);
    Unary(models, &v1::Models::Stub::DeleteModel);
    Stream<v1::GenerateModelRequest, v1::GenerateModelResponse>(models, &v1::Models::Stub::Generate);
    v1::Datasets::Stub* datasets = datasets_.get();
    Unary(datasets, &v1::Datasets::Stub::GetBlob);
    Unary(datasets, &v1::Datasets::Stub::ValidateData);
    methods_.push_back({[] { return std::make_unique<v1::UploadBlobRequest>(); },
                        [datasets](grpc::ClientContext* context, const Message& request) {
                          v1::UploadBlobResponse response;
                          auto writer = datasets->UploadBlob(context, &response);
                          const auto& message = static_cast<const v1::UploadBlobRequest&>(request);
                          writer->Write(message);
                          writer->Write(message);
                          writer->WritesDone();
                          return writer->Finish();
                        }});
    Unary(service_.get(), &v1::Daemon::Stub::GetStatus);
    Unary(service_.get(), &v1::Daemon::Stub::ListDevices);
    Unary(service_.get(), &v1::Daemon::Stub::Shutdown);  // there is no request_shutdown: nothing happens
  }

  std::atomic<bool> placed_{false};
  std::string folder_;
  std::unique_ptr<Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Jobs::Stub> jobs_;
  std::unique_ptr<v1::Models::Stub> models_;
  std::unique_ptr<v1::Datasets::Stub> datasets_;
  std::unique_ptr<v1::Daemon::Stub> service_;
  std::vector<Method> methods_;
  std::vector<std::string> words_;
};

World& TheWorld() {
  static World world;
  return world;
}

void CheckStatus(const grpc::Status& status) {
  if (status.ok() || status.error_details().empty()) return;  // without details: gRPC's own (deadline, size)
  google::rpc::Status rich;
  if (!rich.ParseFromString(status.error_details())) abort();
  int infos = 0;
  for (const auto& detail : rich.details()) {
    google::rpc::ErrorInfo info;
    if (!detail.Is<google::rpc::ErrorInfo>()) continue;
    if (!detail.UnpackTo(&info) || info.reason().empty() || info.domain() != "hone.dev") abort();
    ++infos;
  }
  if (infos != 1) abort();
  if (status.error_code() == grpc::StatusCode::INTERNAL) abort();  // a broken invariant of ours
}

// ---- structured mutation

template <typename T>
T Extreme(std::mt19937& random) {
  switch (random() % 6) {
    case 0:
      return 0;
    case 1:
      return static_cast<T>(-1);
    case 2:
      return std::numeric_limits<T>::max();
    case 3:
      return std::numeric_limits<T>::lowest();
    case 4:
      return static_cast<T>(1);
    default:
      return static_cast<T>(random() % 2000);
  }
}

void MutateField(Message* message, const FieldDescriptor* field, std::mt19937& random, int depth);

void MutateMessage(Message* message, std::mt19937& random, int depth = 0) {
  const auto* descriptor = message->GetDescriptor();
  if (descriptor->field_count() == 0 || depth > 6) return;
  MutateField(message, descriptor->field(static_cast<int>(random() % static_cast<unsigned>(descriptor->field_count()))),
              random, depth);
}

void MutateField(Message* message, const FieldDescriptor* field, std::mt19937& random, int depth) {
  const auto* reflection = message->GetReflection();
  if (random() % 10 == 0) return reflection->ClearField(message, field);
  const auto& words = TheWorld().words();
  const bool many = field->is_repeated();
  if (many && reflection->FieldSize(*message, field) > 70) return reflection->ClearField(message, field);
#define HONE_SET(Type, value) \
  many ? reflection->Add##Type(message, field, value) : reflection->Set##Type(message, field, value)
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return HONE_SET(Int32, Extreme<int32_t>(random));
    case FieldDescriptor::CPPTYPE_INT64:
      return HONE_SET(Int64, Extreme<int64_t>(random));
    case FieldDescriptor::CPPTYPE_UINT32:
      return HONE_SET(UInt32, Extreme<uint32_t>(random));
    case FieldDescriptor::CPPTYPE_UINT64:
      return HONE_SET(UInt64, Extreme<uint64_t>(random));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return HONE_SET(Double, random() % 8 == 0 ? std::numeric_limits<double>::quiet_NaN() : Extreme<double>(random));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return HONE_SET(Float, Extreme<float>(random));
    case FieldDescriptor::CPPTYPE_BOOL:
      return HONE_SET(Bool, random() % 2 == 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return HONE_SET(EnumValue, static_cast<int>(random() % 20));
    case FieldDescriptor::CPPTYPE_STRING:
      return HONE_SET(String, words[random() % words.size()]);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MutateMessage(many ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field),
                           random, depth + 1);
  }
#undef HONE_SET
}

}  // namespace
}  // namespace hone

// OpenSSL keeps an error queue for each thread; those of gRPC's threads that still run when the process exits look
// lost.
extern "C" const char* __lsan_default_suppressions();                                 // NOLINT
extern "C" const char* __lsan_default_suppressions() { return "leak:libcrypto.so"; }  // NOLINT

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hone;  // NOLINT
  if (size < 1) return 0;
  const auto& methods = TheWorld().methods();
  const Method& method = methods[data[0] % methods.size()];
  const auto request = method.make();
  if (!request->ParseFromArray(data + 1, static_cast<int>(size - 1))) return 0;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(4));
  CheckStatus(method.call(&context, *request));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  using namespace hone;  // NOLINT
  std::mt19937 random(seed);
  if (max_size < 2) return size;
  if (size == 0 || random() % 8 == 0) {
    data[0] = static_cast<uint8_t>(random() % TheWorld().methods().size());
    size = std::max<size_t>(size, 1);
  }
  if (random() % 4 == 0 && LLVMFuzzerMutate != nullptr) return 1 + LLVMFuzzerMutate(data + 1, size - 1, max_size - 1);
  const auto request = TheWorld().methods()[data[0] % TheWorld().methods().size()].make();
  (void)request->ParseFromArray(data + 1, static_cast<int>(size - 1));
  for (unsigned i = 0; i <= random() % 3; ++i) MutateMessage(request.get(), random);
  const std::string bytes = request->SerializePartialAsString();
  if (bytes.size() + 1 > max_size) return size;
  bytes.copy(reinterpret_cast<char*>(data + 1), bytes.size());
  return bytes.size() + 1;
}
