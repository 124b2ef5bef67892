// The store: durable, gapless, legal, idempotent.
#include "server/store/store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <filesystem>
#include <new>
#include <random>
#include <set>
#include <thread>

#include "proto/base/status.h"
#include "server/store/schema.h"
#include "server/store/states.h"

namespace hone {
namespace {

class StoreTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/hone-store-XXXXXX";
    folder_ = mkdtemp(name);
    Open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  void Open() {
    store_.reset();
    auto store = Store::Open(folder_ + "/hone.db");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  std::string Create(const std::string& request_id = "", const std::string& fingerprint = "f", int priority = 0) {
    NewJob job;
    job.spec.set_name("n");
    job.resolved_spec.set_name("resolved");
    job.plan.set_fits(true);
    job.display_name = "n";
    job.request_id = request_id;
    job.fingerprint = fingerprint;
    job.priority = priority;
    auto created = store_->CreateJob(job);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->job.id() : "";
  }
  absl::Status Go(const std::string& id, v1::JobState to) {
    JobUpdate update;
    update.states.push_back({to, "TEST", ""});
    return store_->Update(id, {}, update);
  }

  std::string folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, ANewJobIsQueuedWithItsHistory) {
  const std::string id = Create();
  auto job = store_->GetJob(id);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->state(), v1::QUEUED);
  EXPECT_EQ(job->name(), "jobs/" + id);
  EXPECT_EQ(job->resolved_spec().name(), "resolved");
  EXPECT_TRUE(job->plan().fits());
  auto events = store_->Events(id, 0, 100);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 3u);
  EXPECT_EQ((*events)[0].state().to(), v1::VALIDATING);
  EXPECT_TRUE((*events)[1].has_plan());
  EXPECT_EQ((*events)[2].state().to(), v1::QUEUED);
  EXPECT_EQ(job->last_sequence(), 3u);
}

TEST_F(StoreTest, SurvivesReopening) {
  const std::string id = Create("r1");
  Open();
  EXPECT_TRUE(store_->GetJob(id).ok());
  EXPECT_EQ(Create("r1"), id);
}

TEST_F(StoreTest, RandomWalksStayLegalAndGapless) {
  std::mt19937 random(7);
  const std::string id = Create();
  int legal = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto to = static_cast<v1::JobState>(random() % (v1::JobState_MAX + 1));
    const v1::JobState from = store_->GetJobHead(id)->state;
    // Terminal states, and the one that leads only to them, would end the walk; they are tried below.
    if (IsTerminal(to) || to == v1::CANCELLING) continue;
    const absl::Status status = Go(id, to);
    EXPECT_EQ(status.ok(), IsLegalTransition(from, to)) << from << " " << to;
    status.ok() ? ++legal : ++refused;
  }
  EXPECT_GT(legal, 100);
  EXPECT_GT(refused, 100);
  uint64_t next = 1;
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  while (true) {
    auto events = store_->Events(id, next - 1, 50);
    ASSERT_TRUE(events.ok());
    if (events->empty()) break;
    for (const v1::JobEvent& event : *events) {
      ASSERT_EQ(event.sequence(), next++);
      if (!event.has_state()) continue;
      ASSERT_EQ(event.state().from(), state);
      ASSERT_TRUE(IsLegalTransition(state, event.state().to()));
      state = event.state().to();
    }
  }
  EXPECT_EQ(next - 1, store_->GetJob(id)->last_sequence());
  EXPECT_EQ(state, store_->GetJob(id)->state());
}

TEST_F(StoreTest, TerminalStatesNeverChange) {
  for (const v1::JobState end : {v1::SUCCEEDED, v1::FAILED, v1::CANCELLED}) {
    for (int to = v1::JobState_MIN; to <= v1::JobState_MAX; ++to) {
      EXPECT_FALSE(IsLegalTransition(end, static_cast<v1::JobState>(to)));
    }
  }
}

TEST_F(StoreTest, ARefusedUpdateChangesNothing) {
  const std::string id = Create();
  JobUpdate update;
  update.start_attempt = true;
  update.events.emplace_back().set_warning("never seen");
  update.states.push_back({v1::STARTING, "A", ""});
  update.states.push_back({v1::SUCCEEDED, "B", ""});  // not legal from STARTING
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Update(id, {}, update)));
  auto job = store_->GetJob(id);
  EXPECT_EQ(job->state(), v1::QUEUED);
  EXPECT_EQ(job->attempts_size(), 0);
  EXPECT_EQ(store_->Events(id, 3, 10)->size(), 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Update(id, {v1::RUNNING}, JobUpdate{})));
}

