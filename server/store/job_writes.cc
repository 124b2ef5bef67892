// Store: changes of jobs, each one transaction with its events.
#include <sys/random.h>

#include <algorithm>
#include <iterator>

#include "absl/strings/cord.h"
#include "proto/base/status.h"
#include "server/store/records.h"
#include "server/store/states.h"
#include "server/store/store.h"

namespace hone {
namespace {

constexpr size_t kIdLength = 10;

// Ten characters of [a-z2-7], the first a letter: 48 bits, easy to read out and to complete by prefix.
std::string NewId() {
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  unsigned char random[kIdLength] = {};
  HONE_CHECK(getrandom(random, sizeof(random), 0) == static_cast<ssize_t>(sizeof(random)));
  std::string id;
  for (size_t i = 0; i < kIdLength; ++i) id.push_back(kAlphabet[i == 0 ? random[i] % 26 : random[i] % 32]);
  return id;
}

// Between two neighbours in the queue there is room for twenty moves before ranks are dealt out anew.
constexpr int64_t kRankStride = 1 << 20;

JobUpdate::Step DependencyFailed() {
  return {v1::HELD, "DEPENDENCY_FAILED", "a job that it waits for did not succeed; release it to run it anyway"};
}

}  // namespace

absl::StatusOr<CreatedJob> Store::CreateJob(const NewJob& job) {
  CreatedJob created;
  std::string id;
  {
    std::lock_guard lock(mutex_);
    HONE_RETURN_IF_ERROR(Write([&]() -> absl::Status {
      if (!job.request_id.empty()) {
        HONE_ASSIGN_OR_RETURN(std::optional<v1::Job> earlier, ReadRequest(job.request_id, job.fingerprint));
        if (earlier.has_value()) {
          created = {*std::move(earlier), true};
          return absl::OkStatus();
        }
      }
      HONE_RETURN_IF_ERROR(CheckQuota(job));
      id = NewId();
      HONE_RETURN_IF_ERROR(InsertJob(job, id));
      HONE_ASSIGN_OR_RETURN(created.job, ReadJob(id, true));
      return absl::OkStatus();
    }));
  }
  if (!created.existed && observer_) observer_(id, v1::JOB_STATE_UNSPECIFIED, created.job.state());
  return created;
}

absl::Status Store::InsertJob(const NewJob& job, const std::string& id) {
  const int64_t now = NowMicros();
  const int64_t received = job.received_us > 0 ? job.received_us : now;
  HONE_ASSIGN_OR_RETURN(
      Statement insert,
      db_->Prepare("INSERT INTO jobs (id, display_name, priority, state, reason, message, created_us, "
                   "last_sequence, spec, resolved_spec, owner_uid) VALUES (?, ?, ?, 0, '', '', ?, 0, ?, ?, ?)"));
  insert.Bind(id).Bind(job.display_name).Bind(int64_t{job.priority}).Bind(received);
  insert.BindBlob(job.spec.SerializeAsString()).BindBlob(job.resolved_spec.SerializeAsString()).Bind(job.owner_uid);
  HONE_RETURN_IF_ERROR(insert.Run());
  HONE_ASSIGN_OR_RETURN(const int64_t blocked, AddOptions(job, id));
  if (!job.request_id.empty()) {
    HONE_ASSIGN_OR_RETURN(
        Statement request,
        db_->Prepare("INSERT INTO request_ids (method, request_id, fingerprint, resource, created_us) "
                     "VALUES ('CreateJob', ?, ?, ?, ?)"));
    HONE_RETURN_IF_ERROR(request.Bind(job.request_id).Bind(job.fingerprint).Bind(id).Bind(now).Run());
  }
  Row row;
  row.id = id;
  row.blocked = blocked;
  JobUpdate validating;
  validating.states.push_back({v1::VALIDATING, "SUBMITTED", ""});
  HONE_RETURN_IF_ERROR(ApplyUpdate(&row, validating));
  JobUpdate queued;
  queued.plan = job.plan;
  for (const std::string& warning : job.warnings) queued.events.emplace_back().set_warning(warning);
  *queued.events.emplace_back().mutable_plan() = job.plan;
  queued.states.push_back({v1::QUEUED, "ADMITTED", "planned; waits for its turn"});
  if (job.options.hold()) queued.states.push_back({v1::HELD, "HELD_BY_USER", "submitted with hold; release it to run"});
  return ApplyUpdate(&row, queued);
}

absl::Status Store::CheckQuota(const NewJob& job) {
  const auto check = [&](const char* sql, uint64_t limit, std::string_view whose, int64_t owner) -> absl::Status {
    if (limit == 0) return absl::OkStatus();
    HONE_ASSIGN_OR_RETURN(Statement count, db_->Prepare(sql));
    if (owner >= 0) count.Bind(owner);
    HONE_ASSIGN_OR_RETURN(const bool row, count.Step());
    if (!row || static_cast<uint64_t>(count.Int(0)) < limit) return absl::OkStatus();
    absl::Status refused = ResourceExhausted(whose, " ", count.Int(0), " unfinished jobs, the limit is ", limit,
                                             "; cancel some or wait until they end");
    refused.SetPayload(kStatusReasonPayload, absl::Cord("QUOTA_EXCEEDED"));
    return refused;
  };
  // 6, 7, 9: SUCCEEDED, FAILED, CANCELLED. The first counts by the index of states, the second by that of owners.
  HONE_RETURN_IF_ERROR(check("SELECT COUNT(*) FROM jobs WHERE state IN (1, 2, 3, 4, 5, 8, 10, 11, 12)",
                             job.max_unfinished, "the daemon has", -1));
  if (job.owner_uid < 0) return absl::OkStatus();
  return check("SELECT COUNT(*) FROM jobs WHERE owner_uid = ? AND state IN (1, 2, 3, 4, 5, 8, 10, 11, 12)",
               job.max_unfinished_of_owner, "you have", job.owner_uid);
}

// Its place in the queue, labels, and the jobs it waits for; how many of those are unfinished.
absl::StatusOr<int64_t> Store::AddOptions(const NewJob& job, const std::string& id) {
  int64_t blocked = 0;
  for (const std::string& after : job.options.after()) {
    HONE_ASSIGN_OR_RETURN(const Row other, ReadRow(after));
    if (other.state == v1::SUCCEEDED) continue;
    if (IsTerminal(other.state)) {
      absl::Status refused = FailedPrecondition("after: job ", after, " has ended as ", StateName(other.state));
      refused.SetPayload(kStatusReasonPayload, absl::Cord("DEPENDENCY_FAILED"));
      return refused;
    }
    HONE_ASSIGN_OR_RETURN(Statement insert,
                          db_->Prepare("INSERT OR IGNORE INTO dependencies (after_id, job_id) VALUES (?, ?)"));
    HONE_RETURN_IF_ERROR(insert.Bind(after).Bind(id).Run());
    ++blocked;
  }
  for (const auto& [key, value] : job.options.labels()) {
    HONE_ASSIGN_OR_RETURN(Statement insert, db_->Prepare("INSERT INTO labels (job_id, key, value) VALUES (?, ?, ?)"));
    HONE_RETURN_IF_ERROR(insert.Bind(id).Bind(key).Bind(value).Run());
  }
  HONE_ASSIGN_OR_RETURN(Statement set,
                        db_->Prepare("UPDATE jobs SET options = ?, queue_rank = ordinal * ? WHERE id = ?"));
  HONE_RETURN_IF_ERROR(set.BindBlob(job.options.SerializeAsString()).Bind(kRankStride).Bind(id).Run());
  return blocked;
}

absl::Status Store::Update(const std::string& id, const std::vector<v1::JobState>& expected, const JobUpdate& update) {
  v1::JobState from = v1::JOB_STATE_UNSPECIFIED;
  v1::JobState to = v1::JOB_STATE_UNSPECIFIED;
  bool events = false;
  std::vector<Change> changes;
  {
    std::lock_guard lock(mutex_);
    changes_.clear();
    HONE_RETURN_IF_ERROR(Write([&]() -> absl::Status {
      HONE_ASSIGN_OR_RETURN(Row row, ReadRow(id));
      if (!expected.empty() && std::find(expected.begin(), expected.end(), row.state) == expected.end()) {
        return FailedPrecondition("job ", id, " is ", StateName(row.state));
      }
      from = row.state;
      const uint64_t sequence = row.last_sequence;
      HONE_RETURN_IF_ERROR(ApplyUpdate(&row, update));
      to = row.state;
      events = row.last_sequence != sequence;
      return absl::OkStatus();
    }));
    changes.swap(changes_);
  }
  if (!observer_) return absl::OkStatus();
  if (events) observer_(id, from, to);
  for (const Change& change : changes) observer_(change.id, change.from, change.to);
  return absl::OkStatus();
}

absl::Status Store::InsertEvent(Row* row, uint32_t attempt, int64_t time_us, v1::JobEvent event) {
  event.set_sequence(++row->last_sequence);
  event.set_attempt(attempt);
  *event.mutable_time() = ToTimestamp(time_us);
  HONE_ASSIGN_OR_RETURN(Statement insert,
                        db_->Prepare("INSERT INTO events (job_id, sequence, event) VALUES (?, ?, ?)"));
  return insert.Bind(row->id).Bind(static_cast<int64_t>(event.sequence())).BindBlob(event.SerializeAsString()).Run();
}

absl::Status Store::SetReason(const Row& row, const std::string& message) {
  HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET reason = ?, message = ? WHERE id = ?"));
  return set.Bind(row.reason).Bind(message).Bind(row.id).Run();
}

absl::Status Store::ApplyUpdate(Row* row, const JobUpdate& update) {
  const int64_t now = NowMicros();
  HONE_RETURN_IF_ERROR(ApplyAttempt(row, update, now));
  for (const v1::JobEvent& event : update.events) {
    if (event.has_checkpoint() && event.checkpoint().step() > row->checkpoint_step) {
      row->checkpoint_step = event.checkpoint().step();
      row->failures = 0;
    }
    HONE_RETURN_IF_ERROR(InsertEvent(row, row->attempt, now, event));
  }
  if (update.count_failure) ++row->failures;
  if (update.because.has_value()) {
    row->reason = update.because->reason;
    HONE_RETURN_IF_ERROR(SetReason(*row, update.because->message));
  }
  const v1::JobState before = row->state;
  std::vector<JobUpdate::Step> steps = update.states;
  if (update.drop_dependencies) row->blocked = 0;
  if (!steps.empty() && steps.back().to == v1::QUEUED && row->blocked > 0) {
    HONE_ASSIGN_OR_RETURN(const bool failed, ADependencyFailed(*row));
    if (failed) steps.push_back(DependencyFailed());
  }
  for (const JobUpdate::Step& step : steps) {
    if (!IsLegalTransition(row->state, step.to)) {
      return FailedPrecondition("job ", row->id, " cannot go from ", StateName(row->state), " to ", StateName(step.to));
    }
    v1::JobEvent event;
    v1::StateChange* change = event.mutable_state();
    change->set_from(row->state);
    change->set_to(step.to);
    change->set_reason(step.reason);
    change->set_message(step.message);
    HONE_RETURN_IF_ERROR(InsertEvent(row, row->attempt, now, std::move(event)));
    row->state = step.to;
    row->reason = step.reason;
    HONE_RETURN_IF_ERROR(SetReason(*row, step.message));
  }
  HONE_ASSIGN_OR_RETURN(
      Statement set,
      db_->Prepare("UPDATE jobs SET state = ?1, last_sequence = ?2, failures = ?3, checkpoint_step = ?4, "
                   "started_us = CASE WHEN ?5 AND started_us IS NULL THEN ?6 ELSE started_us END, "
                   "ended_us = CASE WHEN ?7 THEN ?6 ELSE ended_us END, blocked = ?9 WHERE id = ?8"));
  set.Bind(int64_t{row->state}).Bind(static_cast<int64_t>(row->last_sequence)).Bind(row->failures);
  set.Bind(static_cast<int64_t>(row->checkpoint_step)).Bind(int64_t{update.start_attempt}).Bind(now);
  const bool ends = !IsTerminal(before) && IsTerminal(row->state);
  set.Bind(int64_t{ends}).Bind(row->id).Bind(row->blocked);
  HONE_RETURN_IF_ERROR(set.Run());
  HONE_RETURN_IF_ERROR(ApplyLabels(*row, update));
  HONE_RETURN_IF_ERROR(ApplyRecords(row, update));
  return ends ? SettleDependents(*row) : absl::OkStatus();
}

// The jobs that wait for one that has ended: free, or held because it did not succeed.
absl::Status Store::SettleDependents(const Row& row) {
  if (row.state == v1::SUCCEEDED) {
    HONE_ASSIGN_OR_RETURN(Statement set,
                          db_->Prepare("UPDATE jobs SET blocked = blocked - 1 WHERE blocked > 0 AND id IN "
                                       "(SELECT job_id FROM dependencies WHERE after_id = ?)"));
    return set.Bind(row.id).Run();
  }
  std::vector<std::string> waiting;
  {
    HONE_ASSIGN_OR_RETURN(Statement find,
                          db_->Prepare("SELECT id FROM jobs JOIN dependencies ON job_id = id WHERE after_id = ? AND "
                                       "state = ? AND blocked > 0"));
    find.Bind(row.id).Bind(int64_t{v1::QUEUED});
    while (true) {
      HONE_ASSIGN_OR_RETURN(const bool more, find.Step());
      if (!more) break;
      waiting.push_back(find.Text(0));
    }
  }
  for (const std::string& id : waiting) {
    HONE_ASSIGN_OR_RETURN(Row other, ReadRow(id));
    JobUpdate held;
    held.states.push_back(DependencyFailed());
    held.states.back().message =
        StrCat("job ", row.id, ", which it waits for, is ", StateName(row.state), "; release it to run it anyway");
    HONE_RETURN_IF_ERROR(ApplyUpdate(&other, held));
    changes_.push_back({id, v1::QUEUED, v1::HELD});
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Store::ADependencyFailed(const Row& row) {
  HONE_ASSIGN_OR_RETURN(Statement find,
                        db_->Prepare("SELECT 1 FROM dependencies JOIN jobs ON id = after_id WHERE job_id = ? AND "
                                     "state IN (?, ?) LIMIT 1"));
  return find.Bind(row.id).Bind(int64_t{v1::FAILED}).Bind(int64_t{v1::CANCELLED}).Step();
}

absl::Status Store::ApplyLabels(const Row& row, const JobUpdate& update) {
  if (update.drop_dependencies) {
    HONE_ASSIGN_OR_RETURN(Statement erase, db_->Prepare("DELETE FROM dependencies WHERE job_id = ?"));
    HONE_RETURN_IF_ERROR(erase.Bind(row.id).Run());
  }
  if (update.priority.has_value()) {
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET priority = ? WHERE id = ?"));
    HONE_RETURN_IF_ERROR(set.Bind(int64_t{*update.priority}).Bind(row.id).Run());
  }
  if (update.labels.empty()) return absl::OkStatus();
  v1::JobOptions options;
  {
    HONE_ASSIGN_OR_RETURN(Statement read, db_->Prepare("SELECT options FROM jobs WHERE id = ?"));
    HONE_ASSIGN_OR_RETURN(const bool found, read.Bind(row.id).Step());
    if (found) HONE_RETURN_IF_ERROR(Parse(read.Text(0), &options));
  }
  for (const auto& [key, value] : update.labels) {
    const char* sql = value.empty() ? "DELETE FROM labels WHERE job_id = ?1 AND key = ?2"
                                    : "INSERT INTO labels (job_id, key, value) VALUES (?1, ?2, ?3) "
                                      "ON CONFLICT (job_id, key) DO UPDATE SET value = excluded.value";
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare(sql));
    set.Bind(row.id).Bind(key);
    if (!value.empty()) set.Bind(value);
    HONE_RETURN_IF_ERROR(set.Run());
    value.empty() ? (void)options.mutable_labels()->erase(key) : (void)((*options.mutable_labels())[key] = value);
  }
  HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET options = ? WHERE id = ?"));
  return set.BindBlob(options.SerializeAsString()).Bind(row.id).Run();
}

absl::Status Store::ApplyAttempt(Row* row, const JobUpdate& update, int64_t now) {
  if (update.start_attempt) {
    ++row->attempt;
    HONE_ASSIGN_OR_RETURN(Statement insert,
                          db_->Prepare("INSERT INTO attempts (job_id, number, started_us) VALUES (?, ?, ?)"));
    HONE_RETURN_IF_ERROR(insert.Bind(row->id).Bind(int64_t{row->attempt}).Bind(now).Run());
  }
  if (update.device.has_value()) {
    HONE_ASSIGN_OR_RETURN(Statement set,
                          db_->Prepare("UPDATE attempts SET device = ? WHERE job_id = ? AND number = ?"));
    HONE_RETURN_IF_ERROR(set.Bind(*update.device).Bind(row->id).Bind(int64_t{row->attempt}).Run());
  }
  if (update.last_step.has_value()) {
    HONE_ASSIGN_OR_RETURN(
        Statement set, db_->Prepare("UPDATE attempts SET last_step = ?1, first_step = CASE WHEN first_step = 0 THEN ?1 "
                                    "ELSE first_step END WHERE job_id = ?2 AND number = ?3"));
    set.Bind(static_cast<int64_t>(update.last_step->step())).Bind(row->id).Bind(int64_t{row->attempt});
    HONE_RETURN_IF_ERROR(set.Run());
  }
  if (update.end_attempt.has_value()) {
    HONE_ASSIGN_OR_RETURN(
        Statement add, db_->Prepare("UPDATE jobs SET run_us = run_us + COALESCE((SELECT MAX(0, ?1 - started_us) FROM "
                                    "attempts WHERE job_id = ?2 AND number = ?3 AND exit = ''), 0) WHERE id = ?2"));
    HONE_RETURN_IF_ERROR(add.Bind(now).Bind(row->id).Bind(int64_t{row->attempt}).Run());
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE attempts SET ended_us = ?, exit = ?, message = ? WHERE "
                                                      "job_id = ? AND number = ? AND exit = ''"));
    set.Bind(now).Bind(update.end_attempt->exit).Bind(update.end_attempt->message);
    HONE_RETURN_IF_ERROR(set.Bind(row->id).Bind(int64_t{row->attempt}).Run());
  }
  return absl::OkStatus();
}

