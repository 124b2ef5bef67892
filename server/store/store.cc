#include "server/store/store.h"

#include <sys/random.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <iterator>

#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "server/store/schema.h"
#include "server/store/states.h"

namespace hone {
namespace {

constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 500;
constexpr size_t kMaxNameBytes = 128;
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

bool IsIdText(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
  });
}

template <typename Message>
absl::Status Parse(const std::string& bytes, Message* message) {
  if (!message->ParseFromString(bytes)) return DataLoss("store: a ", message->GetTypeName(), " cannot be read back");
  return absl::OkStatus();
}

// Page tokens are an ordinal with a letter for the list they belong to.
std::string PageToken(char list, int64_t ordinal) { return StrCat(list, ordinal); }

absl::StatusOr<int64_t> ParsePageToken(char list, const std::string& token) {
  int64_t ordinal = 0;
  const char* end = token.data() + token.size();
  if (token.size() > 1 && token[0] == list) {
    const auto parsed = std::from_chars(token.data() + 1, end, ordinal);
    if (parsed.ec == std::errc() && parsed.ptr == end && ordinal > 0) return ordinal;
  }
  return FieldError("page_token", "not a token that this list gave");
}

absl::StatusOr<int> PageSize(int asked) {
  if (asked < 0) return FieldError("page_size", "must not be negative");
  return asked == 0 ? kDefaultPageSize : std::min(asked, kMaxPageSize);
}

google::protobuf::Timestamp ToTimestamp(int64_t us) {
  google::protobuf::Timestamp time;
  time.set_seconds(us / 1'000'000);
  time.set_nanos(static_cast<int32_t>(us % 1'000'000) * 1000);
  return time;
}

// Columns of a list or full job, in the order ReadJobColumns takes them.
constexpr const char* kJobColumns =
    "ordinal, id, display_name, priority, state, reason, message, created_us, started_us, ended_us, last_sequence, spec, "
    "last_step, last_eval, memory, result_json";

absl::Status ReadJobColumns(const Statement& row, v1::Job* job) {
  job->set_id(row.Text(1));
  job->set_name(StrCat("jobs/", job->id()));
  job->set_display_name(row.Text(2));
  job->set_priority(static_cast<int32_t>(row.Int(3)));
  job->set_state(static_cast<v1::JobState>(row.Int(4)));
  job->set_state_reason(row.Text(5));
  job->set_state_message(row.Text(6));
  *job->mutable_create_time() = ToTimestamp(row.Int(7));
  if (!row.IsNull(8)) *job->mutable_start_time() = ToTimestamp(row.Int(8));
  if (!row.IsNull(9)) *job->mutable_end_time() = ToTimestamp(row.Int(9));
  job->set_last_sequence(static_cast<uint64_t>(row.Int(10)));
  HONE_RETURN_IF_ERROR(Parse(row.Text(11), job->mutable_spec()));
  if (!row.IsNull(12)) HONE_RETURN_IF_ERROR(Parse(row.Text(12), job->mutable_last_step()));
  if (!row.IsNull(13)) HONE_RETURN_IF_ERROR(Parse(row.Text(13), job->mutable_last_eval()));
  if (!row.IsNull(14)) HONE_RETURN_IF_ERROR(Parse(row.Text(14), job->mutable_memory()));
  job->set_result_json(row.Text(15));
  return absl::OkStatus();
}

}  // namespace

int64_t NowMicros() {
  using std::chrono::duration_cast;
  return duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// What a change needs to know of the job it changes.
struct Store::Row {
  std::string id;
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  uint64_t last_sequence = 0;
  int64_t failures = 0;
  uint64_t checkpoint_step = 0;
  uint32_t attempt = 0;  // number of the newest, 0: none yet
};

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(std::unique_ptr<Database> db, Database::Open(path));
  std::unique_ptr<Store> store(new Store(std::move(db)));
  HONE_RETURN_IF_ERROR(store->Migrate());
  return store;
}

absl::Status Store::Migrate() {
  HONE_ASSIGN_OR_RETURN(const int64_t version, db_->QueryInt("PRAGMA user_version"));
  const auto newest = static_cast<int64_t>(std::size(kMigrations));
  if (version < 0 || version > newest) {
    return FailedPrecondition("store: hone.db has schema version ", version, ", this honed knows up to ", newest,
                              "; use the newer honed that wrote it");
  }
  for (int64_t next = version; next < newest; ++next) {
    HONE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db_.get()));
    HONE_RETURN_IF_ERROR(db_->Exec(kMigrations[next]));
    HONE_RETURN_IF_ERROR(db_->Exec(StrCat("PRAGMA user_version=", next + 1).c_str()));
    HONE_RETURN_IF_ERROR(transaction.Commit());
  }
  return absl::OkStatus();
}

