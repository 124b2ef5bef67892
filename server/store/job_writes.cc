// Store: changes of jobs, each one transaction with its events.
#include <sys/random.h>

#include <algorithm>
#include <iterator>

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
                   "last_sequence, spec, resolved_spec) VALUES (?, ?, ?, 0, '', '', ?, 0, ?, ?)"));
  insert.Bind(id).Bind(job.display_name).Bind(int64_t{job.priority}).Bind(received);
  insert.BindBlob(job.spec.SerializeAsString()).BindBlob(job.resolved_spec.SerializeAsString());
  HONE_RETURN_IF_ERROR(insert.Run());
  if (!job.request_id.empty()) {
    HONE_ASSIGN_OR_RETURN(
        Statement request,
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
  return insert.Bind(row->id).Bind(static_cast<int64_t>(event.sequence())).BindBlob(event.SerializeAsString()).Run();
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
  HONE_ASSIGN_OR_RETURN(
      Statement set,
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
    HONE_ASSIGN_OR_RETURN(
        Statement set, db_->Prepare("UPDATE attempts SET last_step = ?1, first_step = CASE WHEN first_step = 0 THEN ?1 "
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

}  // namespace hone