TEST_F(StoreTest, OneRequestIdMakesOneJobUnderConcurrency) {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::set<std::string> ids;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      const std::string id = Create("same");
      std::lock_guard lock(mutex);
      ids.insert(id);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ids.size(), 1u);
  EXPECT_EQ(store_->ListJobs(0, "", {})->jobs.size(), 1u);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->FindRequest("same", "another spec").status()));
}

TEST_F(StoreTest, QueueIsByPriorityThenAge) {
  const std::string first = Create();
  const std::string second = Create();
  const std::string urgent = Create("", "f", 5);
  std::vector<std::string> order;
  while (true) {
    auto next = store_->NextQueued();
    ASSERT_TRUE(next.ok());
    if (!next->has_value()) break;
    order.push_back((*next)->id);
    ASSERT_TRUE(Go(order.back(), v1::STARTING).ok());
  }
  EXPECT_EQ(order, (std::vector<std::string>{urgent, first, second}));
  // A job that goes back to the queue keeps its place.
  ASSERT_TRUE(Go(second, v1::QUEUED).ok());
  ASSERT_TRUE(Go(first, v1::QUEUED).ok());
  EXPECT_EQ((*store_->NextQueued())->id, first);
}

TEST_F(StoreTest, TheOldestWaitIsThatOfAJobThatCouldRun) {
  const auto oldest = [&] {
    const auto since = store_->OldestWait();
    EXPECT_TRUE(since.ok()) << since.status();
    return since.ok() ? *since : std::nullopt;
  };
  EXPECT_EQ(oldest(), std::nullopt);
  const int64_t before = NowMicros();
  const std::string first = Create();
  const int64_t between = NowMicros();
  const std::string second = Create();
  ASSERT_TRUE(oldest().has_value());
  EXPECT_GE(*oldest(), before);
  EXPECT_LE(*oldest(), between);
  // It ran and came back: from then on it waits, and the other one has waited longer.
  JobUpdate start;
  start.start_attempt = true;
  start.states.push_back({v1::STARTING, "TEST", ""});
  ASSERT_TRUE(store_->Update(first, {}, start).ok());
  JobUpdate back;
  back.end_attempt = AttemptEnd{"crashed", ""};
  back.states.push_back({v1::QUEUED, "TEST", ""});
  ASSERT_TRUE(store_->Update(first, {}, back).ok());
  EXPECT_GE(*oldest(), between);
  const int64_t of_second = *oldest();
  // A job that waits for another does not count.
  ASSERT_TRUE(Go(second, v1::STARTING).ok());
  EXPECT_GE(*oldest(), of_second);
  NewJob after;
  after.resolved_spec.set_name("after");
  after.options.add_after(first);
  ASSERT_TRUE(store_->CreateJob(after).ok());
  ASSERT_TRUE(Go(first, v1::STARTING).ok());
  EXPECT_EQ(oldest(), std::nullopt);
}

TEST_F(StoreTest, FailuresCountUntilANewCheckpoint) {
  const std::string id = Create();
  JobUpdate crash;
  crash.count_failure = true;
  ASSERT_TRUE(store_->Update(id, {}, crash).ok());
  ASSERT_TRUE(store_->Update(id, {}, crash).ok());
  EXPECT_EQ(*store_->Failures(id), 2);
  JobUpdate checkpoint;
  checkpoint.events.emplace_back().mutable_checkpoint()->set_step(10);
  ASSERT_TRUE(store_->Update(id, {}, checkpoint).ok());
  EXPECT_EQ(*store_->Failures(id), 0);
  ASSERT_TRUE(store_->Update(id, {}, crash).ok());
  ASSERT_TRUE(store_->Update(id, {}, checkpoint).ok());  // the same step again is not a new one
  EXPECT_EQ(*store_->Failures(id), 1);
}

TEST_F(StoreTest, AttemptsAreRecorded) {
  const std::string id = Create();
  JobUpdate start;
  start.start_attempt = true;
  start.states.push_back({v1::STARTING, "S", ""});
  ASSERT_TRUE(store_->Update(id, {v1::QUEUED}, start).ok());
  JobUpdate step;
  step.device = "cpu";
  step.last_step.emplace().set_step(3);
  ASSERT_TRUE(store_->Update(id, {}, step).ok());
  step.last_step->set_step(5);
  ASSERT_TRUE(store_->Update(id, {}, step).ok());
  JobUpdate end;
  end.end_attempt = {"crashed", "signal"};
  end.states.push_back({v1::QUEUED, "WORKER_CRASHED", ""});
  ASSERT_TRUE(store_->Update(id, {}, end).ok());
  ASSERT_TRUE(store_->Update(id, {v1::QUEUED}, start).ok());
  auto job = store_->GetJob(id);
  ASSERT_EQ(job->attempts_size(), 2);
  EXPECT_EQ(job->attempts(0).exit(), "crashed");
  EXPECT_EQ(job->attempts(0).first_step(), 3u);
  EXPECT_EQ(job->attempts(0).last_step(), 5u);
  EXPECT_EQ(job->attempts(1).exit(), "");
  EXPECT_EQ(job->last_step().step(), 5u);
}