bool Store::broken() const {
  std::lock_guard lock(mutex_);
  return broken_;
}

absl::Status Store::Write(const std::function<absl::Status()>& body) {
  if (broken_) return absl::UnavailableError("store: an earlier write failed; restart honed once the disk is well");
  HONE_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(db_.get()));
  HONE_RETURN_IF_ERROR(body());
  const absl::Status committed = transaction.Commit();
  // A full disk is known not to have committed; after any other failure the file's state is unknown.
  if (!committed.ok() && !absl::IsResourceExhausted(committed)) broken_ = true;
  return committed;
}

// ---- jobs: reading

absl::StatusOr<Store::Row> Store::ReadRow(const std::string& id) {
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT state, last_sequence, failures, checkpoint_step, "
                   "(SELECT COALESCE(MAX(number), 0) FROM attempts WHERE job_id = id) FROM jobs WHERE id = ?"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(id).Step());
  if (!found) return NotFound("no job \"", id, "\"");
  Row row;
  row.id = id;
  row.state = static_cast<v1::JobState>(statement.Int(0));
  row.last_sequence = static_cast<uint64_t>(statement.Int(1));
  row.failures = statement.Int(2);
  row.checkpoint_step = static_cast<uint64_t>(statement.Int(3));
  row.attempt = static_cast<uint32_t>(statement.Int(4));
  return row;
}

absl::Status Store::ReadAttempts(v1::Job* job) {
  HONE_ASSIGN_OR_RETURN(Statement statement,
                        db_->Prepare("SELECT number, started_us, ended_us, exit, message, first_step, last_step, device "
                                     "FROM attempts WHERE job_id = ? ORDER BY number"));
  statement.Bind(job->id());
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return absl::OkStatus();
    v1::Attempt* attempt = job->add_attempts();
    attempt->set_number(static_cast<uint32_t>(statement.Int(0)));
    *attempt->mutable_start_time() = ToTimestamp(statement.Int(1));
    if (!statement.IsNull(2)) *attempt->mutable_end_time() = ToTimestamp(statement.Int(2));
    attempt->set_exit(statement.Text(3));
    attempt->set_message(statement.Text(4));
    attempt->set_first_step(static_cast<uint64_t>(statement.Int(5)));
    attempt->set_last_step(static_cast<uint64_t>(statement.Int(6)));
    attempt->set_device(statement.Text(7));
  }
}

absl::StatusOr<v1::Job> Store::ReadJob(const std::string& id, bool full) {
  const std::string sql = StrCat("SELECT ", kJobColumns,
                                 ", resolved_spec, artifacts, (SELECT plan FROM plans WHERE job_id = id) FROM jobs "
                                 "WHERE id = ?");
  HONE_ASSIGN_OR_RETURN(Statement statement, db_->Prepare(sql.c_str()));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(id).Step());
  if (!found) return NotFound("no job \"", id, "\"");
  v1::Job job;
  HONE_RETURN_IF_ERROR(ReadJobColumns(statement, &job));
  if (full) {
    HONE_RETURN_IF_ERROR(Parse(statement.Text(16), job.mutable_resolved_spec()));
    v1::ListArtifactsResponse artifacts;
    HONE_RETURN_IF_ERROR(Parse(statement.Text(17), &artifacts));
    job.mutable_artifacts()->Swap(artifacts.mutable_artifacts());
  }
  if (!statement.IsNull(18)) HONE_RETURN_IF_ERROR(Parse(statement.Text(18), job.mutable_plan()));
  HONE_RETURN_IF_ERROR(ReadAttempts(&job));
  return job;
}

absl::StatusOr<v1::Job> Store::GetJob(const std::string& id) {
  std::lock_guard lock(mutex_);
  return ReadJob(id, true);
}

absl::StatusOr<JobHead> Store::GetJobHead(const std::string& id) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(const Row row, ReadRow(id));
  return JobHead{row.state, row.last_sequence};
}

absl::StatusOr<int64_t> Store::Failures(const std::string& id) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(const Row row, ReadRow(id));
  return row.failures;
}

