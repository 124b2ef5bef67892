// The queue as its users meet it, with a fake worker: pause and resume, hold and release, dependencies, order, labels,
// quotas, preemption, time limits, retries, the watchdog.
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <mutex>
#include <set>

#include "proto/base/file.h"
#include "server/daemon.h"
#include "server/store/states.h"
#include "tests/server/daemon_harness.h"

namespace hone {
namespace {

using std::chrono::milliseconds;

class QueueTest : public testing::Test {
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
    options.runner = runner_;
    options.scheduler.retry_delay = milliseconds(10);
    options.scheduler.hold_poll = milliseconds(50);
    options.scheduler.free_memory = [] { return uint64_t{1} << 40; };
    options.scheduler.card = [this] {
      std::lock_guard lock(mutex_);
      return card_;
    };
    options.scheduler.foreign = [this] { return foreign_; };
    options.scheduler.free_disk = [this] { return free_disk_.load(); };
    options.scheduler.probe_gpu = [this] {
      return gpu_healthy_ ? absl::OkStatus() : absl::UnavailableError("the GPU is lost");
    };
    options.max_jobs = max_jobs_;
    options.retention = retention_;
    auto daemon = Daemon::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    client_ = std::make_unique<Client>(options.socket);
  }
  void Restart() {
    daemon_.reset();
    Start();
  }
  v1::JobSpec Spec(const std::string& script) { return FakeSpec(folder_, script); }
  std::vector<v1::JobState> StatesOf(const std::string& id) {
    std::vector<v1::JobState> states;
    const auto events = client_->Watch(id);
    ExpectGapless(events);
    for (const auto& event : events) {
      if (event.has_state()) states.push_back(event.state().to());
    }
    return states;
  }
  // A job that runs until it is cancelled, so that others wait behind it.
  std::string Blocker(const v1::JobOptions& options = {}, int priority = 0) {
    std::string id = client_->MustCreate(Spec("steps=100000 sleep=10"), options, priority);
    EXPECT_TRUE(client_->AwaitState(id, v1::RUNNING));
    return id;
  }
  void End(const std::string& id) {
    v1::Job job;
    EXPECT_TRUE(client_->Cancel(id, &job).ok());
    EXPECT_EQ(client_->Await(id).state(), v1::CANCELLED);
  }
  // The value of the series without labels that Prometheus would be given; "" where there is none.
  std::string Metric(const std::string& name) {
    const std::string address = daemon_->metrics_address();
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    std::string text;
    char chunk[4096];
    for (ssize_t got; (got = read(fd, chunk, sizeof(chunk))) > 0;) text.append(chunk, static_cast<size_t>(got));
    close(fd);
    const std::string line = "\n" + name + " ";
    const size_t at = text.find(line);
    if (at == std::string::npos) return "";
    return text.substr(at + line.size(), text.find_first_of("\r\n", at + 1) - at - line.size());
  }
  static RunnerOptions Quick() {
    RunnerOptions options;
    options.cancel_grace = milliseconds(300);
    options.term_grace = milliseconds(200);
    return options;
  }