TEST_F(StoreTest, NamesAndPrefixes) {
  const std::string id = Create();
  EXPECT_EQ(*store_->ResolveJobName("jobs/" + id), id);
  EXPECT_EQ(*store_->ResolveJobName(id), id);
  EXPECT_EQ(*store_->ResolveJobName(id.substr(0, 4)), id);
  EXPECT_TRUE(absl::IsNotFound(store_->ResolveJobName("zzzzzzzzzzzz").status()));
  for (const char* bad : {"", "jobs/", "../x", "jobs/../../etc", "a%", "A", "a'b"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(store_->ResolveJobName(bad).status())) << bad;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ResolveJobName(std::string(1000, 'a')).status()));
}

TEST_F(StoreTest, PagesCoverEverythingOnce) {
  std::vector<std::string> made;
  for (int i = 0; i < 23; ++i) made.push_back(Create());
  std::vector<std::string> seen;
  std::string token;
  do {
    auto page = store_->ListJobs(5, token, {});
    ASSERT_TRUE(page.ok());
    for (const v1::Job& job : page->jobs) seen.push_back(job.id());
    token = page->next_page_token;
  } while (!token.empty());
  std::reverse(seen.begin(), seen.end());
  EXPECT_EQ(seen, made);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ListJobs(-1, "", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ListJobs(5, "j-3", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ListJobs(5, "m3", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->ListJobs(5, "j1;drop", {}).status()));
}

TEST_F(StoreTest, ModelsByIdAndPath) {
  v1::Model model;
  model.set_id("m");
  model.set_path("/a");
  ASSERT_TRUE(store_->PutModel(model).ok());
  ASSERT_TRUE(store_->PutModel(model).ok());
  model.set_path("/b");
  EXPECT_TRUE(absl::IsAlreadyExists(store_->PutModel(model).status()));
  EXPECT_EQ(store_->ListModels(0, "")->models.size(), 1u);
  ASSERT_TRUE(store_->DeleteModel("m").ok());
  EXPECT_TRUE(absl::IsNotFound(store_->DeleteModel("m")));
  EXPECT_TRUE(absl::IsNotFound(store_->GetModel("m").status()));
}

TEST_F(StoreTest, ANewerSchemaIsRefusedAndAFileThatIsNoDatabaseToo) {
  store_.reset();
  {
    auto db = Database::Open(folder_ + "/hone.db");
    ASSERT_TRUE((*db)->Exec("PRAGMA user_version=99").ok());
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(Store::Open(folder_ + "/hone.db").status()));
  FILE* file = fopen((folder_ + "/junk.db").c_str(), "w");
  for (int i = 0; i < 2000; ++i) fputs("not a database ", file);
  fclose(file);
  EXPECT_TRUE(absl::IsDataLoss(Store::Open(folder_ + "/junk.db").status()));
}

TEST_F(StoreTest, AnOlderSchemaIsBroughtForwardWithItsJobs) {
  store_.reset();
  const std::string path = folder_ + "/old.db";
  {
    auto db = Database::Open(path);
    ASSERT_TRUE((*db)->Exec(kMigrations[0]).ok());
    ASSERT_TRUE((*db)->Exec("PRAGMA user_version=1").ok());
    // Three jobs as the first version stored them.
    for (const char* id : {"aaa", "bbb", "ccc"}) {
      auto insert = (*db)->Prepare(
          "INSERT INTO jobs (id, display_name, priority, state, reason, message, created_us, "
          "last_sequence, spec, resolved_spec) VALUES (?, 'n', 0, 2, 'R', '', 1, 0, '', '')");
      ASSERT_TRUE(insert->Bind(std::string_view(id)).Run().ok());
    }
  }
  auto store = Store::Open(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*(*store)->NextQueued())->id, "aaa");
  EXPECT_EQ((*store)->GetJob("bbb")->state(), v1::QUEUED);
  EXPECT_FALSE((*store)->GetJob("bbb")->has_owner_uid());
  ASSERT_TRUE((*store)->MoveJob("ccc", {QueuePlace::Kind::kFirst, ""}).ok());
  EXPECT_EQ((*(*store)->NextQueued())->id, "ccc");
}

