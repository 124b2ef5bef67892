#include "client/job_file.h"

#include <unistd.h>

#include <filesystem>

#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

constexpr size_t kMaxJobFile = size_t{1} << 20;

absl::StatusOr<std::string> ReadStdin() {
  std::string text;
  char buffer[65536];
  ssize_t count;
  while ((count = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) {
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > kMaxJobFile) return InvalidArgument("stdin: more than ", kMaxJobFile, " bytes");
  }
  return text;
}

// In the current folder if it is there, else beside the job file.
std::string Locate(const Environment& environment, const std::string& folder, const std::string& source) {
  const std::string here = AbsolutePath(environment, source);
  std::error_code error;
  if (std::filesystem::exists(here, error) || source.rfind('/', 0) == 0 || source.rfind('~', 0) == 0) return here;
  const std::string beside = AbsolutePath(environment, folder + "/" + source);
  return std::filesystem::exists(beside, error) ? beside : here;
}

absl::Status UploadField(const Environment& environment, JobFile& file, Client& client,
                         const std::function<void(const std::string&, uint64_t, uint64_t)>& on_progress,
                         const std::string& field, std::string& source) {
  if (source.empty() || source.rfind("sha256:", 0) == 0) return absl::OkStatus();
  const std::string path = Locate(environment, file.folder, source);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return FieldError(field, StrCat("no file ", path, std::filesystem::is_directory(path, error) ? " (a folder)" : ""));
  }
  std::function<void(uint64_t, uint64_t)> progress;
  if (on_progress) progress = [&](uint64_t done, uint64_t total) { on_progress(source, done, total); };
  const absl::StatusOr<std::string> digest = client.UploadFile(path, progress);
  if (!digest.ok()) return Annotate(digest.status(), field);
  file.uploaded[*digest] = source;
  source = "sha256:" + *digest;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JobFile> LoadJobFile(const std::string& path, const std::vector<std::string>& sets) {
  const absl::StatusOr<std::string> text = path == "-" ? ReadStdin() : ReadFile(path, kMaxJobFile);
  if (!text.ok()) {
    return InvalidArgument(text.status().message(), "; a job file is YAML, and `hone spec` explains what it may say");
  }
  SpecPositions positions;
  absl::StatusOr<v1::JobSpec> spec = SpecFromYaml(*text, path == "-" ? "stdin" : path, &positions);
  if (!spec.ok()) return spec.status();
  JobFile file;
  file.folder = path == "-" ? "." : std::filesystem::path(path).parent_path().string();
  if (file.folder.empty()) file.folder = ".";
  file.spec = *std::move(spec);
  for (const std::string& set : sets) {
    const absl::Status status = SetField(file.spec, set);
    if (!status.ok()) return Annotate(status, "--set");
  }
  // The daemon resolves again; here it is for the line numbers.
  const absl::StatusOr<v1::JobSpec> resolved = ResolveSpec(file.spec);
  if (!resolved.ok()) {
    bool from_set = false;
    for (const std::string& set : sets)
      from_set = from_set || set.substr(0, set.find('=')) == FieldOf(resolved.status());
    return from_set ? Annotate(resolved.status(), "--set") : positions.Locate(resolved.status());
  }
  file.advice = Advice(*resolved);
  return file;
}

absl::StatusOr<JobFile> JobFileFromSpec(const v1::JobSpec& spec, const std::vector<std::string>& sets) {
  JobFile file;
  file.folder = ".";
  file.spec = spec;
  for (const std::string& set : sets) {
    const absl::Status status = SetField(file.spec, set);
    if (!status.ok()) return Annotate(status, "--set");
  }
  HONE_ASSIGN_OR_RETURN(const v1::JobSpec resolved, ResolveSpec(file.spec));
  file.advice = Advice(resolved);
  return file;
}

absl::Status PrepareForDaemon(const Environment& environment, Client& client,
                              const std::function<void(const std::string&, uint64_t, uint64_t)>& on_progress,
                              JobFile& file) {
  v1::JobSpec& spec = file.spec;
  std::string& source = *spec.mutable_model()->mutable_source();
  constexpr std::string_view kRandom = "random:";
  if (source.rfind(kRandom, 0) == 0) {
    source = StrCat(kRandom, Locate(environment, file.folder, source.substr(kRandom.size())));
  } else if (IsModelPath(source)) {
    source = Locate(environment, file.folder, source);
    std::error_code error;
    if (!std::filesystem::exists(source, error)) return FieldError("model.source", StrCat("nothing at ", source));
  }
  HONE_RETURN_IF_ERROR(
      UploadField(environment, file, client, on_progress, "data.train", *spec.mutable_data()->mutable_train()));
  if (!spec.data().has_eval()) return absl::OkStatus();
  return UploadField(environment, file, client, on_progress, "data.eval", *spec.mutable_data()->mutable_eval());
}

std::string NameUploads(const JobFile& file, std::string_view message) {
  std::string text(message);
  for (const auto& [digest, name] : file.uploaded) {
    const std::string stored = "/blobs/" + digest;
    for (size_t at = text.find(stored); at != std::string::npos; at = text.find(stored, at)) {
      const size_t space = text.find_last_of(" \"", at);
      const size_t begin = space == std::string::npos ? 0 : space + 1;
      text.replace(begin, at + stored.size() - begin, name);
      at = begin + name.size();
    }
  }
  return text;
}

absl::Status NameUploads(const JobFile& file, const absl::Status& status) {
  if (status.ok() || file.uploaded.empty()) return status;
  absl::Status named(status.code(),
                     NameUploads(file, std::string_view(status.message().data(), status.message().size())));
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& payload) { named.SetPayload(type, payload); });
  return named;
}

}  // namespace hone