  Folder folder_;
  RunnerOptions runner_ = Quick();
  RetentionOptions retention_;
  std::mutex mutex_;  // guards card_ where a test changes it while the daemon runs
  std::optional<CardReading> card_;
  std::vector<ForeignProcess> foreign_;
  std::string metrics_ = "off";  // stopping its listener takes two seconds
  uint64_t max_jobs_ = 1000;
  std::atomic<uint64_t> free_disk_{uint64_t{1} << 40};
  std::atomic<bool> gpu_healthy_{true};
  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<Client> client_;
};

TEST_F(QueueTest, JobsThatFitACardTogetherRunTogetherAndTheNextWaits) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  card_ = CardReading{.name = "NVIDIA Fake", .total_bytes = 10 * kGiB, .free_bytes = 9 * kGiB, .used_bytes = kGiB};
  Restart();
  const std::string four = StrCat("steps=100000 sleep=10 card=", 4 * kGiB);
  const std::string first = client_->MustCreate(Spec(four)), second = client_->MustCreate(Spec(four));
  ASSERT_TRUE(client_->AwaitState(first, v1::RUNNING));
  ASSERT_TRUE(client_->AwaitState(second, v1::RUNNING));
  // The driver still shows 9 GiB free, but 8 of 10 are promised.
  const std::string third = client_->MustCreate(Spec(StrCat("steps=1 card=", 4 * kGiB)));
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(client_->Get(third).state(), v1::QUEUED);
  std::string warning;
  client_->Watch(third, 0, nullptr, [&](const v1::JobEvent& event) {
    if (event.has_warning()) warning = event.warning();
    return warning.empty();
  });
  const std::string expected =
      "waits for memory of NVIDIA Fake: the plan takes 4096 MiB, 2048 MiB are free; 8192 MiB are promised to running "
      "jobs (2)";
  EXPECT_EQ(warning, expected);
  EXPECT_EQ(client_->Get(third).state_reason(), "WAITS_FOR_MEMORY");
  EXPECT_EQ(client_->Get(third).state_message(), expected);
  End(first);
  EXPECT_EQ(client_->Await(third).state(), v1::SUCCEEDED);
  End(second);
}

TEST_F(QueueTest, AJobWaitsWhileSomebodyElseHoldsItsMemoryAndSaysWho) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  const CardReading empty = {
      .name = "NVIDIA Fake", .total_bytes = 10 * kGiB, .free_bytes = 9 * kGiB, .used_bytes = kGiB / 8};
  const CardReading taken = {
      .name = "NVIDIA Fake", .total_bytes = 10 * kGiB, .free_bytes = 2 * kGiB, .used_bytes = 8 * kGiB};
  card_ = empty;
  foreign_ = {{77, "python3", 7 * kGiB}, {78, "unknown", kGiB}};
  Restart();
  const std::string id = client_->MustCreate(Spec(StrCat("steps=20 sleep=10 save=1000 card=", 4 * kGiB)));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  ASSERT_TRUE(client_->Pause(id).ok());
  ASSERT_EQ(client_->Await(id).state(), v1::PAUSED);
  const auto read = [this](const CardReading& card) {
    std::lock_guard lock(mutex_);
    card_ = card;
  };
  read(taken);
  ASSERT_TRUE(client_->Resume(id).ok());
  std::this_thread::sleep_for(milliseconds(300));
  const v1::Job waiting = client_->Get(id);
  EXPECT_EQ(waiting.state(), v1::QUEUED);
  EXPECT_EQ(waiting.state_reason(), "WAITS_FOR_MEMORY");
  EXPECT_EQ(
      waiting.state_message(),
      "waits for memory of NVIDIA Fake: the plan takes 4096 MiB, 2048 MiB are free; other programs hold 8192 MiB: "
      "python3 (process 77) 7168 MiB");
  EXPECT_EQ(waiting.attempts_size(), 1);
  read(empty);
  const v1::Job done = client_->Await(id);
  EXPECT_EQ(done.state(), v1::SUCCEEDED);
  EXPECT_EQ(done.attempts_size(), 2);
}

TEST_F(QueueTest, PageLockedMemoryCountsOnceAgainstTheHost) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  card_ = CardReading{.name = "NVIDIA Fake", .total_bytes = 10 * kGiB, .free_bytes = 9 * kGiB, .used_bytes = kGiB};
  Restart();  // the machine has 1024 GiB
  const v1::JobSpec spec = Spec(StrCat("steps=1 card=", kGiB, " pinned=", 600 * kGiB));
  EXPECT_EQ(client_->Await(client_->MustCreate(spec)).state(), v1::SUCCEEDED);
}

