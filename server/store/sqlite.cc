#include "server/store/sqlite.h"

#include <sqlite3.h>

#include <utility>

#include "absl/strings/cord.h"
#include "proto/base/status.h"

namespace hone {
namespace {

absl::Status SqliteError(sqlite3* db, int code, std::string_view action) {
  const std::string text = StrCat("store: ", action, ": ", db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
  // The file of shared memory cannot grow: on a full disk this is what the first access to a new page says.
  const bool full = (code & 0xff) == SQLITE_FULL || code == SQLITE_IOERR_SHMSIZE;
  if (full) {
    absl::Status status = ResourceExhausted(text, "; free some disk space in the state folder");
    status.SetPayload(kStatusReasonPayload, absl::Cord("DISK_FULL"));
    return status;
  }
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(ToAbsl(text));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::UnavailableError(ToAbsl(text));
    default:
      return absl::InternalError(ToAbsl(text));
  }
}

}  // namespace

Statement::Statement(Statement&& other) noexcept
    : db_(other.db_),
      statement_(std::exchange(other.statement_, nullptr)),
      next_(other.next_),
      bind_error_(other.bind_error_) {}

Statement::~Statement() { sqlite3_finalize(statement_); }

void Statement::Note(int code) {
  if (code != SQLITE_OK && bind_error_ == 0) bind_error_ = code;
}

Statement& Statement::Bind(int64_t value) {
  Note(sqlite3_bind_int64(statement_, next_++, value));
  return *this;
}

Statement& Statement::Bind(std::string_view text) {
  Note(sqlite3_bind_text64(statement_, next_++, text.data() ? text.data() : "", text.size(), SQLITE_TRANSIENT,
                           SQLITE_UTF8));
  return *this;
}

Statement& Statement::BindBlob(std::string_view bytes) {
  Note(sqlite3_bind_blob64(statement_, next_++, bytes.data() ? bytes.data() : "", bytes.size(), SQLITE_TRANSIENT));
  return *this;
}

Statement& Statement::BindNull() {
  Note(sqlite3_bind_null(statement_, next_++));
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  if (bind_error_ != 0) return SqliteError(db_, bind_error_, "bind");
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return SqliteError(db_, code, "step");
}

absl::Status Statement::Run() {
  HONE_ASSIGN_OR_RETURN(const bool row, Step());
  if (row) return Internal("store: a statement gave a row that nobody expected");
  return absl::OkStatus();
}

bool Statement::IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Text(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  if (data == nullptr || size <= 0) return {};
  return std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path) {
  sqlite3* raw = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  const int code = sqlite3_open_v2(path.c_str(), &raw, flags, nullptr);
  std::unique_ptr<Database> db(new Database(raw));
  if (code != SQLITE_OK) return Annotate(SqliteError(raw, code, "open"), path);
  sqlite3_extended_result_codes(raw, 1);
  sqlite3_busy_timeout(raw, 5000);
  const absl::Status ready = db->Exec(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;"
      "PRAGMA cell_size_check=ON;");
  if (!ready.ok()) return Annotate(ready, path);
  return db;
}

Database::~Database() { sqlite3_close_v2(db_); }

absl::Status Database::Exec(const char* sql) {
  const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return SqliteError(db_, code, "exec");
  return absl::OkStatus();
}

absl::StatusOr<Statement> Database::Prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v2(db_, sql, -1, &statement, nullptr);
  if (code != SQLITE_OK) return SqliteError(db_, code, "prepare");
  return Statement(db_, statement);
}

absl::StatusOr<int64_t> Database::QueryInt(const char* sql) {
  HONE_ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
  HONE_ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return Internal("store: no row for: ", sql);
  return statement.Int(0);
}

absl::StatusOr<Transaction> Transaction::Begin(Database* db) {
  HONE_RETURN_IF_ERROR(db->Exec("BEGIN IMMEDIATE"));
  return Transaction(db);
}

Transaction::~Transaction() {
  if (db_ != nullptr) (void)db_->Exec("ROLLBACK");
}

absl::Status Transaction::Commit() {
  HONE_RETURN_IF_ERROR(db_->Exec("COMMIT"));
  db_ = nullptr;
  return absl::OkStatus();
}

}  // namespace hone
