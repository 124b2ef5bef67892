// Store: questions about jobs.
#include <algorithm>

#include "proto/base/status.h"
#include "server/store/records.h"
#include "server/store/store.h"

namespace hone {
namespace {

constexpr size_t kMaxNameBytes = 128;

bool IsIdText(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); });
}

// Columns of a list or full job, in the order ReadJobColumns takes them.
constexpr const char* kJobColumns =
    "ordinal, id, display_name, priority, state, reason, message, created_us, started_us, ended_us, last_sequence, "
    "spec, last_step, last_eval, memory, result_json, options, queue_rank, owner_uid, run_us, checkpoint_step";

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
  if (!row.IsNull(16)) HONE_RETURN_IF_ERROR(Parse(row.Text(16), job->mutable_options()));
  job->set_queue_rank(row.Int(17));
  if (row.Int(18) >= 0) job->set_owner_uid(row.Int(18));
  job->set_run_seconds(static_cast<double>(row.Int(19)) * 1e-6);
  job->set_checkpoint_step(static_cast<uint64_t>(row.Int(20)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Store::Row> Store::ReadRow(const std::string& id) {
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT state, last_sequence, failures, checkpoint_step, "
                   "(SELECT COALESCE(MAX(number), 0) FROM attempts WHERE job_id = id), reason, blocked, owner_uid "
                   "FROM jobs WHERE id = ?"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(id).Step());
  if (!found) return NotFound("no job \"", id, "\"");
  Row row;
  row.id = id;
  row.state = static_cast<v1::JobState>(statement.Int(0));
  row.last_sequence = static_cast<uint64_t>(statement.Int(1));
  row.failures = statement.Int(2);
  row.checkpoint_step = static_cast<uint64_t>(statement.Int(3));
  row.attempt = static_cast<uint32_t>(statement.Int(4));
  row.reason = statement.Text(5);
  row.blocked = statement.Int(6);
  row.owner_uid = statement.Int(7);
  return row;
}

absl::Status Store::ReadAttempts(v1::Job* job) {
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
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
    HONE_RETURN_IF_ERROR(Parse(statement.Text(21), job.mutable_resolved_spec()));
    v1::ListArtifactsResponse artifacts;
    HONE_RETURN_IF_ERROR(Parse(statement.Text(22), &artifacts));
    job.mutable_artifacts()->Swap(artifacts.mutable_artifacts());
  }
  if (!statement.IsNull(23)) HONE_RETURN_IF_ERROR(Parse(statement.Text(23), job.mutable_plan()));
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
  return JobHead{row.state, row.last_sequence, row.reason, row.owner_uid};
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

absl::StatusOr<JobPage> Store::ListJobs(int page_size, const std::string& page_token, const JobFilter& filter) {
  HONE_ASSIGN_OR_RETURN(const int size, PageSize(page_size));
  int64_t before = INT64_MAX;
  if (!page_token.empty()) {
    HONE_ASSIGN_OR_RETURN(before, ParsePageToken('j', page_token));
  }
  std::string where;
  for (const v1::JobState state : filter.states) {
    if (!v1::JobState_IsValid(state)) return FieldError("states", StrCat(static_cast<int>(state), " is no state"));
    where += StrCat(where.empty() ? " AND state IN (" : ", ", static_cast<int>(state));
  }
  if (!where.empty()) where += ")";
  if (filter.owner_uid.has_value()) where += " AND owner_uid = ?";
  if (!filter.name_contains.empty()) where += " AND instr(display_name, ?) > 0";
  for (size_t i = 0; i < filter.labels.size(); ++i) {
    where += " AND EXISTS (SELECT 1 FROM labels WHERE job_id = jobs.id AND key = ? AND value = ?)";
  }
  const std::string sql =
      StrCat("SELECT ", kJobColumns, " FROM jobs WHERE ordinal < ?", where, " ORDER BY ordinal DESC LIMIT ?");

  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement, db_->Prepare(sql.c_str()));
  statement.Bind(before);
  if (filter.owner_uid.has_value()) statement.Bind(*filter.owner_uid);
  if (!filter.name_contains.empty()) statement.Bind(filter.name_contains);
  for (const auto& [key, value] : filter.labels) statement.Bind(key).Bind(value);
  statement.Bind(int64_t{size} + 1);
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
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT id, priority, reason, failures, (SELECT plan FROM plans WHERE job_id = id), options "
                   "FROM jobs WHERE state = ? AND blocked = 0 ORDER BY priority DESC, queue_rank LIMIT 1"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(int64_t{v1::QUEUED}).Step());
  if (!found) return std::nullopt;
  QueuedJob job;
  job.id = statement.Text(0);
  job.priority = static_cast<int32_t>(statement.Int(1));
  job.reason = statement.Text(2);
  job.failures = statement.Int(3);
  HONE_RETURN_IF_ERROR(Parse(statement.Text(4), &job.plan));
  v1::JobOptions options;
  HONE_RETURN_IF_ERROR(Parse(statement.Text(5), &options));
  job.preemptible = options.preemptible();
  return job;
}

absl::StatusOr<std::vector<HeldJob>> Store::HeldJobs() {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(Statement statement,
                        db_->Prepare("SELECT id, reason, resolved_spec, (SELECT plan FROM plans WHERE job_id = id) "
                                     "FROM jobs WHERE state = ? ORDER BY priority DESC, queue_rank"));
  statement.Bind(int64_t{v1::HELD});
  std::vector<HeldJob> jobs;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return jobs;
    HeldJob& job = jobs.emplace_back();
    job.id = statement.Text(0);
    job.reason = statement.Text(1);
    HONE_RETURN_IF_ERROR(Parse(statement.Text(2), &job.resolved_spec));
    HONE_RETURN_IF_ERROR(Parse(statement.Text(3), &job.plan));
  }
}

absl::StatusOr<std::vector<EndedJob>> Store::EndedJobs(int64_t before_us, int64_t bits, int limit) {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT id, ended_us, purged, last_sequence FROM jobs WHERE ended_us IS NOT NULL AND ended_us < ? "
                   "AND purged & ? <> ? ORDER BY ended_us LIMIT ?"));
  statement.Bind(before_us).Bind(bits).Bind(bits).Bind(int64_t{limit});
  std::vector<EndedJob> jobs;
  while (true) {
    HONE_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return jobs;
    jobs.push_back({statement.Text(0), statement.Int(1), statement.Int(2), statement.Int(3)});
  }
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

absl::StatusOr<std::optional<int64_t>> Store::OldestWait() {
  std::lock_guard lock(mutex_);
  HONE_ASSIGN_OR_RETURN(
      Statement statement,
      db_->Prepare("SELECT MIN(MAX(created_us, COALESCE((SELECT MAX(ended_us) FROM attempts WHERE job_id = jobs.id), "
                   "0))) FROM jobs WHERE state = ? AND blocked = 0"));
  HONE_ASSIGN_OR_RETURN(const bool found, statement.Bind(int64_t{v1::QUEUED}).Step());
  if (!found || statement.IsNull(0)) return std::nullopt;
  return statement.Int(0);
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

}  // namespace hone
