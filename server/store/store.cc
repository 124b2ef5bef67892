#include "server/store/store.h"

#include <chrono>
#include <iterator>

#include "proto/base/status.h"
#include "server/store/records.h"
#include "server/store/schema.h"

namespace hone {

int64_t NowMicros() {
  using std::chrono::duration_cast;
  return duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

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
        return absl::AlreadyExistsError(ToAbsl(
            StrCat("id: model \"", model.id(), "\" is ", earlier.path(), "; choose another id or delete it first")));
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