absl::StatusOr<std::string> Store::ResolveJobName(std::string_view name) {
  if (name.size() > kMaxNameBytes) return FieldError("name", StrCat("at most ", kMaxNameBytes, " bytes"));
  if (name.substr(0, 5) == "jobs/") name.remove_prefix(5);
  if (!IsIdText(name)) {
    return FieldError("name", "a job is named \"jobs/<id>\", by its id, or by the first characters of its id");
  }
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement,
                        db_->Prepare("SELECT id FROM jobs WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"));
  statement.Bind(name).Bind(StrCat(name, "~"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return NotFound("no job \"", name, "\"");
  const std::string id = statement.Text(0);
  if (id == name) return id;
  HONE_ASSIGN_OR_RETURN(const bool second, statement.Step());
  if (second) return FieldError("name", StrCat("more than one job begins with \"", name, "\"; give more characters"));
  return id;
}

absl::StatusOr<JobPage> Store::ListJobs(int page_size, const std::string& page_token,
                                        const std::vector<v1::JobState>& states) {
  HONE_ASSIGN_OR_RETURN(const int size, PageSize(page_size));
  int64_t before = INT64_MAX;
  if (!page_token.empty()) {
    HONE_ASSIGN_OR_RETURN(before, ParsePageToken('j', page_token));
  }
  std::string filter;
  for (const v1::JobState state : states) {
    if (!v1::JobState_IsValid(state)) return FieldError("states", StrCat(static_cast<int>(state), " is no state"));
    filter += StrCat(filter.empty() ? " AND state IN (" : ", ", static_cast<int>(state));
  }
  if (!filter.empty()) filter += ")";
  const std::string sql =
      StrCat("SELECT ", kJobColumns, " FROM jobs WHERE ordinal < ?", filter, " ORDER BY ordinal DESC LIMIT ?");

  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement, db_->Prepare(sql.c_str()));
  statement.Bind(before).Bind(int64_t{size} + 1);
  JobPage page;
  int64_t last_ordinal = 0;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) break;
    if (page.jobs.size() == static_cast<size_t>(size)) {
      page.next_page_token = PageToken('j', last_ordinal);
      break;
    }
    last_ordinal = statement.Int(0);
    HONE_RETURN_IF_ERROR(ReadJobColumns(statement, &page.jobs.emplace_back()));
  }
  for (v1::Job& job : page.jobs) HONE_RETURN_IF_ERROR(ReadAttempts(&job));
  return page;
}

absl::StatusOr<std::vector<v1::JobEvent>> Store::Events(const std::string& id, uint64_t after, int limit) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT event FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence LIMIT ?"));
  statement.Bind(id).Bind(static_cast<int64_t>(std::min<uint64_t>(after, INT64_MAX))).Bind(int64_t{limit});
  std::vector<v1::JobEvent> events;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return events;
    HONE_RETURN_IF_ERROR(Parse(statement.Text(0), &events.emplace_back()));
  }
}

absl::StatusOr<std::optional<QueuedJob>> Store::NextQueued() {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement,
                        db_->Prepare("SELECT id, priority, reason, failures, (SELECT plan FROM plans WHERE job_id = id) "
                                     "FROM jobs WHERE state = ? ORDER BY priority DESC, ordinal LIMIT 1"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(int64_t{v1::QUEUED}).Step());
  if (!found) return std::nullopt;
  QueuedJob job;
  job.id = statement.Text(0);
  job.priority = static_cast<int32_t>(statement.Int(1));
  job.reason = statement.Text(2);
  job.failures = statement.Int(3);
  HONE_RETURN_IF_ERROR(Parse(statement.Text(4), &job.plan));
  return job;
}

absl::StatusOr<std::vector<std::string>> Store::JobsIn(const std::vector<v1::JobState>& states) {
  std::lock_guard lock(mutex_);
  std::vector<std::string> ids;
  for (const v1::JobState state : states) {
    HONE_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("SELECT id FROM jobs WHERE state = ? ORDER BY ordinal"));
    statement.Bind(int64_t{state});
    while (true) {
      HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
      if (!more) break;
      ids.push_back(statement.Text(0));
    }
  }
  return ids;
}

absl::StatusOr<std::map<v1::JobState, uint64_t>> Store::CountJobs() {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement, db_->Prepare("SELECT state, COUNT(*) FROM jobs GROUP BY state"));
  std::map<v1::JobState, uint64_t> counts;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return counts;
    counts[static_cast<v1::JobState>(statement.Int(0))] = static_cast<uint64_t>(statement.Int(1));
  }
}

