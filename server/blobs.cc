#include "server/blobs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "server/errors.h"

namespace hone {
namespace {

constexpr std::string_view kTemporaryPrefix = "tmp-";

absl::Status DiskError(std::string_view action, int error) {
  const std::string text = StrCat("storing the upload: cannot ", action, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return WithReason(ResourceExhausted(text), "DISK_FULL");
  return absl::UnavailableError(ToAbsl(text));
}

}  // namespace

BlobWriter::~BlobWriter() {
  if (fd_ >= 0) {
    close(fd_);
    unlink(temporary_.c_str());
  }
  --store_->writers_;
}

absl::Status BlobWriter::Append(std::string_view bytes) {
  if (bytes.size() > total_ - received_) {
    return WithField(InvalidArgument("data: more than the ", total_, " bytes announced in total_bytes"), "total_bytes");
  }
  received_ += bytes.size();
  hash_.Update(bytes);
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return DiskError("write", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status BlobWriter::Finish() {
  if (received_ != total_) {
    return WithField(InvalidArgument("data: ", received_, " bytes arrived, total_bytes says ", total_), "total_bytes");
  }
  const std::string digest = hash_.FinishHex();
  if (digest != digest_) {
    return WithReason(
        WithField(InvalidArgument("digest: what arrived has SHA-256 ", digest, ", not ", digest_), "digest"),
        "DIGEST_MISMATCH");
  }
  if (fsync(fd_) != 0) return DiskError("fsync", errno);
  const std::string path = store_->layout_->Blob(digest_);
  if (rename(temporary_.c_str(), path.c_str()) != 0) return DiskError("rename", errno);
  close(fd_);
  fd_ = -1;
  HONE_RETURN_IF_ERROR(FsyncDirectory(store_->layout_->Blobs()));
  return store_->store_->PutBlob(digest_, total_);
}

absl::Status BlobStore::Clean() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(layout_->Blobs(), error)) {
    if (entry.path().filename().string().rfind(kTemporaryPrefix, 0) == 0) unlink(entry.path().c_str());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<uint64_t>> BlobStore::Find(const std::string& digest) {
  if (!IsSha256Hex(digest))
    return WithField(InvalidArgument("digest: 64 lower-case hex digits are expected"), "digest");
  HONE_ASSIGN_OR_RETURN(const std::optional<uint64_t> bytes, store_->BlobBytes(digest));
  struct stat info;
  const bool there = bytes.has_value() && stat(layout_->Blob(digest).c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
                     static_cast<uint64_t>(info.st_size) == *bytes;
  return there ? bytes : std::nullopt;
}

absl::StatusOr<std::unique_ptr<BlobWriter>> BlobStore::Begin(const std::string& digest, uint64_t total_bytes) {
  if (!IsSha256Hex(digest))
    return WithField(InvalidArgument("digest: 64 lower-case hex digits are expected"), "digest");
  if (total_bytes > kMaxBytes) {
    return WithField(InvalidArgument("total_bytes: ", total_bytes, "; a blob has at most ", kMaxBytes), "total_bytes");
  }
  const uint64_t free = DiskFree(layout_->Blobs());
  if (free > 0 && (free < kKeepFree || free - kKeepFree < total_bytes)) {
    return WithReason(ResourceExhausted("the daemon's disk has ", free, " bytes free; the upload needs ", total_bytes,
                                        " and ", kKeepFree, " stay free"),
                      "DISK_FULL");
  }
  if (++writers_ > kMaxWriters) {
    --writers_;
    return WithReason(ResourceExhausted("too many uploads at once; try again in a moment"), "OVERLOADED");
  }
  const std::string temporary = StrCat(layout_->Blobs(), "/", kTemporaryPrefix, getpid(), "-", ++next_);
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
  if (fd < 0) {
    const int error = errno;
    --writers_;
    return DiskError("create a file", error);
  }
  return std::unique_ptr<BlobWriter>(new BlobWriter(this, digest, total_bytes, temporary, fd));
}

uint64_t DiskFree(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return 0;
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace hone
