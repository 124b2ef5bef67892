// The tables of hone.db, in one place. PRAGMA user_version holds the number of the newest migration that was applied;
// a change of schema is one more entry in kMigrations, never an edit of an old one. Specs, plans, records and events
// are serialized messages of proto/hone/v1: the schema need not change when a message grows. Times are microseconds
// since the epoch. Step records are not here: they are files (jobs/<id>/attempts/<n>/steps.jsonl).
#pragma once

namespace hone {

inline constexpr const char* kMigrations[] = {
    // 1
    R"sql(
CREATE TABLE jobs (
  ordinal INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of submission: the queue's order within a priority
  id TEXT NOT NULL UNIQUE,
  display_name TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state INTEGER NOT NULL,                     -- hone.v1.JobState
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  started_us INTEGER,
  ended_us INTEGER,
  last_sequence INTEGER NOT NULL,             -- of the newest row in events
  failures INTEGER NOT NULL DEFAULT 0,        -- attempts that crashed since the last new checkpoint
  checkpoint_step INTEGER NOT NULL DEFAULT 0, -- of the newest checkpoint
  spec BLOB NOT NULL,
  resolved_spec BLOB NOT NULL,
  last_step BLOB,
  last_eval BLOB,
  memory BLOB,
  artifacts BLOB,                             -- hone.v1.ListArtifactsResponse
  result_json TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, priority DESC, ordinal);

CREATE TABLE attempts (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  number INTEGER NOT NULL,
  started_us INTEGER NOT NULL,
  ended_us INTEGER,
  exit TEXT NOT NULL DEFAULT '',
  message TEXT NOT NULL DEFAULT '',
  first_step INTEGER NOT NULL DEFAULT 0,
  last_step INTEGER NOT NULL DEFAULT 0,
  device TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (job_id, number)
) WITHOUT ROWID;

CREATE TABLE events (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  sequence INTEGER NOT NULL,                  -- 1, 2, 3, ... without a gap
  event BLOB NOT NULL,                        -- hone.v1.JobEvent
  PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;

CREATE TABLE plans (
  job_id TEXT PRIMARY KEY REFERENCES jobs (id),
  plan BLOB NOT NULL                          -- hone.v1.Plan: made at submission, used by every attempt
) WITHOUT ROWID;

CREATE TABLE models (
  ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  model BLOB NOT NULL                         -- hone.v1.Model
);

CREATE TABLE request_ids (
  method TEXT NOT NULL,
  request_id TEXT NOT NULL,
  fingerprint TEXT NOT NULL,                  -- SHA-256 of what was asked
  resource TEXT NOT NULL,                     -- the id it made
  created_us INTEGER NOT NULL,
  PRIMARY KEY (method, request_id)
) WITHOUT ROWID;

CREATE TABLE blobs (
  digest TEXT PRIMARY KEY,
  bytes INTEGER NOT NULL,
  created_us INTEGER NOT NULL
) WITHOUT ROWID;
)sql",
    // 2: a queue that can be reordered, jobs that wait for jobs, owners, labels, retention.
    R"sql(
ALTER TABLE jobs ADD COLUMN queue_rank INTEGER NOT NULL DEFAULT 0;  -- order within a priority, gaps for moves
ALTER TABLE jobs ADD COLUMN owner_uid INTEGER NOT NULL DEFAULT -1;  -- -1: unknown
ALTER TABLE jobs ADD COLUMN options BLOB;                           -- hone.v1.JobOptions
ALTER TABLE jobs ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;     -- jobs it waits for that have not succeeded yet
ALTER TABLE jobs ADD COLUMN run_us INTEGER NOT NULL DEFAULT 0;      -- of all ended attempts
ALTER TABLE jobs ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;      -- by retention: 1 logs, 2 checkpoints, 4 events
UPDATE jobs SET queue_rank = ordinal * 1048576;
DROP INDEX jobs_by_state;
CREATE INDEX jobs_by_state ON jobs (state, blocked, priority DESC, queue_rank);
CREATE INDEX jobs_by_owner ON jobs (owner_uid, state);
CREATE INDEX jobs_by_end ON jobs (ended_us) WHERE ended_us IS NOT NULL;

CREATE TABLE dependencies (
  after_id TEXT NOT NULL REFERENCES jobs (id),
  job_id TEXT NOT NULL REFERENCES jobs (id),
  PRIMARY KEY (after_id, job_id)
) WITHOUT ROWID;
CREATE INDEX dependencies_by_job ON dependencies (job_id);

CREATE TABLE labels (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (job_id, key)
) WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (key, value, job_id);
)sql",
};

}  // namespace hone
