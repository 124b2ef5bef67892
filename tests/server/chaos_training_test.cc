// Chaos with real training: the real honed and the real worker on a tiny model, while clients submit (each request sent
// again when it breaks, some sent twice), pause, resume, hold, release and cancel, and daemon and workers are killed
// with SIGKILL at random moments. Afterwards: no acknowledged job is lost, none was made twice, all come to their end,
// every event sequence is gapless and legal, and the adapters of a sample are those of undisturbed runs, bit for bit.
//   chaos_training_test [--kills N] [--submissions N] [--seed S] [--clients N] [--samples N] [--honed P] [--worker P]
// Without arguments it is short enough for every run of the tests. The last line has the counts.
#include <signal.h>

#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <random>
#include <set>

#include "nlohmann/json.hpp"
#include "proto/base/sha256.h"
#include "server/store/states.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Settings {
  int kills = 30;
  int submissions = 60;
  int clients = 4;
  int samples = 20;
  unsigned seed = std::random_device{}();
  std::string honed = HONED;
  std::string worker = HONED_WORKER;
};
Settings settings;

constexpr int kKinds = 4;                     // different runs, so that a mix-up of jobs would show
constexpr std::chrono::minutes kPatience(5);  // without any change: stuck

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  std::ifstream in(StrCat("/proc/", parent, "/task/", parent, "/children"));
  for (const auto& task : std::filesystem::directory_iterator(StrCat("/proc/", parent, "/task"))) {
    std::ifstream list(task.path() / "children");
    for (pid_t pid; list >> pid;) children.push_back(pid);
  }
  return children;
}

class Chaos : public testing::Test {
 protected:
  struct Entry {
    std::string id;
    std::string request_id;
    int kind = 0;
    bool cancel_asked = false;  // the daemon may have died before it answered, and done it all the same
    bool cancel_acknowledged = false;
  };

