// The daemon in this process, over its socket, with a fake worker: what is promised to clients.
#include "server/daemon.h"

#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <atomic>
#include <set>

#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "server/store/states.h"
#include "tests/server/daemon_harness.h"

namespace hone {
namespace {

using std::chrono::milliseconds;

class DaemonTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override {
    client_.reset();
    daemon_.reset();
  }
  void Start() {
    DaemonOptions options;
    options.state_dir = folder_ / "state";
    options.socket = folder_ / "s";
    options.metrics_address = metrics_;
    options.worker_program = FAKE_WORKER;
    options.runner.cancel_grace = cancel_grace_;
    options.runner.term_grace = milliseconds(200);
    options.scheduler.retry_delay = milliseconds(10);
    options.scheduler.free_memory = [this] { return free_memory_.load(); };
    auto daemon = Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    client_ = std::make_unique<Client>(options.socket);
  }
  v1::JobSpec Spec(const std::string& script) { return FakeSpec(folder_, script); }
  std::string Output(const std::string& id) { return folder_ / "state/jobs/" + id + "/output"; }

  Folder folder_;
  milliseconds cancel_grace_{300};
  std::string metrics_ = "off";  // stopping its listener takes two seconds
  std::atomic<uint64_t> free_memory_{uint64_t{1} << 40};
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_F(DaemonTest, AJobRunsToItsEndAndEverythingIsThere) {
  const std::string id = client_->MustCreate(Spec("steps=5"));
  grpc::Status status;
  const auto events = client_->Watch(id, 0, &status);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ExpectGapless(events);
  std::vector<v1::JobState> states;
  for (const auto& event : events) {
    if (event.has_state()) states.push_back(event.state().to());
  }
  EXPECT_EQ(states, (std::vector<v1::JobState>{v1::VALIDATING, v1::QUEUED, v1::STARTING, v1::RUNNING, v1::FINALIZING,
                                               v1::SUCCEEDED}));
  const v1::Job job = client_->Get(id);
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_EQ(job.attempts_size(), 1);
  EXPECT_EQ(job.attempts(0).exit(), "succeeded");
  EXPECT_EQ(job.attempts(0).device(), "fake");
  EXPECT_EQ(job.attempts(0).first_step(), 1u);
  EXPECT_EQ(job.last_step().step(), 5u);
  EXPECT_EQ(job.last_eval().step(), 5u);
  EXPECT_EQ(job.result_json(), "{\"steps\": 5}");
  EXPECT_EQ(job.memory().arenas(0).actual_bytes(), 900u);
  EXPECT_EQ(job.last_sequence(), events.back().sequence());
  EXPECT_EQ(job.resolved_spec().optimizer().name(), v1::OPTIMIZER_NAME_ADAMW);
  const auto steps = ReadFile(folder_ / "state/jobs/" + id + "/attempts/1/steps.jsonl");
  ASSERT_TRUE(steps.ok());
  EXPECT_EQ(std::count(steps->begin(), steps->end(), '\n'), 5);
}

TEST_F(DaemonTest, ErrorsNameReasonAndField) {
  v1::Job job;
  v1::JobSpec spec = Spec("x");
  spec.mutable_optimizer()->set_learning_rate(std::nan(""));
  EXPECT_EQ(RichError(client_->Create(spec, &job)).second, "optimizer.learning_rate");
  spec = Spec("x");
  spec.mutable_adapter()->mutable_lora()->set_r(0);
  EXPECT_EQ(RichError(client_->Create(spec, &job)).second, "adapter.lora.r");
  EXPECT_EQ(RichError(client_->Create(Spec("fail=data.max_length"), &job)).second, "data.max_length");
  spec = Spec("x");
  spec.mutable_data()->set_train("answers.jsonl");
  EXPECT_EQ(RichError(client_->Create(spec, &job)).second, "data.train");
  spec.mutable_data()->set_train("sha256:" + std::string(64, 'a'));
  EXPECT_EQ(RichError(client_->Create(spec, &job)),
            (std::pair<std::string, std::string>("BLOB_MISSING", "data.train")));
  spec.mutable_data()->set_train("sha256:../../etc/passwd");
  EXPECT_EQ(RichError(client_->Create(spec, &job)).second, "data.train");
  spec = Spec("x");
  spec.mutable_model()->set_source("nobody-knows");
  EXPECT_EQ(RichError(client_->Create(spec, &job)).first, "MODEL_UNKNOWN");
  const grpc::Status too_big = client_->Create(Spec("too-big"), &job);
  EXPECT_EQ(RichError(too_big).first, "PLAN_DOES_NOT_FIT");
  EXPECT_NE(too_big.error_message().find("data.max_length: 16"), std::string::npos);
  EXPECT_EQ(RichError(client_->Create(Spec("x"), &job, "not a uuid!")).second, "request_id");
  EXPECT_EQ(RichError(client_->Create(Spec("x"), &job, "", 5000)).second, "priority");
  spec = Spec("x");
  spec.set_name(std::string(5 << 20, 'x'));
  EXPECT_EQ(client_->Create(spec, &job).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  // Nothing of all this was stored, and the daemon serves on.
  grpc::ClientContext context;
  v1::ListJobsResponse list;
  ASSERT_TRUE(client_->jobs->ListJobs(&context, {}, &list).ok());
  EXPECT_EQ(list.jobs_size(), 0);
  EXPECT_EQ(client_->Await(client_->MustCreate(Spec("steps=1"))).state(), v1::SUCCEEDED);
}

TEST_F(DaemonTest, ManySubmitsWithOneRequestIdMakeOneJob) {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::set<std::string> ids;
  for (int i = 0; i < 24; ++i) {
    threads.emplace_back([&] {
      v1::Job job;
      const grpc::Status status =
          client_->Create(Spec("steps=1 plan-sleep=50"), &job, "d9b2d63d-a233-4123-847a-7a2d1b1f2f1a");
      EXPECT_TRUE(status.ok()) << status.error_message();
      std::lock_guard lock(mutex);
      ids.insert(job.id());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ids.size(), 1u);
  v1::Job job;
  const grpc::Status other = client_->Create(Spec("steps=2"), &job, "d9b2d63d-a233-4123-847a-7a2d1b1f2f1a");
  EXPECT_EQ(RichError(other).second, "request_id");
}

TEST_F(DaemonTest, ValidateOnlyChecksAndStoresNothing) {
  grpc::ClientContext context, second, third;
  v1::CreateJobRequest request;
  *request.mutable_spec() = Spec("steps=3");
  request.set_validate_only(true);
  v1::Job job;
  ASSERT_TRUE(client_->jobs->CreateJob(&context, request, &job).ok());
  EXPECT_EQ(job.plan().steps(), 3u);
  EXPECT_EQ(job.id(), "");
  request.mutable_spec()->set_name("fail=run.seed");
  EXPECT_EQ(RichError(client_->jobs->CreateJob(&second, request, &job)).second, "run.seed");
  v1::ListJobsResponse list;
  ASSERT_TRUE(client_->jobs->ListJobs(&third, {}, &list).ok());
  EXPECT_EQ(list.jobs_size(), 0);
}

TEST_F(DaemonTest, PlansForADeviceThatIsNotHere) {
  v1::PlanJobRequest request;
  *request.mutable_spec() = Spec("steps=3");
  v1::PlanJobResponse response;
  for (const char* device : {"rtx3090", ""}) {
    grpc::ClientContext context;
    request.set_device(device);
    ASSERT_TRUE(client_->jobs->PlanJob(&context, request, &response).ok());
    EXPECT_EQ(response.plan().device(), *device == 0 ? "cpu" : device);
  }
}

TEST_F(DaemonTest, ACrashedWorkerGoesOnFromItsCheckpoint) {
  const v1::Job job = client_->Await(client_->MustCreate(Spec("steps=6 crash=5")));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).exit(), "crashed");
  EXPECT_NE(job.attempts(0).message().find("signal 9"), std::string::npos);
  EXPECT_EQ(job.attempts(1).first_step(), 5u);  // the checkpoint was at 4
}

TEST_F(DaemonTest, ThreeCrashesWithoutACheckpointFail) {
  const v1::Job job = client_->Await(client_->MustCreate(Spec("steps=6 crash-always=1")));
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.state_reason(), "WORKER_CRASHED");
  EXPECT_EQ(job.attempts_size(), 3);
}

TEST_F(DaemonTest, ACheckpointStartsTheCountAnew) {
  // Attempt 1 saves at 2 and crashes at 3; then three more attempts save nothing new: 1 and 2 after the first.
  const v1::Job job = client_->Await(client_->MustCreate(Spec("steps=6 crash-always=3")));
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.attempts_size(), 3);
  EXPECT_EQ(job.attempts(2).first_step(), 3u);
}

TEST_F(DaemonTest, AWorkerThatSpeaksNonsenseIsACrash) {
  const v1::Job job = client_->Await(client_->MustCreate(Spec("garbage=1")));
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.attempts_size(), 3);
  EXPECT_NE(job.attempts(0).message().find("4294967295"), std::string::npos) << job.attempts(0).message();
}