TEST_F(StoreTest, OnlyEndedJobsArePurged) {
  const std::string id = Create();
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Purge(id, kPurgedLogs)));
  EXPECT_TRUE(store_->EndedJobs(INT64_MAX, 7, 10)->empty());
  ASSERT_TRUE(Go(id, v1::CANCELLED).ok());
  ASSERT_EQ(store_->EndedJobs(INT64_MAX, kPurgedLogs, 10)->size(), 1u);
  ASSERT_TRUE(store_->Purge(id, kPurgedLogs | kPurgedEvents).ok());
  EXPECT_TRUE(store_->EndedJobs(INT64_MAX, kPurgedLogs, 10)->empty());
  EXPECT_EQ(store_->EndedJobs(INT64_MAX, kPurgedCheckpoints, 10)->size(), 1u);
  ASSERT_EQ(store_->Events(id, 0, 10)->size(), 1u);
  EXPECT_EQ(store_->GetJob(id)->last_sequence(), store_->Events(id, 0, 10)->at(0).sequence());
}

TEST_F(StoreTest, TheObserverHearsOfEveryChange) {
  std::vector<v1::JobState> heard;
  store_->SetObserver([&](const std::string&, v1::JobState, v1::JobState to) { heard.push_back(to); });
  const std::string id = Create();
  ASSERT_TRUE(Go(id, v1::STARTING).ok());
  ASSERT_FALSE(Go(id, v1::SUCCEEDED).ok());
  EXPECT_EQ(heard, (std::vector<v1::JobState>{v1::QUEUED, v1::STARTING}));
}

// ---- a disk that fails

// SQLite's own VFS, but the n-th write or fsync from now on fails, and all after it.
struct Faults {
  std::atomic<int> writes_left{INT_MAX}, syncs_left{INT_MAX};
};
Faults faults;

