// The daemon's memory: jobs, attempts, events, plans, models, blobs and request ids, in one SQLite file. Every change
// of a job is one transaction together with its events and is on disk before the call returns. Thread-safe; one mutex.
// Not here: step records (files), what to do next (scheduler), who is told (the observer does that).
//
// Errors: NOT_FOUND (no such thing), FAILED_PRECONDITION (wrong state), ALREADY_EXISTS, INVALID_ARGUMENT (a bad name or
// token), and those of sqlite.h when the disk fails. After a failed commit nobody can know what is on disk, so the
// store refuses every later write (UNAVAILABLE) until the daemon is started again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/jobs.pb.h"
#include "hone/v1/models.pb.h"
#include "server/store/sqlite.h"

namespace hone {

int64_t NowMicros();

// A job that has been validated and planned: it is stored as QUEUED, with the events that led there.
struct NewJob {
  v1::JobSpec spec;
  v1::JobSpec resolved_spec;
  v1::Plan plan;
  std::string display_name;
  int32_t priority = 0;
  int64_t received_us = 0;            // when validation began
  std::vector<std::string> warnings;  // become events
  std::string request_id;             // empty: no idempotency
  std::string fingerprint;            // digest of what was asked under request_id
  v1::JobOptions options;             // `after` as ids of jobs that exist
  int64_t owner_uid = -1;             // -1: unknown
  uint64_t max_unfinished = 0;        // of all jobs; more are refused with reason QUOTA_EXCEEDED. 0: no limit
  uint64_t max_unfinished_of_owner = 0;
};

struct CreatedJob {
  v1::Job job;
  bool existed = false;  // made earlier under the same request_id
};

struct AttemptEnd {
  std::string exit;  // succeeded, failed, cancelled, crashed, daemon-restart
  std::string message;
};

// One change of one job. What is unset stays. States are walked in order, each with an event.
struct JobUpdate {
  struct Step {
    v1::JobState to;
    std::string reason;   // UPPER_SNAKE_CASE
    std::string message;  // for people
  };
  std::vector<v1::JobEvent> events;  // `event` only; time, attempt and sequence are filled in. Before the states.
  std::vector<Step> states;
  // Reason and message of the state it is in, which it stays in; no event. `to` is not used.
  std::optional<Step> because;
  bool start_attempt = false;  // a new attempt; its number becomes the events' attempt
  std::optional<std::string> device;
  std::optional<AttemptEnd> end_attempt;
  std::optional<v1::StepRecord> last_step;  // also the attempt's first and last step
  std::optional<v1::MemoryUse> memory;
  std::optional<std::vector<v1::Artifact>> artifacts;
  std::optional<std::string> result_json;
  std::optional<v1::Plan> plan;  // replaces the stored one
  bool count_failure = false;    // one more attempt without a new checkpoint
  std::optional<int32_t> priority;
  std::map<std::string, std::string> labels;  // set; an empty value removes
  bool drop_dependencies = false;             // it waits for no other job any more
};

// Where a waiting job goes in the queue.
struct QueuePlace {
  enum class Kind { kFirst, kBefore, kBehind };
  Kind kind = Kind::kFirst;
  std::string other;  // a waiting job, for kBefore and kBehind: its priority is taken, too
};

// What the scheduler needs of a waiting job.
struct QueuedJob {
  std::string id;
  int32_t priority = 0;
  std::string reason;
  int64_t failures = 0;
  v1::Plan plan;
  bool preemptible = false;
};

struct JobHead {
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  uint64_t last_sequence = 0;
  std::string reason;
  int64_t owner_uid = -1;
};

// What the scheduler needs of a job that is HELD.
struct HeldJob {
  std::string id;
  std::string reason;
  v1::JobSpec resolved_spec;
  v1::Plan plan;
};

struct JobFilter {
  std::vector<v1::JobState> states;           // empty: all
  std::map<std::string, std::string> labels;  // all of them
  std::string name_contains;
  std::optional<int64_t> owner_uid;
};

// A job that has ended and of which something is still kept.
struct EndedJob {
  std::string id;
  int64_t ended_us = 0;
  int64_t purged = 0;  // Purged bits
  int64_t events = 0;  // how many there were
};
enum Purged : int64_t { kPurgedLogs = 1, kPurgedCheckpoints = 2, kPurgedEvents = 4 };

struct JobPage {
  std::vector<v1::Job> jobs;  // newest first, without resolved_spec and artifacts
  std::string next_page_token;
};

struct ModelPage {
  std::vector<v1::Model> models;  // in order of import
  std::string next_page_token;
};

class Store {
 public:
  // Called after a commit, without the store's lock: a job's state went from one to the other (equal: only events
  // came).
  using Observer = std::function<void(const std::string& job_id, v1::JobState from, v1::JobState to)>;

  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path);
  // Before any other thread uses the store.
  void SetObserver(Observer observer) { observer_ = std::move(observer); }
  // Whether a commit has failed: the daemon should say NOT_SERVING and be started again.
  bool broken() const;