  void SetUp() override {
    std::filesystem::create_directory(folder_ / "random");
    std::ofstream(folder_ / "random/config.json") << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
      "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 256, "max_position_embeddings": 128,
      "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
      "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"})";
    std::ofstream rows(folder_ / "rows.jsonl");
    for (int i = 0; i < 16; ++i) {
      rows << nlohmann::json{{"prompt", StrCat("What is ", i, "? ")},
                             {"completion", std::string(static_cast<size_t>(8 + i), static_cast<char>('a' + i))},
                             {"label", i % 3 != 0}}
                  .dump()
           << "\n";
    }
    rows.close();
    std::printf("seed %u, %d submissions, %d kills\n", settings.seed, settings.submissions, settings.kills);
    std::fflush(stdout);
  }

  v1::CreateJobRequest Request(int kind, const std::string& request_id) {
    v1::CreateJobRequest request;
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_name(StrCat("kind ", kind));
    spec.mutable_model()->set_source("random:" + (folder_ / "random/config.json"));
    kind % 2 == 0 ? (void)spec.mutable_objective()->mutable_kto() : (void)spec.mutable_objective()->mutable_sft();
    spec.mutable_data()->set_train(folder_ / "rows.jsonl");
    spec.mutable_data()->set_max_length(64);
    spec.mutable_batch()->set_examples(4);
    spec.mutable_optimizer()->set_learning_rate(1e-3);
    spec.mutable_run()->set_max_steps(static_cast<uint32_t>(4 + 2 * kind));
    spec.mutable_run()->set_save_steps(2);
    spec.mutable_run()->set_seed(uint64_t{100} + static_cast<uint64_t>(kind));
    spec.mutable_run()->set_device(v1::DEVICE_CPU);
    request.mutable_options()->mutable_retry()->set_max_failures(1000);  // our own kills are no reason to fail
    request.set_request_id(request_id);
    return request;
  }

  // Until it is answered. The same request, so that it makes one job however often it is sent.
  v1::Job MustCreate(Client& client, const v1::CreateJobRequest& request) {
    v1::Job job;
    grpc::Status status;
    do {
      status = client.Create(request, &job);
      if (status.error_code() == grpc::StatusCode::UNAVAILABLE) ++retried_;
    } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }

  std::string Digest(const std::string& id) {
    return Sha256HexOfFile(folder_ / "state/jobs/" + id + "/output/adapter/adapter_model.safetensors").value_or("none");
  }

  void RunUndisturbed() {
    Client client(folder_ / "s");
    for (int kind = 0; kind < kKinds; ++kind) {
      const v1::Job job = client.Await(MustCreate(client, Request(kind, "")).id());
      ASSERT_EQ(job.state(), v1::SUCCEEDED) << job.state_message();
      calm_[kind] = Digest(job.id());
      ASSERT_NE(calm_[kind], "none");
    }
    EXPECT_EQ(std::set<std::string>({calm_[0], calm_[1], calm_[2], calm_[3]}).size(), 4u);
  }

  void ClientLoop(unsigned seed) {
    std::mt19937 random(seed);
    Client client(folder_ / "s");
    while (true) {
      const int n = next_++;
      if (n >= settings.submissions) return;
      Entry entry;
      entry.request_id = StrCat("00000000-0000-4000-8000-", 100000000000 + n);
      entry.kind = n % kKinds;
      const v1::CreateJobRequest request = Request(entry.kind, entry.request_id);
      entry.id = MustCreate(client, request).id();
      if (random() % 4 == 0) {
        ++retried_;
        EXPECT_EQ(MustCreate(client, request).id(), entry.id);
      }
      {
        std::lock_guard lock(mutex_);
        entries_.push_back(entry);
      }
      Meddle(client, random);
      // Not far ahead of the queue: jobs are to run while there are kills.
      while (n - Ended() > 40) {
        std::this_thread::sleep_for(milliseconds(20));
        if (random() % 8 == 0) Meddle(client, random);
      }
    }
  }
  int Ended() {
    std::lock_guard lock(mutex_);
    return ended_;
  }

  // Something that a user might do to some job, most likely a recent one.
  void Meddle(Client& client, std::mt19937& random) {
    size_t at = 0;
    std::string id;
    {
      std::lock_guard lock(mutex_);
      if (entries_.empty()) return;
      const size_t recent = std::min<size_t>(entries_.size(), 60);
      at = entries_.size() - 1 - random() % recent;
      id = entries_[at].id;
    }
    grpc::Status status;
    v1::Job job;
    switch (random() % 8) {
      case 0:
      case 1:
        status = client.Pause(id);
        paused_ += status.ok();
        break;
      case 2:
      case 3:
      case 4:
        status = client.Resume(id);
        resumed_ += status.ok();
        break;
      case 5:
        status = client.Hold(id);
        break;
      case 6:
        status = client.Release(id);
        break;
      case 7: {
        if (random() % 3 != 0) return;
        {
          std::lock_guard lock(mutex_);
          entries_[at].cancel_asked = true;
        }
        status = client.Cancel(id, &job);
        if (!status.ok()) break;
        std::lock_guard lock(mutex_);
        cancelled_ += !entries_[at].cancel_acknowledged;
        entries_[at].cancel_acknowledged = true;
        break;
      }
    }
    const auto code = status.error_code();
    EXPECT_TRUE(status.ok() || code == grpc::StatusCode::FAILED_PRECONDITION || code == grpc::StatusCode::UNAVAILABLE)
        << status.error_message();
  }

  void KillLoop(unsigned seed) {
    std::mt19937 random(seed);
    while (killed_daemons_ + killed_workers_ < settings.kills) {
      std::this_thread::sleep_for(milliseconds(20 + random() % 300));
      // Spread over the submissions.
      const int64_t due = int64_t{settings.kills} * (next_ + 8) / settings.submissions;
      if (next_ < settings.submissions && killed_daemons_ + killed_workers_ >= due) continue;
      if (random() % 10 < 6) {
        honed_.Kill(SIGKILL);
        honed_.Start();
        ++killed_daemons_;
        continue;
      }
      const std::vector<pid_t> workers = ChildrenOf(honed_.pid());
      if (workers.empty()) continue;
      kill(workers[random() % workers.size()], SIGKILL);
      ++killed_workers_;
    }
  }

  // Counts ended jobs now and then, for the clients' pace.
  void CountLoop() {
    Client client(folder_ / "s");
    while (!done_) {
      std::this_thread::sleep_for(milliseconds(200));
      grpc::ClientContext context;
      Client::Deadline(&context);
      v1::DaemonStatus status;
      if (!client.daemon->GetStatus(&context, {}, &status).ok()) continue;
      int ended = 0;
      uint64_t resting = 0;
      for (const auto& [state, count] : status.jobs()) {
        if (state == "SUCCEEDED" || state == "FAILED" || state == "CANCELLED") ended += static_cast<int>(count);
        if (state == "PAUSED" || state == "HELD") resting += count;
      }
      {
        std::lock_guard lock(mutex_);
        ended_ = ended - kKinds + static_cast<int>(resting);
      }
      if (steady_clock::now() - said_ < std::chrono::seconds(30)) continue;
      said_ = steady_clock::now();
      std::printf("  %d submitted, %d ended, %d kills\n", next_.load(), ended, killed_daemons_ + killed_workers_);
      std::fflush(stdout);
    }
  }

  // Resumes and releases what rests, and waits until all have ended; how many have not when nothing moves any more.
  int Settle() {
    Client client(folder_ / "s");
    auto moved = steady_clock::now();
    uint64_t last = 0;
    while (true) {
      uint64_t sum = 0;
      int open = 0;
      for (const Entry& entry : entries_) {
        const v1::Job job = client.Get(entry.id);
        sum += job.last_sequence();
        if (IsTerminal(job.state())) continue;
        ++open;
        if (job.state() == v1::PAUSED) client.Resume(entry.id);
        if (job.state() == v1::HELD) client.Release(entry.id);
      }
      if (open == 0) return 0;
      if (sum != last) moved = steady_clock::now();
      last = sum;
      if (steady_clock::now() - moved > kPatience) return open;
      std::this_thread::sleep_for(milliseconds(500));
    }
  }

  bool CheckHistory(const std::vector<v1::JobEvent>& events, uint64_t last) {
    uint64_t next = 1;
    v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
    for (const v1::JobEvent& event : events) {
      if (event.sequence() == 0) continue;
      if (event.sequence() != next++) return false;
      if (!event.has_state()) continue;
      if (event.state().from() != state || !IsLegalTransition(state, event.state().to())) return false;
      state = event.state().to();
    }
    return next == last + 1;
  }

  Folder folder_;
  HonedProcess honed_{folder_, settings.worker};
  std::map<int, std::string> calm_;
  std::mutex mutex_;
  std::vector<Entry> entries_;
  int ended_ = 0;
  std::atomic<int> next_{0}, retried_{0}, paused_{0}, resumed_{0}, cancelled_{0};
  std::atomic<int> killed_daemons_{0}, killed_workers_{0};
  std::atomic<bool> done_{false};
  steady_clock::time_point said_ = steady_clock::now();
};