TEST_F(DaemonTest, AnErrorOfTheWorkerFailsTheJobAtOnce) {
  const v1::Job job = client_->Await(client_->MustCreate(Spec("fail-train")));
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.state_message(), "data.train: line 3: no label");
  EXPECT_EQ(job.attempts_size(), 1);
}

TEST_F(DaemonTest, CancelOfAQueuedJobEndsItAtOnce) {
  const std::string running = client_->MustCreate(Spec("steps=1000 sleep=20"));
  const std::string waiting = client_->MustCreate(Spec("steps=1"));
  ASSERT_TRUE(client_->AwaitState(running, v1::RUNNING));
  v1::Job job;
  ASSERT_TRUE(client_->Cancel(waiting, &job).ok());
  EXPECT_EQ(job.state(), v1::CANCELLED);
  EXPECT_EQ(job.attempts_size(), 0);
  ASSERT_TRUE(client_->Cancel(running, &job).ok());
  ASSERT_TRUE(client_->Cancel(running, &job).ok());  // again is no error
  const v1::Job ended = client_->Await(running);
  EXPECT_EQ(ended.state(), v1::CANCELLED);
  EXPECT_EQ(ended.attempts(0).exit(), "cancelled");
  const auto progress = ReadFile(Output(running) + "/progress");
  ASSERT_TRUE(progress.ok());  // its last checkpoint is kept
  EXPECT_GT(std::stoi(*progress), 0);
  ASSERT_TRUE(client_->Cancel(running, &job).ok());  // still no error
}

