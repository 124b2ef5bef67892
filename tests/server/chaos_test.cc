// The real honed, killed with SIGKILL at random moments while clients submit and retry: nothing acknowledged is lost,
// nothing runs twice, every event sequence has no gap. Also: SIGTERM, Shutdown, flags.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <random>

#include "proto/base/file.h"
#include "server/job_lock.h"
#include "server/store/store.h"
#include "tests/server/daemon_harness.h"
#include "tests/server/honed_process.h"

namespace hone {
namespace {

using std::chrono::milliseconds;

TEST(Chaos, NothingIsLostOrDoubledUnderKill9) {
  constexpr int kJobs = 24;
  constexpr int kKills = 12;
  constexpr int kClients = 4;
  Folder folder;
  HonedProcess honed(folder, FAKE_WORKER);
  honed.Start();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(StrCat("seed ", seed));
  std::mt19937 random(seed);

  std::mutex mutex;
  std::map<std::string, std::string> acknowledged;  // request id -> job
  std::atomic<int> next{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&] {
      Client client(folder / "s");
      while (true) {
        const int n = next++;
        if (n >= kJobs) return;
        const std::string request_id = StrCat("00000000-0000-4000-8000-", 100000000000 + n);
        const v1::JobSpec spec = FakeSpec(folder, "steps=6 sleep=30");
        v1::Job job;
        grpc::Status status;
        do {
          status = client.Create(spec, &job, request_id);
        } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
        EXPECT_TRUE(status.ok()) << status.error_message();
        std::lock_guard lock(mutex);
        acknowledged[request_id] = job.id();
      }
    });
  }
  // Once there is a queue: between kills jobs run, checkpoint, end, and more are submitted.
  while (next < kJobs / 3) std::this_thread::sleep_for(milliseconds(10));
  for (int i = 0; i < kKills; ++i) {
    std::this_thread::sleep_for(milliseconds(150 + random() % 500));
    honed.Kill(SIGKILL);
    honed.Start();
  }
  for (std::thread& client : clients) client.join();
  ASSERT_EQ(acknowledged.size(), static_cast<size_t>(kJobs));

  Client client(folder / "s");
  int restarts = 0;
  for (const auto& [request_id, id] : acknowledged) {
    const v1::Job job = client.Await(id);
    EXPECT_EQ(job.state(), v1::SUCCEEDED) << id << " " << job.state_message();
    ExpectGapless(client.Watch(id));
    for (const v1::Attempt& attempt : job.attempts()) {
      EXPECT_TRUE(attempt.exit() == "succeeded" || attempt.exit() == "daemon-restart") << id << " " << attempt.exit();
      restarts += attempt.exit() == "daemon-restart";
    }
    const auto weights = ReadFile(folder / "state/jobs/" + id + "/output/adapter/adapter_model.safetensors");
    ASSERT_TRUE(weights.ok());
    EXPECT_EQ(*weights, "weights after 6 steps\n");
    v1::Job again;
    EXPECT_TRUE(client.Create(FakeSpec(folder, "steps=6 sleep=30"), &again, request_id).ok());
    EXPECT_EQ(again.id(), id);
  }
  EXPECT_TRUE(WIFEXITED(honed.Kill(SIGTERM)));
  auto store = Store::Open(folder / "state/hone.db");
  ASSERT_TRUE(store.ok()) << store.status();
  const auto counts = (*store)->CountJobs();
  EXPECT_EQ(counts->size(), 1u);
  EXPECT_EQ(counts->at(v1::SUCCEEDED), static_cast<uint64_t>(kJobs));
  std::printf("%d jobs, %d kills of the daemon, %d attempts ended by them, lost=0 doubled=0\n", kJobs, kKills,
              restarts);
}

TEST(Honed, SigtermDrainsAndExitsWithZero) {
  Folder folder;
  HonedProcess honed(folder, FAKE_WORKER);
  honed.Start();
  Client client(folder / "s");
  const std::string running = client.MustCreate(FakeSpec(folder, "steps=60 sleep=20"));
  const std::string waiting = client.MustCreate(FakeSpec(folder, "steps=1"));
  ASSERT_TRUE(client.AwaitState(running, v1::RUNNING));
  const int status = honed.Kill(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_FALSE(std::filesystem::exists(folder / "s"));
  {
    auto store = Store::Open(folder / "state/hone.db");
    EXPECT_EQ((*store)->GetJob(running)->state(), v1::QUEUED);
    EXPECT_EQ((*store)->GetJob(running)->attempts(0).exit(), "daemon-restart");
    EXPECT_EQ((*store)->GetJob(waiting)->state(), v1::QUEUED);
  }
  honed.Start();
  EXPECT_EQ(client.Await(running).state(), v1::SUCCEEDED);
  EXPECT_EQ(client.Await(waiting).state(), v1::SUCCEEDED);
  grpc::ClientContext context;
  v1::ShutdownResponse response;
  EXPECT_TRUE(client.daemon->Shutdown(&context, {}, &response).ok());
  EXPECT_EQ(honed.Wait(), 0);
}

TEST(Honed, WorkersDieWithTheDaemon) {
  Folder folder;
  HonedProcess honed(folder, FAKE_WORKER);
  honed.Start();
  Client client(folder / "s");
  const std::string id = client.MustCreate(FakeSpec(folder, "hang-hard=1"));
  ASSERT_TRUE(client.AwaitState(id, v1::RUNNING));
  honed.Kill(SIGKILL);
  // Its lock is free at once or nearly so: nobody is left who could write.
  const std::string lock = folder / "state/jobs/" + id + "/lock";
  bool free = false;
  for (int i = 0; i < 100 && !free; ++i) {
    free = FileLock::TryAcquire(lock).ok();
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(free);
}

TEST(Honed, Flags) {
  EXPECT_EQ(system(HONED " --version > /dev/null"), 0);
  EXPECT_EQ(WEXITSTATUS(system(HONED " --no-such-flag 2> /dev/null")), 2);
  EXPECT_EQ(WEXITSTATUS(system(HONED " --log-level loud 2> /dev/null")), 2);
  EXPECT_EQ(WEXITSTATUS(system(HONED " --listen 0.0.0.0:0 --state-dir /tmp/hone-flags --socket /tmp/hone-flags/s "
                                     "--metrics off 2> /dev/null")),
            1);  // TCP without TLS
  std::filesystem::remove_all("/tmp/hone-flags");
}

TEST(Honed, TakesItsOptionsFromAFile) {
  Folder folder;
  std::ofstream(folder / "typo.conf") << "hang-factr=3\n";
  EXPECT_EQ(WEXITSTATUS(system((HONED " --config " + (folder / "typo.conf") + " 2> /dev/null").c_str())), 2);
  std::ofstream(folder / "good.conf") << "hang-factor=3\nmax-jobs=1\nkeep-logs-days=0.5\n";
  HonedProcess honed(folder, FAKE_WORKER, "", {"--config", folder / "good.conf"});
  honed.Start();
  Client client(folder / "s");
  client.MustCreate(FakeSpec(folder, "steps=1000 sleep=20"));
  v1::Job job;
  EXPECT_EQ(RichError(client.Create(FakeSpec(folder, "steps=1"), &job)).first, "QUOTA_EXCEEDED");
}

}  // namespace
}  // namespace hone
