// SQLite as the store uses it: one connection, statements, transactions, errors as absl::Status. Not thread-safe: the
// store holds a mutex around it. Errors: RESOURCE_EXHAUSTED for a full disk, DATA_LOSS for a damaged file, UNAVAILABLE
// for a file that is locked or cannot be read or written, INTERNAL for the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace hone {

// Payload of a status: a reason for programs, UPPER_SNAKE_CASE. A full disk has DISK_FULL.
inline constexpr char kStatusReasonPayload[] = "hone.dev/reason";

class Database;

// A prepared statement. Parameters are bound in order; columns are read after Step returned true.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  Statement& Bind(int64_t value);
  Statement& Bind(std::string_view text);
  Statement& BindBlob(std::string_view bytes);
  Statement& BindNull();

  // True: a row is there. False: done. A mistake in Bind shows here.
  absl::StatusOr<bool> Step();
  // For statements that give no row.
  absl::Status Run();

  bool IsNull(int column) const;
  int64_t Int(int column) const;
  std::string Text(int column) const;  // text or blob

 private:
  friend class Database;
  Statement(sqlite3* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
  void Note(int code);

  sqlite3* db_;
  sqlite3_stmt* statement_;
  int next_ = 1;
  int bind_error_ = 0;
};

class Database {
 public:
  // Opens or creates, in WAL mode with synchronous=FULL: what was committed survives a power cut.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  absl::Status Exec(const char* sql);
  absl::StatusOr<Statement> Prepare(const char* sql);
  absl::StatusOr<int64_t> QueryInt(const char* sql);

 private:
  explicit Database(sqlite3* db) : db_(db) {}
  sqlite3* db_;
};

// BEGIN IMMEDIATE; rolled back unless Commit returned OK.
class Transaction {
 public:
  static absl::StatusOr<Transaction> Begin(Database* db);
  Transaction(Transaction&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();
  absl::Status Commit();

 private:
  explicit Transaction(Database* db) : db_(db) {}
  Database* db_;
};

}  // namespace hone