TEST_F(DaemonTest, CancelOfAFinishedJobIsRefused) {
  const std::string id = client_->MustCreate(Spec("steps=1"));
  client_->Await(id);
  v1::Job job;
  const grpc::Status status = client_->Cancel(id, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(RichError(status).first, "JOB_FINISHED");
}

TEST_F(DaemonTest, AHangingWorkerIsEnded) {
  for (const char* script : {"hang=3", "hang-hard=3"}) {
    const std::string id = client_->MustCreate(Spec(script));
    ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
    v1::Job job;
    ASSERT_TRUE(client_->Cancel(id, &job).ok());
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(client_->Await(id).state(), v1::CANCELLED) << script;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  }
}

TEST_F(DaemonTest, PriorityThenOrder) {
  const std::string first = client_->MustCreate(Spec("steps=20 sleep=20"));
  ASSERT_TRUE(client_->AwaitState(first, v1::RUNNING));
  const std::string low = client_->MustCreate(Spec("steps=1"), -1);
  const std::string normal = client_->MustCreate(Spec("steps=1"));
  const std::string high = client_->MustCreate(Spec("steps=1"), 5);
  for (const std::string& id : {first, low, normal, high}) EXPECT_EQ(client_->Await(id).state(), v1::SUCCEEDED);
  const auto start = [&](const std::string& id) {
    const auto time = client_->Get(id).start_time();
    return time.seconds() * 1'000'000'000 + time.nanos();
  };
  EXPECT_LT(start(first), start(high));
  EXPECT_LT(start(high), start(normal));
  EXPECT_LT(start(normal), start(low));
}

TEST_F(DaemonTest, AJobWaitsForMemory) {
  free_memory_ = 1000;
  const std::string id = client_->MustCreate(Spec("steps=1"));
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(client_->Get(id).state(), v1::QUEUED);
  free_memory_ = uint64_t{1} << 40;
  EXPECT_EQ(client_->Await(id).state(), v1::SUCCEEDED);
}

TEST_F(DaemonTest, DrainKeepsTheRunnerAndTheQueue) {
  cancel_grace_ = milliseconds(5000);
  client_.reset();
  daemon_.reset();
  Start();
  const std::string running = client_->MustCreate(Spec("steps=40 sleep=25"));
  const std::string waiting = client_->MustCreate(Spec("steps=1"));
  ASSERT_TRUE(client_->AwaitState(running, v1::RUNNING));
  std::thread stopper([&] {
    std::this_thread::sleep_for(milliseconds(150));
    daemon_->Stop();
  });
  grpc::Status status;
  const auto events = client_->Watch(running, 0, &status);
  stopper.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(events.back().state().to(), v1::QUEUED);  // told before the stream ended
  const uint64_t seen = events.back().sequence();
  client_.reset();
  daemon_.reset();
  Start();
  const auto rest = client_->Watch(running, seen, &status);
  EXPECT_TRUE(status.ok());
  ExpectGapless(rest, seen);
  const v1::Job job = client_->Get(running);
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).exit(), "daemon-restart");
  EXPECT_EQ(job.attempts(1).first_step(), job.attempts(0).last_step() + 1);
  EXPECT_EQ(client_->Await(waiting).state(), v1::SUCCEEDED);
}