  // Jobs.
  absl::StatusOr<CreatedJob> CreateJob(const NewJob& job);
  // The job made under this request_id. INVALID_ARGUMENT if that request asked for something else.
  absl::StatusOr<std::optional<v1::Job>> FindRequest(std::string_view request_id, std::string_view fingerprint);
  // "jobs/<id>", an id, or a unique prefix of one, to an id.
  absl::StatusOr<std::string> ResolveJobName(std::string_view name);
  absl::StatusOr<v1::Job> GetJob(const std::string& id);
  absl::StatusOr<JobHead> GetJobHead(const std::string& id);
  absl::StatusOr<JobPage> ListJobs(int page_size, const std::string& page_token, const JobFilter& filter);
  // Fails with FAILED_PRECONDITION unless the job is in one of `expected` (empty: any) and every step is legal.
  absl::Status Update(const std::string& id, const std::vector<v1::JobState>& expected, const JobUpdate& update);
  // Events after a sequence number, in order.
  absl::StatusOr<std::vector<v1::JobEvent>> Events(const std::string& id, uint64_t after, int limit);
  // Moves a waiting job (QUEUED, PAUSED or HELD) within the queue. One transaction.
  absl::Status MoveJob(const std::string& id, const QueuePlace& place);
  absl::StatusOr<std::vector<HeldJob>> HeldJobs();
  // Jobs that ended before a time, the oldest first, unless all of `bits` have been purged.
  absl::StatusOr<std::vector<EndedJob>> EndedJobs(int64_t before_us, int64_t bits, int limit);
  // Notes that something of an ended job was removed; kPurgedEvents removes its events but the last.
  absl::Status Purge(const std::string& id, int64_t bits);
  // The job to be started next, of those that wait for no other: highest priority, then the first in the queue.
  absl::StatusOr<std::optional<QueuedJob>> NextQueued();
  absl::StatusOr<std::vector<std::string>> JobsIn(const std::vector<v1::JobState>& states);
  absl::StatusOr<std::map<v1::JobState, uint64_t>> CountJobs();
  // When the job that has waited longest began to: submitted, or back in the queue after an attempt. Jobs that wait for
  // others are left out.
  absl::StatusOr<std::optional<int64_t>> OldestWait();
  // Attempts that crashed since the last new checkpoint.
  absl::StatusOr<int64_t> Failures(const std::string& id);

  // Models. Put replaces an entry with the same id and path; another path is ALREADY_EXISTS.
  absl::StatusOr<v1::Model> PutModel(const v1::Model& model);
  absl::StatusOr<v1::Model> GetModel(std::string_view id);
  absl::StatusOr<ModelPage> ListModels(int page_size, const std::string& page_token);
  absl::Status DeleteModel(std::string_view id);

  // Blobs: which uploads were finished.
  absl::Status PutBlob(std::string_view digest, uint64_t bytes);
  absl::StatusOr<std::optional<uint64_t>> BlobBytes(std::string_view digest);

 private:
  explicit Store(std::unique_ptr<Database> db) : db_(std::move(db)) {}
  absl::Status Migrate();
  // Runs `body` in a transaction under the lock.
  absl::Status Write(const std::function<absl::Status()>& body);

  struct Row;
  // A job that changed because another one did.
  struct Change {
    std::string id;
    v1::JobState from, to;
  };
  absl::StatusOr<int64_t> AddOptions(const NewJob& job, const std::string& id);
  absl::Status CheckQuota(const NewJob& job);
  absl::Status SettleDependents(const Row& row);
  absl::StatusOr<bool> ADependencyFailed(const Row& row);
  absl::Status ApplyLabels(const Row& row, const JobUpdate& update);
  absl::StatusOr<int64_t> FreeRank(const std::string& id, const QueuePlace& place, int32_t* priority);
  absl::Status Renumber(int32_t priority);
  absl::StatusOr<Row> ReadRow(const std::string& id);
  absl::StatusOr<v1::Job> ReadJob(const std::string& id, bool full);
  absl::Status ReadAttempts(v1::Job* job);
  absl::StatusOr<std::optional<v1::Job>> ReadRequest(std::string_view request_id, std::string_view fingerprint);
  absl::Status InsertJob(const NewJob& job, const std::string& id);
  absl::Status InsertEvent(Row* row, uint32_t attempt, int64_t time_us, v1::JobEvent event);
  absl::Status ApplyUpdate(Row* row, const JobUpdate& update);
  absl::Status SetReason(const Row& row, const std::string& message);
  absl::Status ApplyAttempt(Row* row, const JobUpdate& update, int64_t now);
  absl::Status ApplyRecords(Row* row, const JobUpdate& update);

  mutable std::mutex mutex_;
  std::unique_ptr<Database> db_;
  bool broken_ = false;
  std::vector<Change> changes_;  // of the transaction under way
  Observer observer_;
};

}  // namespace hone