absl::Status Store::ApplyRecords(Row* row, const JobUpdate& update) {
  auto set_blob = [&](const char* sql, std::string_view bytes) -> absl::Status {
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare(sql));
    return set.BindBlob(bytes).Bind(row->id).Run();
  };
  for (const v1::JobEvent& event : update.events) {
    if (!event.has_eval()) continue;
    HONE_RETURN_IF_ERROR(set_blob("UPDATE jobs SET last_eval = ? WHERE id = ?", event.eval().SerializeAsString()));
  }
  if (update.last_step.has_value()) {
    HONE_RETURN_IF_ERROR(set_blob("UPDATE jobs SET last_step = ? WHERE id = ?", update.last_step->SerializeAsString()));
  }
  if (update.memory.has_value()) {
    HONE_RETURN_IF_ERROR(set_blob("UPDATE jobs SET memory = ? WHERE id = ?", update.memory->SerializeAsString()));
  }
  if (update.artifacts.has_value()) {
    v1::ListArtifactsResponse list;
    for (const v1::Artifact& artifact : *update.artifacts) *list.add_artifacts() = artifact;
    HONE_RETURN_IF_ERROR(set_blob("UPDATE jobs SET artifacts = ? WHERE id = ?", list.SerializeAsString()));
  }
  if (update.plan.has_value()) {
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("INSERT INTO plans (job_id, plan) VALUES (?, ?) "
                                                      "ON CONFLICT (job_id) DO UPDATE SET plan = excluded.plan"));
    HONE_RETURN_IF_ERROR(set.Bind(row->id).BindBlob(update.plan->SerializeAsString()).Run());
  }
  if (update.result_json.has_value()) {
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET result_json = ? WHERE id = ?"));
    HONE_RETURN_IF_ERROR(set.Bind(*update.result_json).Bind(row->id).Run());
  }
  return absl::OkStatus();
}