absl::StatusOr<std::optional<v1::Job>> Store::ReadRequest(std::string_view request_id, std::string_view fingerprint) {
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT fingerprint, resource FROM request_ids WHERE method = 'CreateJob' AND request_id = ?"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(request_id).Step());
  if (!found) return std::nullopt;
  const std::string id = statement.Text(1);
  if (statement.Text(0) != fingerprint) {
    return FieldError("request_id", StrCat("was used before, for job ", id,
                                           " with another spec; a new request needs a new request_id"));
  }
  HONE_ASSIGN_OR_RETURN(v1::Job job, ReadJob(id, true));
  return job;
}

absl::StatusOr<std::optional<v1::Job>> Store::FindRequest(std::string_view request_id, std::string_view fingerprint) {
  std::lock_guard lock(mutex_);
  return ReadRequest(request_id, fingerprint);
}

// ---- jobs: writing

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
  HONE_ASSIGN_OR_RETURN(Statement insert,
                        db_->Prepare("INSERT INTO jobs (id, display_name, priority, state, reason, message, created_us, "
                                     "last_sequence, spec, resolved_spec) VALUES (?, ?, ?, 0, '', '', ?, 0, ?, ?)"));
  insert.Bind(id).Bind(job.display_name).Bind(int64_t{job.priority}).Bind(received);
  insert.BindBlob(job.spec.SerializeAsString()).BindBlob(job.resolved_spec.SerializeAsString());
  HONE_RETURN_IF_ERROR(insert.Run());
  if (!job.request_id.empty()) {
    HONE_ASSIGN_OR_RETURN(Statement request,
                          db_->Prepare("INSERT INTO request_ids (method, request_id, fingerprint, resource, created_us) "
                                       "VALUES ('CreateJob', ?, ?, ?, ?)"));
    HONE_RETURN_IF_ERROR(request.Bind(job.request_id).Bind(job.fingerprint).Bind(id).Bind(now).Run());
  }
  Row row;
  row.id = id;
  JobUpdate validating;
  validating.states.push_back({v1::VALIDATING, "SUBMITTED", ""});
  HONE_RETURN_IF_ERROR(ApplyUpdate(&row, validating));
  JobUpdate queued;
  queued.plan = job.plan;
  for (const std::string& warning : job.warnings) queued.events.emplace_back().set_warning(warning);
  *queued.events.emplace_back().mutable_plan() = job.plan;
  queued.states.push_back({v1::QUEUED, "ADMITTED", "planned; waits for its turn"});
  return ApplyUpdate(&row, queued);
}

absl::Status Store::Update(const std::string& id, const std::vector<v1::JobState>& expected, const JobUpdate& update) {
  v1::JobState from = v1::JOB_STATE_UNSPECIFIED;
  v1::JobState to = v1::JOB_STATE_UNSPECIFIED;
  bool events = false;
  {
    std::lock_guard lock(mutex_);
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
  }
  if (events && observer_) observer_(id, from, to);
  return absl::OkStatus();
}

