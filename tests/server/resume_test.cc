// The real daemon with the real worker on a small random model: killed with SIGKILL at random steps, the worker three
// times in one run and the daemon three times in another, the job ends with the adapter of an undisturbed run, bit for
// bit, and with the same losses.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <random>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

constexpr int kSteps = 42;
constexpr int kSaveSteps = 7;

// Children of a process, from /proc.
std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::isdigit(static_cast<unsigned char>(name[0]))) continue;
    std::ifstream in(entry.path() / "stat");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t after = text.rfind(") ");
    if (after != std::string::npos && std::atoi(text.c_str() + after + 4) == parent)
      children.push_back(std::stoi(name));
  }
  return children;
}

class ResumeTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(folder_ / "random");
    std::ofstream(folder_ / "random/config.json") << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-05,
      "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
      "torch_dtype": "float32"})";
    std::ofstream rows(folder_ / "rows.jsonl");
    for (int i = 0; i < 64; ++i) {
      rows << nlohmann::json{{"prompt", StrCat("What is number ", i, "? ")},
                             {"completion", std::string(static_cast<size_t>(20 + i), static_cast<char>('a' + i % 26))},
                             {"label", i % 3 != 0}}
                  .dump()
           << "\n";
    }
    rows.close();
    honed_.Start();
    client_ = std::make_unique<Client>(folder_ / "s");
  }

  std::string Submit(const std::string& name = "resume") {
    v1::JobSpec spec;
    spec.set_name(name);
    spec.mutable_model()->set_source("random:" + (folder_ / "random/config.json"));
    spec.mutable_objective()->mutable_kto();
    spec.mutable_data()->set_train(folder_ / "rows.jsonl");
    spec.mutable_data()->set_max_length(160);
    spec.mutable_batch()->set_examples(8);
    spec.mutable_optimizer()->set_learning_rate(1e-3);
    spec.mutable_run()->set_max_steps(kSteps);
    spec.mutable_run()->set_save_steps(kSaveSteps);
    spec.mutable_run()->set_device(v1::DEVICE_CPU);
    return client_->MustCreate(spec);
  }

  // Follows the job and calls `act` when it reaches each of `steps`.
  v1::Job Disturb(std::vector<int> steps, const std::function<void()>& act) {
    const std::string id = Submit();
    uint64_t sequence = 0;
    while (true) {
      grpc::Status status;
      client_->Watch(id, sequence, &status, [&](const v1::JobEvent& event) {
        if (event.sequence() > 0) {
          EXPECT_EQ(event.sequence(), sequence + 1);
          sequence = event.sequence();
        }
        if (event.has_step() && !steps.empty() && event.step().step() >= static_cast<uint64_t>(steps.front())) {
          steps.erase(steps.begin());
          act();
        }
        return true;
      });
      if (status.ok()) break;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    }
    EXPECT_TRUE(steps.empty());
    return client_->Get(id);
  }

  // One random step in each of three different checkpoint intervals.
  std::vector<int> RandomSteps() {
    std::vector<int> steps;
    for (const int interval : {0, 2, 4})
      steps.push_back(interval * kSaveSteps + 1 + static_cast<int>(random_() % kSaveSteps));
    return steps;
  }

  std::string AdapterDigest(const std::string& id) {
    const auto digest = Sha256HexOfFile(folder_ / "state/jobs/" + id + "/output/adapter/adapter_model.safetensors");
    EXPECT_TRUE(digest.ok()) << digest.status();
    return digest.value_or("");
  }

  // Loss of every step, from the daemon's records: keyed by (attempt, step), the last attempt wins.
  std::map<uint64_t, double> Losses(const v1::Job& job) {
    std::map<uint64_t, double> losses;
    for (const v1::Attempt& attempt : job.attempts()) {
      std::ifstream in(folder_ / StrCat("state/jobs/", job.id(), "/attempts/", attempt.number(), "/steps.jsonl"));
      for (std::string line; std::getline(in, line);) {
        const auto record = nlohmann::json::parse(line, nullptr, false);
        if (record.is_object()) losses[record["step"].get<uint64_t>()] = record["loss"].get<double>();
      }
    }
    return losses;
  }

  Folder folder_;
  HonedProcess honed_{folder_, HONED_WORKER};
  std::unique_ptr<Client> client_;
  std::mt19937 random_{std::random_device{}()};
};