// ---- the queue's order

absl::Status Store::MoveJob(const std::string& id, const QueuePlace& place) {
  int32_t priority = 0;
  std::lock_guard lock(mutex_);
  return Write([&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const Row row, ReadRow(id));
    if (IsTerminal(row.state)) return FailedPrecondition("job ", id, " has already ended: ", StateName(row.state));
    HONE_ASSIGN_OR_RETURN(const int64_t rank, FreeRank(id, place, &priority));
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET priority = ?, queue_rank = ? WHERE id = ?"));
    return set.Bind(int64_t{priority}).Bind(rank).Bind(id).Run();
  });
}

// A rank at the place, among the jobs that have not ended; ranks are dealt out anew if there is none between two.
absl::StatusOr<int64_t> Store::FreeRank(const std::string& id, const QueuePlace& place, int32_t* priority) {
  const std::string& of = place.kind == QueuePlace::Kind::kFirst ? id : place.other;
  for (int round = 0; round < 2; ++round) {
    HONE_ASSIGN_OR_RETURN(Statement find, db_->Prepare("SELECT priority, queue_rank FROM jobs WHERE id = ?"));
    HONE_ASSIGN_OR_RETURN(const bool found, find.Bind(of).Step());
    if (!found) return NotFound("no job \"", of, "\"");
    *priority = static_cast<int32_t>(find.Int(0));
    const int64_t rank = find.Int(1);
    // The neighbour on the side where it goes; kFirst: the first of all.
    const char* sql = place.kind == QueuePlace::Kind::kBehind
                          ? "SELECT MIN(queue_rank) FROM jobs WHERE priority = ? AND queue_rank > ? AND id <> ? AND "
                            "state IN (2, 11, 12)"
                      : place.kind == QueuePlace::Kind::kBefore
                          ? "SELECT MAX(queue_rank) FROM jobs WHERE priority = ? AND queue_rank < ? AND id <> ? AND "
                            "state IN (2, 11, 12)"
                          : "SELECT MIN(queue_rank) FROM jobs WHERE priority = ? AND queue_rank < ? + 1 AND id <> ? "
                            "AND state IN (2, 11, 12)";
    HONE_ASSIGN_OR_RETURN(Statement next, db_->Prepare(sql));
    HONE_ASSIGN_OR_RETURN(const bool any, next.Bind(int64_t{*priority}).Bind(rank).Bind(id).Step());
    const bool alone = !any || next.IsNull(0);
    const int64_t other = alone ? 0 : next.Int(0);
    if (place.kind == QueuePlace::Kind::kFirst) return alone ? rank : other - kRankStride;
    if (alone) return place.kind == QueuePlace::Kind::kBehind ? rank + kRankStride : rank - kRankStride;
    const int64_t middle = other + (rank - other) / 2;
    if (middle != other && middle != rank) return middle;
    HONE_RETURN_IF_ERROR(Renumber(*priority));
  }
  return Internal("store: no room in the queue");
}