TEST_F(Chaos, NothingIsLostDoubledOrStuck) {
  const auto begin = steady_clock::now();
  honed_.program = settings.honed;
  honed_.Start();
  RunUndisturbed();
  if (HasFatalFailure()) return;
  std::thread counter([this] { CountLoop(); });
  std::vector<std::thread> clients;
  for (int c = 0; c < settings.clients; ++c) {
    clients.emplace_back([this, c] { ClientLoop(settings.seed + static_cast<unsigned>(c) + 1); });
  }
  KillLoop(settings.seed);
  for (std::thread& client : clients) client.join();
  const int stuck = Settle();
  done_ = true;
  counter.join();

  Client client(folder_ / "s");
  int lost = 0, duplicated = 0, gaps = 0, wrong = 0, succeeded = 0, was_cancelled = 0, restarts = 0, crashes = 0;
  std::vector<Entry> samples;
  std::set<std::string> ids;
  for (const Entry& entry : entries_) {
    duplicated += !ids.insert(entry.id).second;
    const v1::Job job = client.Get(entry.id);
    if (job.id() != entry.id) {
      ++lost;
      continue;
    }
    succeeded += job.state() == v1::SUCCEEDED;
    was_cancelled += job.state() == v1::CANCELLED;
    // A cancel that was acknowledged ends a job, unless it had already finished its work; nothing else does.
    const bool expected = job.state() == v1::SUCCEEDED || (job.state() == v1::CANCELLED && entry.cancel_asked);
    wrong += !expected;
    if (!expected)
      std::printf("job %s: %s %s\n", entry.id.c_str(), job.state_reason().c_str(), job.state_message().c_str());
    gaps += !CheckHistory(client.Watch(entry.id), job.last_sequence());
    for (const v1::Attempt& attempt : job.attempts()) {
      restarts += attempt.exit() == "daemon-restart";
      crashes += attempt.exit() == "crashed";
    }
    v1::Job again;
    EXPECT_TRUE(client.Create(Request(entry.kind, entry.request_id), &again).ok());
    duplicated += again.id() != entry.id;
    if (job.state() == v1::SUCCEEDED && job.attempts_size() > 1) samples.push_back(entry);
  }
  grpc::ClientContext context;
  v1::DaemonStatus status;
  ASSERT_TRUE(client.daemon->GetStatus(&context, {}, &status).ok());
  uint64_t stored = 0;
  for (const auto& [state, count] : status.jobs()) stored += count;
  duplicated += static_cast<int>(stored) - settings.submissions - kKinds;

  std::mt19937 random(settings.seed);
  std::shuffle(samples.begin(), samples.end(), random);
  samples.resize(std::min<size_t>(samples.size(), static_cast<size_t>(settings.samples)));
  int equal = 0;
  for (const Entry& entry : samples) equal += Digest(entry.id) == calm_[entry.kind];

  std::printf(
      "seed=%u submissions=%d kills=%d (daemon %d, worker %d) retried=%d paused=%d resumed=%d cancelled=%d "
      "succeeded=%d "
      "attempts ended by kills: daemon-restart %d, crashed %d; lost=%d duplicated=%d stuck=%d gaps=%d wrong=%d "
      "adapters equal %d of %zu disturbed jobs sampled, %.0f s\n",
      settings.seed, settings.submissions, killed_daemons_ + killed_workers_, killed_daemons_.load(),
      killed_workers_.load(), retried_.load(), paused_.load(), resumed_.load(), was_cancelled, succeeded, restarts,
      crashes, lost, duplicated, stuck, gaps, wrong, equal, samples.size(),
      std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(static_cast<int>(entries_.size()), settings.submissions);
  EXPECT_EQ(lost, 0);
  EXPECT_EQ(duplicated, 0);
  EXPECT_EQ(stuck, 0);
  EXPECT_EQ(gaps, 0);
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(samples.size(), 0u);
  EXPECT_EQ(static_cast<size_t>(equal), samples.size());
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const auto value = std::strtoul(argv[i + 1], nullptr, 10);
    if (flag == "--honed") hone::settings.honed = argv[i + 1];
    if (flag == "--worker") hone::settings.worker = argv[i + 1];
    if (flag == "--kills") hone::settings.kills = static_cast<int>(value);
    if (flag == "--submissions") hone::settings.submissions = static_cast<int>(value);
    if (flag == "--clients") hone::settings.clients = static_cast<int>(value);
    if (flag == "--samples") hone::settings.samples = static_cast<int>(value);
    if (flag == "--seed") hone::settings.seed = static_cast<unsigned>(value);
  }
  return RUN_ALL_TESTS();
}