TEST_F(ResumeTest, KillingWorkerOrDaemonChangesNoBit) {
  const v1::Job calm = client_->Await(Submit());
  ASSERT_EQ(calm.state(), v1::SUCCEEDED) << calm.state_message();
  const auto losses = Losses(calm);
  ASSERT_EQ(losses.size(), static_cast<size_t>(kSteps));

  const std::vector<int> worker_steps = RandomSteps();
  const v1::Job worker_killed = Disturb(worker_steps, [&] {
    for (const pid_t worker : ChildrenOf(honed_.pid())) kill(worker, SIGKILL);
  });
  EXPECT_EQ(worker_killed.state(), v1::SUCCEEDED) << worker_killed.state_message();
  EXPECT_EQ(worker_killed.attempts_size(), 4);
  EXPECT_EQ(worker_killed.attempts(0).exit(), "crashed");
  EXPECT_EQ(AdapterDigest(worker_killed.id()), AdapterDigest(calm.id()));
  EXPECT_EQ(Losses(worker_killed), losses);

  const std::vector<int> daemon_steps = RandomSteps();
  const v1::Job daemon_killed = Disturb(daemon_steps, [&] {
    honed_.Kill(SIGKILL);
    honed_.Start();
  });
  EXPECT_EQ(daemon_killed.state(), v1::SUCCEEDED) << daemon_killed.state_message();
  EXPECT_EQ(daemon_killed.attempts_size(), 4);
  EXPECT_EQ(daemon_killed.attempts(0).exit(), "daemon-restart");
  EXPECT_EQ(AdapterDigest(daemon_killed.id()), AdapterDigest(calm.id()));
  EXPECT_EQ(Losses(daemon_killed), losses);
  std::printf("worker killed after steps %d %d %d, daemon after %d %d %d; adapter %s three times\n", worker_steps[0],
              worker_steps[1], worker_steps[2], daemon_steps[0], daemon_steps[1], daemon_steps[2],
              AdapterDigest(calm.id()).c_str());
}

// Paused twice while it runs, once while it waits, and resumed: no bit changes. How long a pause takes is printed.
TEST_F(ResumeTest, PausingChangesNoBit) {
  const v1::Job calm = client_->Await(Submit());
  ASSERT_EQ(calm.state(), v1::SUCCEEDED) << calm.state_message();
  const std::string id = Submit();
  double slowest = 0;
  for (const uint64_t step : {uint64_t{5}, uint64_t{20}}) {
    client_->Watch(id, 0, nullptr, [&](const v1::JobEvent& event) { return event.step().step() < step; });
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_TRUE(client_->Pause(id).ok());
    ASSERT_EQ(client_->Await(id).state(), v1::PAUSED);
    EXPECT_TRUE(ChildrenOf(honed_.pid()).empty());  // the device is free
    slowest = std::max(slowest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    const std::string other = Submit();
    ASSERT_TRUE(client_->AwaitState(other, v1::RUNNING));
    ASSERT_TRUE(client_->Resume(id).ok());
    ASSERT_TRUE(client_->Pause(id).ok());  // it waits behind the other
    EXPECT_EQ(client_->Get(id).state(), v1::PAUSED);
    v1::Job cancelled;
    ASSERT_TRUE(client_->Cancel(other, &cancelled).ok());
    ASSERT_TRUE(client_->Resume(id).ok());
  }
  const v1::Job done = client_->Await(id);
  ASSERT_EQ(done.state(), v1::SUCCEEDED) << done.state_message();
  ASSERT_EQ(done.attempts_size(), 3);
  EXPECT_EQ(done.attempts(0).exit(), "paused");
  EXPECT_EQ(done.attempts(1).exit(), "paused");
  // No step was done twice: each attempt goes on where the one before wrote its checkpoint.
  EXPECT_EQ(done.attempts(1).first_step(), done.attempts(0).last_step() + 1);
  EXPECT_EQ(done.attempts(2).first_step(), done.attempts(1).last_step() + 1);
  EXPECT_EQ(AdapterDigest(id), AdapterDigest(calm.id()));
  EXPECT_EQ(Losses(done), Losses(calm));
  std::printf("paused after steps %llu and %llu, the slowest pause took %.2f s; adapter %s twice\n",
              static_cast<unsigned long long>(done.attempts(0).last_step()),
              static_cast<unsigned long long>(done.attempts(1).last_step()), slowest, AdapterDigest(id).c_str());
}

// On the CPU no error stays, so the worker says that instead; what a card does is seen on a card
// (tests/deploy/card_daemon.py). A production daemon cannot give the flag: it starts its worker with `serve --fd 3`.
TEST_F(ResumeTest, AFaultIsInjectedIntoTheJobOfThatNameAlone) {
  honed_.Kill(SIGTERM);
  const std::string script = folder_ / "worker.sh";
  std::ofstream(script) << "#!/bin/sh\nexec " << HONED_WORKER << " \"$@\" --inject-fault bad:3\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);
  HonedProcess injecting(folder_, script);
  injecting.Start();
  const v1::Job bad = client_->Await(Submit("bad"));
  EXPECT_EQ(bad.state(), v1::FAILED);
  EXPECT_EQ(bad.attempts_size(), 1);
  EXPECT_EQ(bad.last_step().step(), 2u);
  EXPECT_NE(bad.state_message().find("--inject-fault: this backend has no error that stays"), std::string::npos)
      << bad.state_message();
  const auto log = ReadFile(folder_ / StrCat("state/jobs/", bad.id(), "/attempts/1/worker.log"), 1 << 16);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_NE(log->find("--inject-fault"), std::string::npos) << *log;  // why it failed is in its log, too
  EXPECT_EQ(client_->Await(Submit()).state(), v1::SUCCEEDED);
}

}  // namespace
}  // namespace hone