TEST_F(QueueTest, ARunningJobPausesAndGoesOnFromItsCheckpoint) {
  const std::string id = client_->MustCreate(Spec("steps=30 sleep=10 save=1000"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  client_->Watch(id, 0, nullptr, [](const v1::JobEvent& event) { return event.step().step() < 3; });
  ASSERT_TRUE(client_->Pause(id).ok());
  EXPECT_TRUE(client_->Pause(id).ok());  // again: nothing more happens
  const v1::Job paused = client_->Await(id);
  ASSERT_EQ(paused.state(), v1::PAUSED) << paused.state_message();
  EXPECT_EQ(paused.state_reason(), "PAUSED_BY_USER");
  EXPECT_EQ(paused.attempts(0).exit(), "paused");
  EXPECT_GT(paused.checkpoint_step(), 0u);
  EXPECT_GT(paused.run_seconds(), 0);
  // It stays paused while others run, and over a restart.
  EXPECT_EQ(client_->Await(client_->MustCreate(Spec("steps=1"))).state(), v1::SUCCEEDED);
  Restart();
  EXPECT_EQ(client_->Get(id).state(), v1::PAUSED);
  ASSERT_TRUE(client_->Resume(id).ok());
  const v1::Job done = client_->Await(id);
  EXPECT_EQ(done.state(), v1::SUCCEEDED);
  ASSERT_EQ(done.attempts_size(), 2);
  EXPECT_EQ(done.attempts(1).first_step(), paused.checkpoint_step() + 1);
  EXPECT_EQ(StatesOf(id),
            (std::vector<v1::JobState>{v1::VALIDATING, v1::QUEUED, v1::STARTING, v1::RUNNING, v1::PAUSING, v1::PAUSED,
                                       v1::QUEUED, v1::STARTING, v1::RUNNING, v1::FINALIZING, v1::SUCCEEDED}));
  EXPECT_EQ(RichError(client_->Pause(id)).first, "JOB_FINISHED");
  EXPECT_EQ(RichError(client_->Resume(id)).first, "JOB_FINISHED");
}

TEST_F(QueueTest, AQueuedJobPausesHoldsAndComesBackToItsPlace) {
  const std::string blocker = Blocker();
  const std::string first = client_->MustCreate(Spec("steps=1"));
  const std::string second = client_->MustCreate(Spec("steps=1"));
  ASSERT_TRUE(client_->Pause(first).ok());
  EXPECT_EQ(client_->Get(first).state(), v1::PAUSED);
  ASSERT_TRUE(client_->Hold(second).ok());
  EXPECT_EQ(client_->Get(second).state_reason(), "HELD_BY_USER");
  EXPECT_EQ(RichError(client_->Pause(second)).first, "NOT_PAUSABLE");
  EXPECT_EQ(RichError(client_->Release(first)).first, "NOT_HELD");
  EXPECT_EQ(RichError(client_->Resume(second)).first, "NOT_PAUSED");
  EXPECT_EQ(RichError(client_->Hold(blocker)).first, "NOT_QUEUED");
  ASSERT_TRUE(client_->Release(second).ok());
  ASSERT_TRUE(client_->Resume(first).ok());
  EXPECT_TRUE(client_->Resume(first).ok());  // it waits already
  End(blocker);
  const v1::Job one = client_->Await(first), two = client_->Await(second);
  EXPECT_EQ(one.state(), v1::SUCCEEDED);
  EXPECT_LT(one.start_time().seconds() * 1e9 + one.start_time().nanos(),
            two.start_time().seconds() * 1e9 + two.start_time().nanos());
  v1::JobOptions held;
  held.set_hold(true);
  const std::string third = client_->MustCreate(Spec("steps=1"), held);
  EXPECT_EQ(client_->Get(third).state(), v1::HELD);
  std::this_thread::sleep_for(milliseconds(150));  // the poll leaves what a person holds alone
  EXPECT_EQ(client_->Get(third).state(), v1::HELD);
  ASSERT_TRUE(client_->Release(third).ok());
  EXPECT_EQ(client_->Await(third).state(), v1::SUCCEEDED);
}

TEST_F(QueueTest, AWorkerThatDoesNotHearOrIgnoresSigtermIsPausedAllTheSame) {
  const std::string deaf = client_->MustCreate(Spec("steps=100000 sleep=10 deaf"));
  ASSERT_TRUE(client_->AwaitState(deaf, v1::RUNNING));
  ASSERT_TRUE(client_->Pause(deaf).ok());
  EXPECT_EQ(client_->Await(deaf).state(), v1::PAUSED);
  const std::string hard = client_->MustCreate(Spec("hang-hard=1"));
  ASSERT_TRUE(client_->AwaitState(hard, v1::RUNNING));
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(client_->Pause(hard).ok());
  const v1::Job job = client_->Await(hard);
  EXPECT_EQ(job.state(), v1::PAUSED) << job.state_message();
  EXPECT_NE(job.attempts(0).message().find("killed by signal 9"), std::string::npos) << job.attempts(0).message();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(8));
}

TEST_F(QueueTest, APauseThatTheDaemonDoesNotLiveToSeeIsAPause) {
  const std::string id = client_->MustCreate(Spec("steps=100000 sleep=10 deaf"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  ASSERT_TRUE(client_->Pause(id).ok());
  EXPECT_EQ(client_->Get(id).state(), v1::PAUSING);
  Restart();
  EXPECT_EQ(client_->Await(id).state(), v1::PAUSED);
}

TEST_F(QueueTest, AJobRunsAfterThoseItWaitsFor) {
  const std::string blocker = Blocker();
  const std::string first = client_->MustCreate(Spec("steps=1"));
  v1::JobOptions after;
  after.add_after(first);
  const std::string second = client_->MustCreate(Spec("steps=1"), after, 10);  // its priority does not help it
  const std::string third = client_->MustCreate(Spec("steps=1"));
  End(blocker);
  EXPECT_EQ(client_->Await(second).state(), v1::SUCCEEDED);
  EXPECT_EQ(client_->Get(first).state(), v1::SUCCEEDED);
  EXPECT_EQ(client_->Await(third).state(), v1::SUCCEEDED);
  EXPECT_EQ(client_->Get(second).options().after(0), first);
  // Done already: nothing to wait for.
  EXPECT_EQ(client_->Await(client_->MustCreate(Spec("steps=1"), after)).state(), v1::SUCCEEDED);

  // One that fails holds what waits for it; release runs it anyway.
  const std::string fails = client_->MustCreate(Spec("fail-train sleep=1"));
  v1::JobOptions after_failed;
  after_failed.add_after(Blocker());
  const std::string doomed = client_->MustCreate(Spec("steps=1"), after_failed);
  const std::string chained = [&] {
    v1::JobOptions options;
    options.add_after(doomed);
    return client_->MustCreate(Spec("steps=1"), options);
  }();
  End(after_failed.after(0));
  const v1::Job held = client_->Await(doomed);
  EXPECT_EQ(held.state(), v1::HELD);
  EXPECT_EQ(held.state_reason(), "DEPENDENCY_FAILED");
  EXPECT_EQ(client_->Get(chained).state(), v1::QUEUED);
  ASSERT_TRUE(client_->Release(doomed).ok());
  EXPECT_EQ(client_->Await(doomed).state(), v1::SUCCEEDED);
  EXPECT_EQ(client_->Await(chained).state(), v1::SUCCEEDED);
  client_->Await(fails);
  v1::CreateJobRequest request;
  *request.mutable_spec() = Spec("steps=1");
  request.mutable_options()->add_after(fails);
  v1::Job job;
  EXPECT_EQ(RichError(client_->Create(request, &job)).first, "DEPENDENCY_FAILED");
  request.mutable_options()->set_after(0, "nobody");
  EXPECT_EQ(RichError(client_->Create(request, &job)).second, "options.after");
}

TEST_F(QueueTest, TheQueueCanBeReordered) {
  const std::string blocker = Blocker();
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(client_->MustCreate(Spec("steps=1")));
  const auto order = [&] {
    std::vector<std::pair<std::pair<int, int64_t>, std::string>> keys;
    for (const std::string& id : ids) {
      const v1::Job job = client_->Get(id);
      keys.push_back({{-job.priority(), job.queue_rank()}, id});
    }
    std::sort(keys.begin(), keys.end());
    std::string text;
    for (const auto& [key, id] : keys) text += std::to_string(std::find(ids.begin(), ids.end(), id) - ids.begin());
    return text;
  };
  EXPECT_EQ(order(), "01234");
  v1::UpdateJobRequest move;
  move.set_name(ids[4]);
  move.set_before(ids[1]);
  ASSERT_TRUE(client_->Update(move).ok());
  EXPECT_EQ(order(), "04123");
  move.Clear();
  move.set_name(ids[0]);
  move.set_behind(ids[2]);
  ASSERT_TRUE(client_->Update(move).ok());
  EXPECT_EQ(order(), "41203");
  move.Clear();
  move.set_name(ids[3]);
  move.set_first(true);
  ASSERT_TRUE(client_->Update(move).ok());
  EXPECT_EQ(order(), "34120");
  move.Clear();
  move.set_name(ids[0]);
  move.set_priority(7);
  ASSERT_TRUE(client_->Update(move).ok());
  EXPECT_EQ(order(), "03412");
  // More moves between two neighbours than there is room for.
  for (int i = 0; i < 50; ++i) {
    move.Clear();
    move.set_name(ids[i % 2 == 0 ? 1 : 2]);
    move.set_before(ids[i % 2 == 0 ? 2 : 1]);
    ASSERT_TRUE(client_->Update(move).ok()) << i;
    EXPECT_EQ(order(), i % 2 == 0 ? "03412" : "03421");
  }
  move.set_first(true);
  EXPECT_EQ(RichError(client_->Update(move)).second, "before");
  End(blocker);
  for (const std::string& id : ids) EXPECT_EQ(client_->Await(id).state(), v1::SUCCEEDED);
}

TEST_F(QueueTest, LabelsAreSetChangedAndFound) {
  v1::JobOptions options;
  (*options.mutable_labels())["team"] = "blue";
  (*options.mutable_labels())["sweep"] = "s1";
  const std::string one = client_->MustCreate(Spec("steps=1"), options);
  const std::string two = client_->MustCreate(Spec("steps=1"));
  const auto find = [&](const std::string& key, const std::string& value, const std::string& name = "") {
    grpc::ClientContext context;
    v1::ListJobsRequest request;
    (*request.mutable_labels())[key] = value;
    request.set_name_contains(name);
    v1::ListJobsResponse list;
    EXPECT_TRUE(client_->jobs->ListJobs(&context, request, &list).ok());
    std::set<std::string> ids;
    for (const v1::Job& job : list.jobs()) ids.insert(job.id());
    return ids;
  };
  EXPECT_EQ(find("team", "blue"), std::set<std::string>{one});
  EXPECT_EQ(find("team", "blue", "steps").size(), 1u);
  EXPECT_EQ(find("team", "blue", "no such name").size(), 0u);
  v1::UpdateJobRequest update;
  update.set_name(two);
  (*update.mutable_labels())["team"] = "blue";
  ASSERT_TRUE(client_->Update(update).ok());
  EXPECT_EQ(find("team", "blue").size(), 2u);
  update.set_name(one);
  (*update.mutable_labels())["team"] = "";
  ASSERT_TRUE(client_->Update(update).ok());
  EXPECT_EQ(find("team", "blue"), std::set<std::string>{two});
  EXPECT_EQ(client_->Get(one).options().labels().count("team"), 0u);
  EXPECT_EQ(client_->Get(one).options().labels().at("sweep"), "s1");
  v1::CreateJobRequest request;
  *request.mutable_spec() = Spec("steps=1");
  (*request.mutable_options()->mutable_labels())["bad key"] = "x";
  v1::Job job;
  EXPECT_EQ(RichError(client_->Create(request, &job)).second, "options.labels");
}

TEST_F(QueueTest, AJobOfHigherPriorityMovesAsideOneThatAllowsIt) {
  v1::JobOptions yields;
  yields.set_preemptible(true);
  const std::string low = client_->MustCreate(Spec("steps=40 sleep=20"), yields);
  ASSERT_TRUE(client_->AwaitState(low, v1::RUNNING));
  const std::string equal = client_->MustCreate(Spec("steps=1"));
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(client_->Get(low).state(), v1::RUNNING);  // no higher priority, no preemption
  const std::string high = client_->MustCreate(Spec("steps=1"), 5);
  EXPECT_EQ(client_->Await(high).state(), v1::SUCCEEDED);
  const v1::Job done = client_->Await(low);
  EXPECT_EQ(done.state(), v1::SUCCEEDED);
  ASSERT_EQ(done.attempts_size(), 2);
  EXPECT_EQ(done.attempts(0).exit(), "preempted");
  EXPECT_EQ(done.attempts(1).first_step(), done.attempts(0).last_step() + 1);
  EXPECT_EQ(client_->Await(equal).state(), v1::SUCCEEDED);
  // One that has not opted in stays.
  const std::string stays = Blocker();
  const std::string waits = client_->MustCreate(Spec("steps=1"), 5);
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(client_->Get(stays).state(), v1::RUNNING);
  End(stays);
  EXPECT_EQ(client_->Await(waits).state(), v1::SUCCEEDED);
}

TEST_F(QueueTest, ATimeLimitCountsAllAttempts) {
  v1::JobOptions options;
  options.set_time_limit_seconds(2);
  const std::string id = client_->MustCreate(Spec("steps=100000 sleep=20 crash=10"), options);
  const v1::Job job = client_->Await(id);
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.state_reason(), "TIME_LIMIT");
  ASSERT_EQ(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(1).exit(), "time-limit");
  EXPECT_GT(job.checkpoint_step(), 0u);
  EXPECT_GE(job.run_seconds(), 1.9);
  EXPECT_LT(job.run_seconds(), 6);
}

TEST_F(QueueTest, ARetryPolicySaysWhatIsTriedAgain) {
  v1::JobOptions none;
  none.mutable_retry()->add_exits("none");
  const v1::Job once = client_->Await(client_->MustCreate(Spec("crash=1"), none));
  EXPECT_EQ(once.state(), v1::FAILED);
  EXPECT_EQ(once.attempts_size(), 1);
  v1::JobOptions five;
  five.mutable_retry()->set_max_failures(5);
  const v1::Job often = client_->Await(client_->MustCreate(Spec("crash-always=1"), five));
  EXPECT_EQ(often.state(), v1::FAILED);
  EXPECT_EQ(often.attempts_size(), 5);
  v1::CreateJobRequest request;
  *request.mutable_spec() = Spec("steps=1");
  request.mutable_options()->mutable_retry()->add_exits("sometimes");
  v1::Job job;
  EXPECT_EQ(RichError(client_->Create(request, &job)).second, "options.retry.exits");
}

class WatchdogTest : public QueueTest {
 protected:
  void SetUp() override {
    runner_.hang_minimum = milliseconds(600);
    runner_.quiet_limit = milliseconds(600);
    runner_.max_failures = 2;
    Start();
  }
};

TEST_F(WatchdogTest, AHungWorkerIsEndedAndItsJobGoesOn) {
  const std::string id = client_->MustCreate(Spec("steps=6 sleep=10"));
  const std::string hangs = client_->MustCreate(Spec("hang-hard=3"));
  EXPECT_EQ(client_->Await(id).state(), v1::SUCCEEDED);
  const v1::Job job = client_->Await(hangs);
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.state_reason(), "WORKER_HUNG");
  ASSERT_GE(job.attempts_size(), 2);
  EXPECT_EQ(job.attempts(0).exit(), "hung");
  // The daemon is as well as before.
  EXPECT_EQ(client_->Await(client_->MustCreate(Spec("steps=1"))).state(), v1::SUCCEEDED);
}

TEST_F(WatchdogTest, AStoppedProcessIsEnded) {
  const std::string id = client_->MustCreate(Spec("steps=12 sleep=150"));
  ASSERT_TRUE(client_->AwaitState(id, v1::RUNNING));
  pid_t worker = 0;
  client_->Watch(id, 0, nullptr, [](const v1::JobEvent& event) { return event.step().step() < 2; });
  const auto log = ReadFile(folder_ / "state/jobs/" + id + "/attempts/1/worker.log");
  ASSERT_TRUE(log.ok());
  const size_t at = log->find("pid ");
  ASSERT_NE(at, std::string::npos) << *log;
  worker = std::stoi(log->substr(at + 4));
  kill(worker, SIGSTOP);
  const v1::Job job = client_->Await(id);
  EXPECT_EQ(job.state(), v1::SUCCEEDED) << job.state_message();
  EXPECT_EQ(job.attempts(0).exit(), "hung");
}

TEST_F(QueueTest, ACudaErrorFailsItsJobAndTheNextOneStarts) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string bad = client_->MustCreate(Spec("cuda=2 linger"));  // the driver does not let go of the process
  const std::string next = client_->MustCreate(Spec("steps=1"));
  const v1::Job job = client_->Await(bad);
  EXPECT_EQ(job.state(), v1::FAILED);
  EXPECT_EQ(job.state_reason(), "DEVICE_ERROR");
  EXPECT_NE(job.state_message().find("cudaErrorIllegalAddress"), std::string::npos);
  EXPECT_EQ(client_->Await(next).state(), v1::SUCCEEDED);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_F(QueueTest, ALostDeviceHoldsTheJobUntilItAnswers) {
  gpu_healthy_ = false;
  const std::string id = client_->MustCreate(Spec("steps=6 cuda-lost=3"));
  const v1::Job held = client_->Await(id);
  EXPECT_EQ(held.state(), v1::HELD);
  EXPECT_EQ(held.state_reason(), "GPU_UNHEALTHY");
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(client_->Get(id).state(), v1::HELD);
  gpu_healthy_ = true;
  ASSERT_TRUE(client_->AwaitState(id, v1::SUCCEEDED));
  EXPECT_EQ(client_->Get(id).attempts_size(), 2);
}

TEST_F(QueueTest, MemoryThatWasTakenIsWaitedForAndNotCounted) {
  const std::string id = client_->MustCreate(Spec("steps=2 memory-taken=5"));
  ASSERT_TRUE(client_->AwaitState(id, v1::SUCCEEDED));
  const v1::Job job = client_->Get(id);
  ASSERT_EQ(job.attempts_size(), 6);  // more than a job has that crashes
  EXPECT_EQ(job.attempts(4).exit(), "memory-taken");
}

TEST_F(QueueTest, OnlyAWorkerThatCrashedCountsAsRestarted) {
  metrics_ = "127.0.0.1:0";
  Restart();
  const std::string paused = client_->MustCreate(Spec("steps=30 sleep=10 save=1000"));
  ASSERT_TRUE(client_->AwaitState(paused, v1::RUNNING));
  ASSERT_TRUE(client_->Pause(paused).ok());
  ASSERT_EQ(client_->Await(paused).state(), v1::PAUSED);
  ASSERT_TRUE(client_->Resume(paused).ok());
  ASSERT_EQ(client_->Await(paused).state(), v1::SUCCEEDED);
  EXPECT_EQ(Metric("hone_worker_restarts_total"), "0");
  const std::string crashed = client_->MustCreate(Spec("steps=4 crash=3"));
  ASSERT_EQ(client_->Await(crashed).state(), v1::SUCCEEDED);
  EXPECT_EQ(Metric("hone_worker_restarts_total"), "1");
}

TEST_F(QueueTest, AMissingModelHoldsTheJobUntilItIsBack) {
  const std::string blocker = Blocker();
  const std::string id = client_->MustCreate(Spec("steps=2"));
  std::filesystem::rename(folder_ / "model", folder_ / "elsewhere");
  End(blocker);
  const v1::Job held = client_->Await(id);
  EXPECT_EQ(held.state(), v1::HELD);
  EXPECT_EQ(held.state_reason(), "MODEL_MISSING");
  EXPECT_EQ(held.attempts_size(), 0);
  std::filesystem::rename(folder_ / "elsewhere", folder_ / "model");
  ASSERT_TRUE(client_->AwaitState(id, v1::SUCCEEDED));
  const auto states = StatesOf(id);
  EXPECT_EQ(std::count(states.begin(), states.end(), v1::HELD), 1);
}

TEST_F(QueueTest, NothingStartsOnADiskThatIsAsGoodAsFull) {
  free_disk_ = 1 << 20;
  const std::string id = client_->MustCreate(Spec("steps=1"));
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(client_->Get(id).state(), v1::QUEUED);
  grpc::ClientContext context;
  v1::DaemonStatus status;
  ASSERT_TRUE(client_->daemon->GetStatus(&context, {}, &status).ok());
  EXPECT_NE(status.problem().find("1 MiB free"), std::string::npos) << status.problem();
  EXPECT_TRUE(status.caller_is_admin());
  EXPECT_EQ(status.caller_uid(), static_cast<int64_t>(geteuid()));
  EXPECT_EQ(client_->Get(id).owner_uid(), static_cast<int64_t>(geteuid()));
  free_disk_ = uint64_t{1} << 40;
  ASSERT_TRUE(client_->AwaitState(id, v1::SUCCEEDED));
}

class QuotaTest : public QueueTest {
 protected:
  void SetUp() override {
    max_jobs_ = 3;
    Start();
  }
};

TEST_F(QuotaTest, MoreUnfinishedJobsThanAllowedAreRefused) {
  const std::string blocker = Blocker();
  client_->MustCreate(Spec("steps=1"));
  const std::string last = client_->MustCreate(Spec("steps=1"));
  v1::Job job;
  EXPECT_EQ(RichError(client_->Create(Spec("steps=1"), &job)).first, "QUOTA_EXCEEDED");
  End(last);
  EXPECT_TRUE(client_->Create(Spec("steps=1"), &job).ok());
  End(blocker);
}

class RetentionTest : public QueueTest {
 protected:
  void SetUp() override {
    retention_.logs = retention_.checkpoints = retention_.events = std::chrono::seconds(1);
    retention_.every = std::chrono::seconds(0);
    Start();
  }
};

class RetentionBySizeTest : public QueueTest {
 protected:
  void SetUp() override {
    retention_.log_bytes = retention_.checkpoint_bytes = 1;
    retention_.event_count = 1;
    retention_.every = std::chrono::seconds(0);
    Start();
  }
};

TEST_F(RetentionBySizeTest, EndedJobsGoAndUnfinishedOnesKeepAll) {
  const std::string going = client_->MustCreate(Spec("steps=100000 sleep=10"));
  ASSERT_TRUE(client_->AwaitState(going, v1::RUNNING));
  const std::string attempts = folder_ / "state/jobs/" + going + "/attempts";
  daemon_->Tick();
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_TRUE(std::filesystem::exists(attempts));
  End(going);
  for (int i = 0; i < 100 && std::filesystem::exists(attempts); ++i) {
    std::this_thread::sleep_for(milliseconds(50));
    daemon_->Tick();
  }
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_FALSE(std::filesystem::exists(attempts));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "state/jobs/" + going + "/output/checkpoints"));
  grpc::Status status;
  const auto events = client_->Watch(going, 0, &status);
  ASSERT_EQ(events.size(), 2u) << status.error_message();  // that the others were removed, and the end
}

