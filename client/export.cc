// hone export: a job's files, streamed from the daemon and checked against their digests.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "client/commands.h"
#include "client/interrupt.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kTries = 5;

// Names come from the daemon, but what they may touch is decided here: nothing outside the output folder.
absl::StatusOr<std::string> SafeTarget(const std::string& folder, const std::string& path) {
  const std::filesystem::path relative = std::filesystem::path(path).lexically_normal();
  const bool escapes =
      relative.empty() || relative.is_absolute() || *relative.begin() == ".." || path.find('\0') != std::string::npos;
  if (escapes) return InvalidArgument("the daemon names a file outside the output folder: ", Printable(path));
  return (std::filesystem::path(folder) / relative).string();
}

class PartFile {
 public:
  static absl::StatusOr<PartFile> Open(const std::string& path) {
    PartFile file;
    file.fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file.fd_ < 0) return FailedPrecondition("cannot write ", path, ": ", std::strerror(errno));
    return file;
  }
  PartFile(PartFile&& other) noexcept : fd_(other.fd_), written_(other.written_) { other.fd_ = -1; }
  PartFile& operator=(PartFile&&) = delete;
  ~PartFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Append(std::string_view bytes) {
    written_ += bytes.size();
    while (!bytes.empty()) {
      const ssize_t count = write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return ResourceExhausted("writing failed: ", std::strerror(errno));
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return absl::OkStatus();
  }
  uint64_t written() const { return written_; }

 private:
  PartFile() = default;
  int fd_ = -1;
  uint64_t written_ = 0;
};

struct Download {
  Client& client;
  const std::string& job;
  Interrupt& interrupt;
  StatusLine& line;
};

// Continues where a broken stream stopped.
absl::Status FetchBytes(Download& download, const v1::Artifact& artifact, PartFile& part) {
  constexpr uint64_t kShowBytes = uint64_t{8} << 20;  // between two looks
  uint64_t shown = 0;
  absl::Status status;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    status = download.client.ReadArtifact(
        download.job, artifact.path(), part.written(),
        [&](const std::string& data) {
          if (data.size() > artifact.bytes() - std::min(part.written(), artifact.bytes())) {
            return DataLoss("more bytes than the ", artifact.bytes(), " announced");
          }
          if (std::exchange(shown, part.written() / kShowBytes + 1) != part.written() / kShowBytes + 1) {
            download.line.Show(StrCat(Printable(artifact.path()), "  ", FormatBytes(part.written()), " of ",
                                      FormatBytes(artifact.bytes())));
          }
          return part.Append(data);
        },
        download.interrupt.cancellation());
    if (!absl::IsUnavailable(status) || !download.interrupt.Sleep(500)) break;
  }
  return status;
}

absl::Status Fetch(Download& download, const v1::Artifact& artifact, const std::string& target) {
  HONE_RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(target).parent_path().string(), 0755));
  std::error_code error;
  if (std::filesystem::file_size(target, error) == artifact.bytes() && !error) {
    const absl::StatusOr<std::string> have = Sha256HexOfFile(target);
    if (have.ok() && *have == artifact.sha256()) return absl::OkStatus();
  }
  const std::string part_path = target + ".part";
  {
    HONE_ASSIGN_OR_RETURN(PartFile part, PartFile::Open(part_path));
    const absl::Status status = FetchBytes(download, artifact, part);
    if (!status.ok()) {
      std::filesystem::remove(part_path, error);
      return status;
    }
  }
  HONE_ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(part_path));
  if (!artifact.sha256().empty() && digest != artifact.sha256()) {
    std::filesystem::remove(part_path, error);
    return DataLoss("arrived with sha256 ", digest, ", the job wrote ", artifact.sha256());
  }
  HONE_RETURN_IF_ERROR(FsyncFile(part_path));
  std::filesystem::rename(part_path, target, error);
  if (error) return FailedPrecondition("cannot rename to ", target, ": ", error.message());
  return absl::OkStatus();
}

bool Wanted(const std::vector<std::string>& only, const std::string& path) {
  if (only.empty()) return true;
  return std::any_of(only.begin(), only.end(), [&](const std::string& prefix) {
    return path == prefix || path.rfind(prefix.ends_with('/') ? prefix : prefix + "/", 0) == 0;
  });
}

}  // namespace

int RunExport(Context& context, const ExportOptions& options) {
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const std::vector<v1::Artifact> artifacts, client->ListArtifacts(options.job));
  Interrupt interrupt;
  StatusLine line(context.terminal);
  Download download{*client, options.job, interrupt, line};
  const std::string folder = AbsolutePath(context.environment, options.output);
  size_t count = 0;
  size_t unverified = 0;
  uint64_t bytes = 0;
  for (const v1::Artifact& artifact : artifacts) {
    if (!Wanted(options.only, artifact.path())) continue;
    const absl::StatusOr<std::string> target = SafeTarget(folder, artifact.path());
    const absl::Status status = target.ok() ? Fetch(download, artifact, *target) : target.status();
    line.Clear();
    if (interrupt.interrupted()) return kExitDetached;
    if (!status.ok()) return Fail(context, Annotate(status, Printable(artifact.path())));
    ++count;
    bytes += artifact.bytes();
    // A job that failed has recorded no digests.
    unverified += artifact.sha256().empty() ? 1 : 0;
    nlohmann::ordered_json row = {{"path", *target},
                                  {"bytes", artifact.bytes()},
                                  {"sha256", artifact.sha256()},
                                  {"verified", !artifact.sha256().empty()}};
    Out((context.json() ? row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : *target) + "\n");
  }
  if (count == 0) {
    return Fail(context, artifacts.empty()
                             ? FailedPrecondition("job ", options.job, " has no files yet; they come when it ends")
                             : NotFound("no file of job ", options.job, " matches --only"));
  }
  const std::string verdict = unverified == 0 ? "every sha256 as the job wrote it"
                                              : StrCat(unverified, " of them not verified: the job recorded no sha256");
  std::string loads;
  std::error_code error;
  for (const auto& [folder, tool] : {std::pair("adapter", "PEFT"), std::pair("merged", "transformers")}) {
    const std::filesystem::path path = std::filesystem::path(options.output) / folder;
    if (std::filesystem::is_directory(path, error)) loads += StrCat(" ", path.string(), " loads in ", tool, ".");
  }
  Note(context, StrCat(count, " files, ", FormatBytes(bytes), ", ", verdict, ".", loads));
  return kExitOk;
}

}  // namespace hone