TEST_F(DaemonTest, WatchResumesAnywhere) {
  const std::string id = client_->MustCreate(Spec("steps=6"));
  const auto all = client_->Watch(id);
  const uint64_t last = all.back().sequence();
  for (uint64_t after = 0; after <= last; ++after) {
    const auto rest = client_->Watch(id, after);
    ExpectGapless(rest, after);
    uint64_t durable = 0;
    for (const auto& event : rest) durable += event.sequence() > 0;
    EXPECT_EQ(durable, last - after);
  }
  grpc::Status status;
  client_->Watch(id, last + 1, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  client_->Watch("nosuchjob", 0, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(DaemonTest, ClientsThatDoNotReadDelayNobody) {
  const std::string id = client_->MustCreate(Spec("steps=500 sleep=2"));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::JobEvent>>> readers;
  for (int i = 0; i < 100; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    v1::WatchJobRequest request;
    request.set_name(id);
    readers.push_back(client_->jobs->WatchJob(contexts.back().get(), request));
  }
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) client_->Get(id);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  ExpectGapless(client_->Watch(id));
  for (auto& context : contexts) context->TryCancel();
  for (auto& reader : readers) {
    v1::JobEvent event;
    while (reader->Read(&event)) {
    }
    reader->Finish();
  }
}

TEST_F(DaemonTest, ArtifactsAreReadAndNothingElseIs) {
  const std::string id = client_->MustCreate(Spec("steps=2"));
  client_->Await(id);
  const auto read = [&](const std::string& path, uint64_t offset, std::string* bytes) {
    grpc::ClientContext context;
    v1::ReadArtifactRequest request;
    request.set_name(id);
    request.set_path(path);
    request.set_offset(offset);
    auto reader = client_->jobs->ReadArtifact(&context, request);
    v1::ArtifactChunk chunk;
    while (reader->Read(&chunk)) bytes->append(chunk.data());
    return reader->Finish();
  };
  std::string bytes;
  ASSERT_TRUE(read("adapter/adapter_model.safetensors", 0, &bytes).ok());
  EXPECT_EQ(bytes, "weights after 2 steps\n");
  bytes.clear();
  ASSERT_TRUE(read("adapter/adapter_model.safetensors", 8, &bytes).ok());
  EXPECT_EQ(bytes, "after 2 steps\n");
  bytes.clear();
  EXPECT_EQ(read("adapter/adapter_model.safetensors", 1000, &bytes).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  std::filesystem::create_symlink("/etc/passwd", Output(id) + "/link");
  std::filesystem::create_directory_symlink("/etc", Output(id) + "/etc");
  for (const char* path :
       {"../lock", "/etc/passwd", "adapter/../../lock", "link", "etc/passwd", "", ".", "..", "adapter",
        "adapter/../../../../../../../etc/passwd", "none", "adapter//adapter_model.safetensors",
        "./adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors/x"}) {
    const grpc::Status status = read(path, 0, &bytes);
    EXPECT_FALSE(status.ok()) << path;
    EXPECT_EQ(RichError(status).second, "path") << path;
  }
  EXPECT_FALSE(read(std::string("adapter\0/x", 10), 0, &bytes).ok());
  EXPECT_EQ(bytes, "");
  grpc::ClientContext context;
  v1::ListArtifactsRequest request;
  request.set_name(id);
  v1::ListArtifactsResponse list;
  ASSERT_TRUE(client_->jobs->ListArtifacts(&context, request, &list).ok());
  EXPECT_EQ(list.artifacts(0).path(), "adapter/adapter_model.safetensors");
}

class UploadTest : public DaemonTest {
 protected:
  grpc::Status Upload(const std::string& digest, uint64_t total, const std::string& data, size_t step = 1000) {
    grpc::ClientContext context;
    v1::UploadBlobResponse response;
    auto writer = client_->datasets->UploadBlob(&context, &response);
    v1::UploadBlobRequest request;
    request.set_digest(digest);
    request.set_total_bytes(total);
    bool open = writer->Write(request);
    request.Clear();
    for (size_t at = 0; open && at < data.size(); at += step) {
      request.set_data(data.substr(at, step));
      open = writer->Write(request);
    }
    writer->WritesDone();
    return writer->Finish();
  }
  bool Present(const std::string& digest) {
    grpc::ClientContext context;
    v1::GetBlobRequest request;
    request.set_digest(digest);
    v1::GetBlobResponse response;
    EXPECT_TRUE(client_->datasets->GetBlob(&context, request, &response).ok());
    return response.present();
  }
  size_t Files() {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_ / "state/blobs")) ++count;
    return count;
  }
};

TEST_F(UploadTest, OnlyWhatHasTheDigestIsKept) {
  std::string data;
  for (int i = 0; i < 20000; ++i) data += "{\"text\": \"row\"}\n";
  const std::string digest = Sha256Hex(data);
  EXPECT_FALSE(Present(digest));
  EXPECT_EQ(RichError(Upload(digest, data.size(), data.substr(1) + "x")).first, "DIGEST_MISMATCH");
  EXPECT_EQ(RichError(Upload(digest, data.size(), data.substr(1))).second, "total_bytes");
  EXPECT_EQ(RichError(Upload(digest, data.size() - 1, data)).second, "total_bytes");
  for (const std::string& bad :
       {std::string("../../etc/passwd"), std::string(64, 'A'), std::string(), std::string(63, 'a')}) {
    EXPECT_EQ(RichError(Upload(bad, data.size(), data)).second, "digest") << bad;
  }
  EXPECT_EQ(RichError(Upload(digest, uint64_t{1} << 62, data)).second, "total_bytes");
  EXPECT_EQ(Files(), 0u);
  ASSERT_TRUE(Upload(digest, data.size(), data).ok());
  ASSERT_TRUE(Upload(digest, data.size(), data).ok());
  EXPECT_TRUE(Present(digest));
  EXPECT_EQ(Files(), 1u);
  EXPECT_EQ(*Sha256HexOfFile(folder_ / "state/blobs/" + digest), digest);
  v1::JobSpec spec = Spec("steps=1");
  spec.mutable_data()->set_train("sha256:" + digest);
  const v1::Job job = client_->Await(client_->MustCreate(spec));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_EQ(job.resolved_spec().data().train(), folder_ / "state/blobs/" + digest);
  EXPECT_EQ(job.spec().data().train(), "sha256:" + digest);
}

TEST_F(UploadTest, AnUploadThatIsBrokenOffLeavesNothing) {
  grpc::ClientContext context;
  v1::UploadBlobResponse response;
  auto writer = client_->datasets->UploadBlob(&context, &response);
  v1::UploadBlobRequest request;
  request.set_digest(std::string(64, 'a'));
  request.set_total_bytes(1000);
  request.set_data("some");
  writer->Write(request);
  for (int i = 0; i < 100 && Files() == 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(Files(), 1u);
  context.TryCancel();
  writer->Finish();
  for (int i = 0; i < 100 && Files() > 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(Files(), 0u);
}

TEST_F(DaemonTest, AQuantisedCopyIsWrittenOnceAndRegistered) {
  const auto import = [&](const std::string& id, const std::string& path, const std::string& how, v1::Model* model) {
    grpc::ClientContext context;
    v1::ImportModelRequest request;
    request.set_id(id);
    request.set_path(path);
    request.set_quantization(how);
    return client_->models->ImportModel(&context, request, model);
  };
  v1::Model model;
  EXPECT_EQ(RichError(import("", folder_ / "model", "q5", &model)).second, "quantization");
  ASSERT_TRUE(import("model-nf4.part", folder_ / "model", "nf4", &model).ok());  // stays while its namesake is written
  const grpc::Status imported = import("", folder_ / "model", "nf4", &model);
  ASSERT_TRUE(imported.ok()) << imported.error_message();
  EXPECT_EQ(model.id(), "model-nf4");
  EXPECT_EQ(model.path(), folder_ / "state/models/model-nf4");
  const std::string written = model.path() + "/nf4";
  ASSERT_TRUE(std::filesystem::exists(written));
  const auto when = std::filesystem::last_write_time(written);
  ASSERT_TRUE(import("", folder_ / "model", "nf4", &model).ok());  // again: it is there
  EXPECT_EQ(std::filesystem::last_write_time(written), when);
  std::filesystem::create_directory(folder_ / "other");
  const grpc::Status taken = import("model-nf4", folder_ / "other", "nf4", &model);
  EXPECT_EQ(taken.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_NE(taken.error_message().find(folder_ / "model"), std::string::npos) << taken.error_message();
  std::filesystem::create_directory(folder_ / "bad");
  EXPECT_EQ(import("", folder_ / "bad", "nf4", &model).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "state/models/bad-nf4"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "state/models/.bad-nf4.part"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "state/models/model-nf4.part/nf4"));
}

TEST_F(DaemonTest, ModelsAreImportedByPathAndUsedByName) {
  const auto import = [&](const std::string& id, const std::string& path, v1::Model* model) {
    grpc::ClientContext context;
    v1::ImportModelRequest request;
    request.set_id(id);
    request.set_path(path);
    return client_->models->ImportModel(&context, request, model);
  };
  v1::Model model;
  const grpc::Status imported = import("", folder_ / "model", &model);
  ASSERT_TRUE(imported.ok()) << imported.error_code() << ": " << imported.error_message();
  EXPECT_EQ(model.id(), "model");
  EXPECT_EQ(model.family(), "llama");
  EXPECT_EQ(model.bytes(), 123u);
  ASSERT_TRUE(import("", folder_ / "model", &model).ok());  // again is the same
  std::filesystem::create_directory(folder_ / "bad");
  EXPECT_NE(import("", folder_ / "bad", &model).error_message().find("byte 8"), std::string::npos);
  EXPECT_EQ(RichError(import("", "model", &model)).second, "path");
  EXPECT_EQ(RichError(import("../x", folder_ / "model", &model)).second, "id");
  std::filesystem::create_directory(folder_ / "other");
  EXPECT_EQ(import("model", folder_ / "other", &model).error_code(), grpc::StatusCode::ALREADY_EXISTS);

  v1::JobSpec spec = Spec("steps=1");
  spec.mutable_model()->set_source("model");
  const v1::Job job = client_->Await(client_->MustCreate(spec));
  EXPECT_EQ(job.state(), v1::SUCCEEDED);
  EXPECT_EQ(job.resolved_spec().model().source(), folder_ / "model");

  grpc::ClientContext context, second;
  v1::DeleteModelRequest request;
  request.set_name("models/model");
  v1::DeleteModelResponse response;
  EXPECT_TRUE(client_->models->DeleteModel(&context, request, &response).ok());
  EXPECT_EQ(client_->models->DeleteModel(&second, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "model"));  // files stay
}

TEST_F(DaemonTest, GenerateWithAndWithoutTheAdapter) {
  const std::string id = client_->MustCreate(Spec("steps=1"));
  client_->Await(id);
  const auto generate = [&](const v1::GenerateModelRequest& request, std::vector<std::string>* texts) {
    grpc::ClientContext context;
    auto reader = client_->models->Generate(&context, request);
    v1::GenerateModelResponse response;
    texts->assign(static_cast<size_t>(request.requests_size()), "");
    while (reader->Read(&response)) texts->at(response.chunk().request()) += response.chunk().text();
    return reader->Finish();
  };
  v1::GenerateModelRequest request;
  request.set_job(id);
  request.add_requests()->set_prompt("a");
  request.add_requests()->set_prompt("b");
  std::vector<std::string> texts;
  ASSERT_TRUE(generate(request, &texts).ok());
  EXPECT_EQ(texts, (std::vector<std::string>{"adapter word word", "adapter word word"}));
  request.set_base_only(true);
  ASSERT_TRUE(generate(request, &texts).ok());
  EXPECT_EQ(texts[0], "base word word");
  request.clear_job();
  EXPECT_EQ(RichError(generate(request, &texts)).second, "model");
  request.set_model(folder_ / "model");
  ASSERT_TRUE(generate(request, &texts).ok());
  request.clear_requests();
  EXPECT_EQ(RichError(generate(request, &texts)).second, "requests");
  request.add_requests()->set_prompt("a");
  request.set_job(client_->MustCreate(Spec("fail-train")));
  client_->Await(request.job());
  request.set_base_only(false);
  EXPECT_EQ(RichError(generate(request, &texts)).first, "NO_ADAPTER");
}

TEST_F(DaemonTest, LogsOfAllAttempts) {
  const std::string id = client_->MustCreate(Spec("steps=3 crash=3 sleep=20"));
  grpc::ClientContext context;
  v1::GetJobLogsRequest request;
  request.set_name(id);
  request.set_follow(true);
  auto reader = client_->jobs->GetJobLogs(&context, request);
  std::string text;
  v1::LogChunk chunk;
  while (reader->Read(&chunk)) text += chunk.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_NE(text.find("attempt 1\n--- attempt 2 ---\n"), std::string::npos) << text;
  EXPECT_EQ(client_->Get(id).state(), v1::SUCCEEDED);  // follow ended because the job did
}

TEST_F(DaemonTest, ASecondDaemonIsRefused) {
  DaemonOptions options;
  options.state_dir = folder_ / "state";
  options.socket = folder_ / "other";
  options.metrics_address = "off";
  EXPECT_TRUE(absl::IsFailedPrecondition(Daemon::Start(options).status()));
  options.state_dir = folder_ / "state2";
  options.socket = folder_ / "s";
  EXPECT_TRUE(absl::IsFailedPrecondition(Daemon::Start(options).status()));
  options.socket = folder_ / std::string(200, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(Daemon::Start(options).status()));
  EXPECT_EQ(client_->Await(client_->MustCreate(Spec("steps=1"))).state(), v1::SUCCEEDED);
}

TEST_F(DaemonTest, ATakenMetricsPortIsNoReasonToStop) {
  client_.reset();
  daemon_.reset();
  metrics_ = "127.0.0.1:0";
  Start();
  const std::string taken = daemon_->metrics_address();
  ASSERT_NE(taken, "");
  DaemonOptions options;
  options.state_dir = folder_ / "state2";
  options.socket = folder_ / "s2";
  options.metrics_address = taken;
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  EXPECT_EQ((*daemon)->metrics_address(), "");
}

TEST_F(DaemonTest, ALeftoverWorkerIsEndedBeforeItsJobRuns) {
  const std::string id = client_->MustCreate(Spec("steps=400 sleep=20"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  client_.reset();
  daemon_.reset();
  // A process that holds the job's lock, as a worker would whose daemon was killed in the wrong moment.
  const std::string lock = folder_ / "state/jobs/" + id + "/lock";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t leftover = fork();
  if (leftover == 0) {
    const int fd = open(lock.c_str(), O_RDWR);
    const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (write(ready[1], locked ? "1" : "0", 1) == 1) pause();
    _exit(0);
  }
  char locked = 0;
  ASSERT_EQ(read(ready[0], &locked, 1), 1);
  ASSERT_EQ(locked, '1');
  Start();
  int status = 0;
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  ASSERT_EQ(waitpid(leftover, &status, 0), leftover);
  EXPECT_TRUE(WIFSIGNALED(status));
  v1::Job job;
  ASSERT_TRUE(client_->Cancel(id, &job).ok());
  EXPECT_EQ(client_->Await(id).state(), v1::CANCELLED);
}

TEST_F(DaemonTest, StatusAndDevices) {
  grpc::ClientContext context, second;
  v1::DaemonStatus status;
  ASSERT_TRUE(client_->daemon->GetStatus(&context, {}, &status).ok());
  EXPECT_EQ(status.pid(), getpid());
  EXPECT_EQ(status.state_dir(), folder_ / "state");
  EXPECT_EQ(status.build_id().size(), 16u);
  v1::ListDevicesResponse devices;
  ASSERT_TRUE(client_->daemon->ListDevices(&second, {}, &devices).ok());
  EXPECT_EQ(devices.devices(0).name(), "cpu");
  EXPECT_GT(devices.devices(0).free_bytes(), 0u);
}

TEST_F(DaemonTest, AMissingWorkerIsSaidClearly) {
  client_.reset();
  daemon_.reset();
  DaemonOptions options;
  options.state_dir = folder_ / "state";
  options.socket = folder_ / "s";
  options.metrics_address = "off";
  options.worker_program = folder_ / "nothing";
  auto daemon = Daemon::Start(options);
  ASSERT_TRUE(daemon.ok());
  Client client(options.socket);
  v1::Job job;
  const grpc::Status status = client.Create(Spec("steps=1"), &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_NE(status.error_message().find("honed-worker must lie beside honed"), std::string::npos);
}

}  // namespace
}  // namespace hone
