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
};

}  // namespace hone