absl::Status Store::InsertEvent(Row* row, uint32_t attempt, int64_t time_us, v1::JobEvent event) {
  event.set_sequence(++row->last_sequence);
  event.set_attempt(attempt);
  *event.mutable_time() = ToTimestamp(time_us);
  HONE_ASSIGN_OR_RETURN(Statement insert,
                        db_->Prepare("INSERT INTO events (job_id, sequence, event) VALUES (?, ?, ?)"));
  return insert.Bind(row->id)
      .Bind(static_cast<int64_t>(event.sequence()))
      .BindBlob(event.SerializeAsString())
      .Run();
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
  for (const JobUpdate::Step& step : update.states) {
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
    HONE_ASSIGN_OR_RETURN(Statement set, db_->Prepare("UPDATE jobs SET reason = ?, message = ? WHERE id = ?"));
    HONE_RETURN_IF_ERROR(set.Bind(step.reason).Bind(step.message).Bind(row->id).Run());
  }
  HONE_ASSIGN_OR_RETURN(Statement set,
                        db_->Prepare("UPDATE jobs SET state = ?1, last_sequence = ?2, failures = ?3, checkpoint_step = ?4, "
                                     "started_us = CASE WHEN ?5 AND started_us IS NULL THEN ?6 ELSE started_us END, "
                                     "ended_us = CASE WHEN ?7 THEN ?6 ELSE ended_us END WHERE id = ?8"));
  set.Bind(int64_t{row->state}).Bind(static_cast<int64_t>(row->last_sequence)).Bind(row->failures);
  set.Bind(static_cast<int64_t>(row->checkpoint_step)).Bind(int64_t{update.start_attempt}).Bind(now);
  set.Bind(int64_t{!update.states.empty() && IsTerminal(row->state)}).Bind(row->id);
  HONE_RETURN_IF_ERROR(set.Run());
  return ApplyRecords(row, update);
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
    HONE_ASSIGN_OR_RETURN(Statement set,
                          db_->Prepare("UPDATE attempts SET last_step = ?1, first_step = CASE WHEN first_step = 0 THEN ?1 "
                                       "ELSE first_step END WHERE job_id = ?2 AND number = ?3"));
    set.Bind(static_cast<int64_t>(update.last_step->step())).Bind(row->id).Bind(int64_t{row->attempt});
    HONE_RETURN_IF_ERROR(set.Run());
  }
  if (update.end_attempt.has_value()) {
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

// ---- models

absl::StatusOr<v1::Model> Store::PutModel(const v1::Model& model) {
  std::lock_guard lock(mutex_);
  HONE_RETURN_IF_ERROR(Write([&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(Statement find, db_->Prepare("SELECT model FROM models WHERE id = ?"));
    HONE_ASSIGN_OR_RETURN(const bool found, find.Bind(model.id()).Step());
    if (found) {
      v1::Model earlier;
      HONE_RETURN_IF_ERROR(Parse(find.Text(0), &earlier));
      if (earlier.path() != model.path()) {
        return absl::AlreadyExistsError(
            ToAbsl(StrCat("id: model \"", model.id(), "\" is ", earlier.path(), "; choose another id or delete it first")));
      }
    }
    HONE_ASSIGN_OR_RETURN(Statement put, db_->Prepare("INSERT INTO models (id, model) VALUES (?, ?) "
                                                      "ON CONFLICT (id) DO UPDATE SET model = excluded.model"));
    return put.Bind(model.id()).BindBlob(model.SerializeAsString()).Run();
  }));
  return model;
}

absl::StatusOr<v1::Model> Store::GetModel(std::string_view id) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement find, db_->Prepare("SELECT model FROM models WHERE id = ?"));
  HONE_ASSIGN_OR_RETURN(const bool found, find.Bind(id).Step());
  if (!found) return NotFound("no model \"", id, "\" in the registry; `hone models ls` lists them");
  v1::Model model;
  HONE_RETURN_IF_ERROR(Parse(find.Text(0), &model));
  return model;
}

absl::StatusOr<ModelPage> Store::ListModels(int page_size, const std::string& page_token) {
  HONE_ASSIGN_OR_RETURN(const int size, PageSize(page_size));
  int64_t after = 0;
  if (!page_token.empty()) {
    HONE_ASSIGN_OR_RETURN(after, ParsePageToken('m', page_token));
  }
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement,
                        db_->Prepare("SELECT ordinal, model FROM models WHERE ordinal > ? ORDER BY ordinal LIMIT ?"));
  statement.Bind(after).Bind(int64_t{size} + 1);
  ModelPage page;
  int64_t last_ordinal = 0;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return page;
    if (page.models.size() == static_cast<size_t>(size)) {
      page.next_page_token = PageToken('m', last_ordinal);
      return page;
    }
    last_ordinal = statement.Int(0);
    HONE_RETURN_IF_ERROR(Parse(statement.Text(1), &page.models.emplace_back()));
  }
}

absl::Status Store::DeleteModel(std::string_view id) {
  std::lock_guard lock(mutex_);
  return Write([&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(Statement erase, db_->Prepare("DELETE FROM models WHERE id = ? RETURNING id"));
    HONE_ASSIGN_OR_RETURN(const bool found, erase.Bind(id).Step());
    if (!found) return NotFound("no model \"", id, "\" in the registry");
    HONE_ASSIGN_OR_RETURN(const bool more, erase.Step());
    return more ? Internal("store: two models with one id") : absl::OkStatus();
  });
}

// ---- blobs

absl::Status Store::PutBlob(std::string_view digest, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  return Write([&]() -> absl::Status {
    HONE_ASSIGN_OR_RETURN(Statement put, db_->Prepare("INSERT OR IGNORE INTO blobs (digest, bytes, created_us) "
                                                      "VALUES (?, ?, ?)"));
    return put.Bind(digest).Bind(static_cast<int64_t>(bytes)).Bind(NowMicros()).Run();
  });
}

absl::StatusOr<std::optional<uint64_t>> Store::BlobBytes(std::string_view digest) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement find, db_->Prepare("SELECT bytes FROM blobs WHERE digest = ?"));
  HONE_ASSIGN_OR_RETURN(const bool found, find.Bind(digest).Step());
  if (!found) return std::nullopt;
  return static_cast<uint64_t>(find.Int(0));
}

}  // namespace hone