absl::Status Store::Renumber(int32_t priority) {
  HONE_ASSIGN_OR_RETURN(
      Statement set,
      db_->Prepare("UPDATE jobs SET queue_rank = (SELECT n * ?1 FROM (SELECT id AS other, ROW_NUMBER() OVER (ORDER BY "
                   "queue_rank) AS n FROM jobs WHERE priority = ?2 AND state IN (2, 11, 12)) WHERE other = jobs.id) "
                   "WHERE priority = ?2 AND state IN (2, 11, 12)"));
  return set.Bind(kRankStride).Bind(int64_t{priority}).Run();
}

absl::Status Store::Purge(const std::string& id, int64_t bits) {
  std::lock_guard lock(mutex_);
  return Write([&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(const Row row, ReadRow(id));
    if (!IsTerminal(row.state)) return FailedPrecondition("job ", id, " has not ended; nothing of it is removed");
    if (bits & kPurgedEvents) {
      HONE_ASSIGN_OR_RETURN(Statement erase, db_->Prepare("DELETE FROM events WHERE job_id = ? AND sequence < ?"));
      HONE_RETURN_IF_ERROR(erase.Bind(id).Bind(static_cast<int64_t>(row.last_sequence)).Run());
    }
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET purged = purged | ? WHERE id = ?"));
    return set.Bind(bits).Bind(id).Run();
  });
}

}  // namespace hone