struct FaultyFile {
  sqlite3_file base;
  sqlite3_io_methods methods;
  sqlite3_file* Real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

template <auto Member, typename... Args>
int Forward(sqlite3_file* file, Args... args) {
  sqlite3_file* real = reinterpret_cast<FaultyFile*>(file)->Real();
  return (real->pMethods->*Member)(real, args...);
}

int FaultyWrite(sqlite3_file* file, const void* data, int bytes, sqlite3_int64 at) {
  if (faults.writes_left-- <= 0) return SQLITE_FULL;
  return Forward<&sqlite3_io_methods::xWrite>(file, data, bytes, at);
}

int FaultySync(sqlite3_file* file, int flags) {
  if (faults.syncs_left-- <= 0) return SQLITE_IOERR_FSYNC;
  return Forward<&sqlite3_io_methods::xSync>(file, flags);
}

int FaultyClose(sqlite3_file* file) {
  auto* faulty = reinterpret_cast<FaultyFile*>(file);
  const int code = Forward<&sqlite3_io_methods::xClose>(file);
  faulty->~FaultyFile();
  return code;
}

int FaultyOpen(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out) {
  auto* base = static_cast<sqlite3_vfs*>(vfs->pAppData);
  auto* faulty = new (file) FaultyFile{};
  const int code = base->xOpen(base, name, faulty->Real(), flags, out);
  if (code != SQLITE_OK) return code;
  using M = sqlite3_io_methods;
  M& m = faulty->methods;
  m.iVersion = 2;  // with shared memory for the WAL, without memory-mapped reads
  m.xClose = FaultyClose;
  m.xRead = [](sqlite3_file* f, void* p, int n, sqlite3_int64 at) { return Forward<&M::xRead>(f, p, n, at); };
  m.xWrite = FaultyWrite;
  m.xTruncate = [](sqlite3_file* f, sqlite3_int64 n) { return Forward<&M::xTruncate>(f, n); };
  m.xSync = FaultySync;
  m.xFileSize = [](sqlite3_file* f, sqlite3_int64* n) { return Forward<&M::xFileSize>(f, n); };
  m.xLock = [](sqlite3_file* f, int n) { return Forward<&M::xLock>(f, n); };
  m.xUnlock = [](sqlite3_file* f, int n) { return Forward<&M::xUnlock>(f, n); };
  m.xCheckReservedLock = [](sqlite3_file* f, int* n) { return Forward<&M::xCheckReservedLock>(f, n); };
  m.xFileControl = [](sqlite3_file* f, int op, void* p) { return Forward<&M::xFileControl>(f, op, p); };
  m.xSectorSize = [](sqlite3_file* f) { return Forward<&M::xSectorSize>(f); };
  m.xDeviceCharacteristics = [](sqlite3_file* f) { return Forward<&M::xDeviceCharacteristics>(f); };
  m.xShmMap = [](sqlite3_file* f, int page, int bytes, int extend, void volatile** p) {
    return Forward<&M::xShmMap>(f, page, bytes, extend, p);
  };
  m.xShmLock = [](sqlite3_file* f, int at, int n, int flags) { return Forward<&M::xShmLock>(f, at, n, flags); };
  m.xShmBarrier = [](sqlite3_file* f) {
    sqlite3_file* real = reinterpret_cast<FaultyFile*>(f)->Real();
    real->pMethods->xShmBarrier(real);
  };
  m.xShmUnmap = [](sqlite3_file* f, int remove) { return Forward<&M::xShmUnmap>(f, remove); };
  faulty->base.pMethods = &m;
  return SQLITE_OK;
}

class FaultyDiskTest : public StoreTest {
 protected:
  static void SetUpTestSuite() {
    static sqlite3_vfs vfs = *sqlite3_vfs_find(nullptr);
    vfs.pAppData = sqlite3_vfs_find(nullptr);
    vfs.zName = "faulty";
    vfs.szOsFile += static_cast<int>(sizeof(FaultyFile));
    vfs.xOpen = FaultyOpen;
    vfs.pNext = nullptr;
    ASSERT_EQ(sqlite3_vfs_register(&vfs, 1), SQLITE_OK);
  }
  static void TearDownTestSuite() { sqlite3_vfs_unregister(sqlite3_vfs_find("faulty")); }
  void TearDown() override {
    Heal();
    StoreTest::TearDown();
  }
  void Heal() {
    faults.writes_left = INT_MAX;
    faults.syncs_left = INT_MAX;
  }
  // Three changes of the kind that is acknowledged to somebody; how many were before the first error.
  int Work(const std::string& tag, std::string* id, absl::Status* error) {
    NewJob job;
    job.display_name = tag;
    job.request_id = tag;
    job.fingerprint = "f";
    const auto created = store_->CreateJob(job);
    *error = created.status();
    if (!created.ok()) return 0;
    *id = created->job.id();
    *error = Go(*id, v1::STARTING);
    if (!error->ok()) return 1;
    *error = Go(*id, v1::RUNNING);
    return error->ok() ? 3 : 2;
  }
  // What was acknowledged before the k-th operation failed is there after a restart, for k = 1, 2, ... until none
  // fails.
  void FailEach(std::atomic<int>* left, const char* what) {
    int rounds = 0, errors = 0;
    for (int k = 0; k < 200; ++k) {
      ++rounds;
      std::string id;
      absl::Status error;
      *left = k;
      const int done = Work(StrCat(what, k), &id, &error);
      const bool broken = store_->broken();
      Heal();
      if (!error.ok()) {
        ++errors;
        // Never acknowledged again by the same process after a failed fsync: nobody knows what is on disk.
        if (left == &faults.syncs_left) {
          EXPECT_TRUE(broken);
          EXPECT_TRUE(absl::IsUnavailable(Go(id, v1::QUEUED))) << error;
        } else {
          EXPECT_TRUE(absl::IsResourceExhausted(error)) << error;
          EXPECT_EQ(std::string(*error.GetPayload(kStatusReasonPayload)), "DISK_FULL");
        }
      }
      Open();
      if (done > 0) {
        const auto job = store_->GetJob(id);
        ASSERT_TRUE(job.ok()) << what << " " << k << ": " << job.status();
        const v1::JobState least = done == 1 ? v1::QUEUED : done == 2 ? v1::STARTING : v1::RUNNING;
        EXPECT_GE(job->state(), least) << what << " " << k;
        EXPECT_EQ(store_->Events(id, 0, 100)->size(), job->last_sequence());
      }
      if (error.ok()) break;
    }
    std::printf("%s: %d rounds, %d errors, every acknowledged change was there after a restart\n", what, rounds,
                errors);
    EXPECT_GT(errors, 1);
  }
};

TEST_F(FaultyDiskTest, AFailedFsyncIsNeverAcknowledged) { FailEach(&faults.syncs_left, "fsync EIO"); }
TEST_F(FaultyDiskTest, AFullDiskLosesNothingThatWasAcknowledged) { FailEach(&faults.writes_left, "write ENOSPC"); }

}  // namespace
}  // namespace hone