TEST_F(RetentionTest, OldThingsOfEndedJobsGoAndNothingElse) {
  const std::string done = client_->MustCreate(Spec("steps=4"));
  ASSERT_EQ(client_->Await(done).state(), v1::SUCCEEDED);
  const std::string going = client_->MustCreate(Spec("steps=100000 sleep=10"));
  ASSERT_TRUE(client_->AwaitState(going, v1::RUNNING));
  const std::string attempts = folder_ / "state/jobs/" + done + "/attempts";
  ASSERT_TRUE(std::filesystem::exists(attempts + "/1/steps.jsonl"));
  for (int i = 0; i < 100 && std::filesystem::exists(attempts); ++i) {
    std::this_thread::sleep_for(milliseconds(50));
    daemon_->Tick();
  }
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_FALSE(std::filesystem::exists(attempts));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "state/jobs/" + done + "/output/adapter/adapter_model.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "state/jobs/" + going + "/attempts/1/steps.jsonl"));
  grpc::Status status;
  const auto events = client_->Watch(done, 0, &status);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_NE(events[0].warning().find("removed by retention"), std::string::npos);
  EXPECT_EQ(events[1].state().to(), v1::SUCCEEDED);
  EXPECT_EQ(client_->Get(done).state(), v1::SUCCEEDED);
  End(going);
}

}  // namespace
}  // namespace hone
