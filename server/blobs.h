// Uploaded data, named by its SHA-256: a temporary file, digest checked, fsync, rename, fsync of the folder, then a row
// in the store. Not here: gRPC.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/sha256.h"
#include "server/layout.h"
#include "server/store/store.h"

namespace hone {

class BlobStore;

// One upload. Deleted before Finish, it leaves nothing behind.
class BlobWriter {
 public:
  ~BlobWriter();
  BlobWriter(const BlobWriter&) = delete;
  BlobWriter& operator=(const BlobWriter&) = delete;
  // INVALID_ARGUMENT if more arrives than was announced.
  absl::Status Append(std::string_view bytes);
  // INVALID_ARGUMENT with reason DIGEST_MISMATCH unless what arrived is what was named; else it is on disk.
  absl::Status Finish();
  uint64_t received() const { return received_; }

 private:
  friend class BlobStore;
  BlobWriter(BlobStore* store, std::string digest, uint64_t total, std::string temporary, int fd)
      : store_(store), digest_(std::move(digest)), total_(total), temporary_(std::move(temporary)), fd_(fd) {}

  BlobStore* store_;
  const std::string digest_;
  const uint64_t total_;
  const std::string temporary_;
  int fd_;
  uint64_t received_ = 0;
  Sha256 hash_;
};

class BlobStore {
 public:
  static constexpr uint64_t kMaxBytes = uint64_t{16} << 30;
  static constexpr int kMaxWriters = 16;
  static constexpr uint64_t kKeepFree = uint64_t{256} << 20;  // for the store and checkpoints

  BlobStore(const Layout* layout, Store* store) : layout_(layout), store_(store) {}
  // Removes what unfinished uploads of an earlier daemon left. Before the first upload.
  absl::Status Clean();
  // Bytes of a finished blob whose file is there.
  absl::StatusOr<std::optional<uint64_t>> Find(const std::string& digest);
  absl::StatusOr<std::unique_ptr<BlobWriter>> Begin(const std::string& digest, uint64_t total_bytes);

 private:
  friend class BlobWriter;
  const Layout* layout_;
  Store* store_;
  std::atomic<int> writers_{0};
  std::atomic<uint64_t> next_{0};
};

// Free bytes for this user on the disk that holds `path`; 0 if unknown.
uint64_t DiskFree(const std::string& path);

}  // namespace hone
