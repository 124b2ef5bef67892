#include "engine/io/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "engine/io/output_file.h"
#include "engine/io/safetensors.h"  // EscapeForDisplay
#include "proto/base/json.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormat = "hone-checkpoint-1";
constexpr std::string_view kTemporary = ".tmp-";
constexpr std::string_view kStepPrefix = "step-";
constexpr int kStepDigits = 12;
constexpr int64_t kMaxStep = 999'999'999'999;
constexpr size_t kMaxFiles = 4096;
constexpr uint64_t kMaxStateBytes = uint64_t{256} << 20;

absl::Status Errno(int error, std::string_view action, const std::string& path) {
  if (error == ENOSPC || error == EDQUOT) return ResourceExhausted("cannot ", action, " ", path, ": the disk is full");
  return absl::ErrnoToStatus(error, ToAbsl(StrCat("cannot ", action, " ", path)));
}

bool IsPlainName(std::string_view name) {
  if (name.empty() || name.size() > 200 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

std::string StepName(int64_t step) {
  std::string digits = std::to_string(step);
  return StrCat(kStepPrefix, std::string(kStepDigits - digits.size(), '0'), digits);
}

// The step of a folder's name, or -1.
int64_t StepOfName(std::string_view name) {
  if (!name.starts_with(kStepPrefix) || name.size() != kStepPrefix.size() + kStepDigits) return -1;
  int64_t step = 0;
  for (char c : name.substr(kStepPrefix.size())) {
    if (c < '0' || c > '9') return -1;
    step = step * 10 + (c - '0');
  }
  return step;
}

// Removal in two moves, so that a crash half-way never leaves something that looks like a damaged checkpoint.
void RemoveFolder(const std::string& root, const std::string& name) {
  std::string doomed = StrCat(root, "/", kTemporary, "remove-", name, "-XXXXXX");
  std::error_code ignored;  // what stays is removed by the next load
  if (!name.starts_with(kTemporary) && ::mkdtemp(doomed.data()) != nullptr) {
    fs::rename(root + "/" + name, doomed, ignored);
    fs::remove_all(doomed, ignored);
    return;
  }
  fs::remove_all(root + "/" + name, ignored);
}

struct Listing {
  std::vector<int64_t> steps;  // newest first
  std::vector<std::string> temporary;
};

absl::StatusOr<Listing> List(const std::string& root) {
  Listing listing;
  std::error_code error;
  fs::directory_iterator entry(root, error);
  if (error == std::errc::no_such_file_or_directory) return listing;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(kTemporary)) listing.temporary.push_back(name);
    if (const int64_t step = StepOfName(name); step >= 0) listing.steps.push_back(step);
  }
  if (error) return Internal("cannot list ", root, ": ", error.message());
  std::sort(listing.steps.rbegin(), listing.steps.rend());
  return listing;
}

absl::Status WriteOne(const std::string& folder, const std::string& name, std::string_view bytes,
                      CheckpointManifest& manifest) {
  HONE_ASSIGN_OR_RETURN(const auto file, OutputFile::Create(folder + "/" + name));
  HONE_RETURN_IF_ERROR(file->Reserve(bytes.size()));
  HONE_RETURN_IF_ERROR(file->WriteAt(0, bytes));
  HONE_RETURN_IF_ERROR(file->Commit());
  manifest.files.push_back({.name = name, .bytes = bytes.size(), .sha256 = Sha256Hex(bytes)});
  return absl::OkStatus();
}

absl::Status WriteAll(const std::string& folder, int64_t step, const nlohmann::json& state,
                      std::span<const CheckpointPart> parts) {
  CheckpointManifest manifest{.step = step};
  std::string text;
  try {
    text = state.dump(1) + "\n";
  } catch (const nlohmann::json::exception& error) {  // a string that is not UTF-8
    return Internal("a checkpoint's state cannot be written as JSON: ", error.what());
  }
  HONE_RETURN_IF_ERROR(WriteOne(folder, "state.json", text, manifest));
  for (const CheckpointPart& part : parts) HONE_RETURN_IF_ERROR(WriteOne(folder, part.name, part.bytes, manifest));
  CheckpointManifest unused;
  HONE_RETURN_IF_ERROR(WriteOne(folder, "manifest.json", WriteManifest(manifest), unused));
  return FsyncDirectory(folder);
}

// The new folder takes the place of `target`, which may exist; then the old one is in `folder`.
absl::Status Publish(const std::string& folder, const std::string& target) {
  if (::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0) return absl::OkStatus();
  if (errno == EEXIST && ::renameat2(AT_FDCWD, folder.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    return absl::OkStatus();
  }
  if (errno != EINVAL && errno != ENOSYS) return Errno(errno, "rename to", target);
  // A file system without these flags: the old one goes first; until the second rename the one before it is the newest.
  std::error_code error;
  fs::remove_all(target, error);
  if (error) return Internal("cannot remove ", target, ": ", error.message());
  if (::rename(folder.c_str(), target.c_str()) != 0) return Errno(errno, "rename to", target);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> SaveCheckpoint(const std::string& root, int64_t step, const nlohmann::json& state,
                                           std::span<const CheckpointPart> parts, const CheckpointOptions& options) {
  HONE_CHECK(step >= 0 && step <= kMaxStep && options.keep >= 1 && parts.size() + 2 <= kMaxFiles);
  for (const CheckpointPart& part : parts) {
    HONE_CHECK(IsPlainName(part.name) && part.name != "state.json" && part.name != "manifest.json", "part ", part.name);
  }
  HONE_RETURN_IF_ERROR(MakeDirectories(root));
  const std::string name = StepName(step), target = root + "/" + name;
  std::string folder = StrCat(root, "/", kTemporary, name, "-XXXXXX");
  if (::mkdtemp(folder.data()) == nullptr) return Errno(errno, "create a folder in", root);
  absl::Status status = WriteAll(folder, step, state, parts);
  if (status.ok() && ::chmod(folder.c_str(), 0750) != 0) status = Errno(errno, "chmod", folder);
  if (status.ok()) status = Publish(folder, target);
  if (status.ok()) status = FsyncDirectory(root);
  std::error_code ignored;
  fs::remove_all(folder, ignored);  // what was written in vain, or the checkpoint that was replaced
  HONE_RETURN_IF_ERROR(status);
  HONE_ASSIGN_OR_RETURN(const Listing listing, List(root));
  int kept = 0;
  for (const int64_t other : listing.steps) {
    // Newer ones were damaged, else training would not be here again.
    if (other <= step && ++kept <= options.keep) continue;
    RemoveFolder(root, StepName(other));
  }
  return target;
}

std::string WriteManifest(const CheckpointManifest& manifest) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const auto& file : manifest.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  nlohmann::ordered_json out = {
      {"format", kFormat}, {"step", manifest.step}, {"files", std::move(files)}, {"sha256", ""}};
  out["sha256"] = Sha256Hex(out.dump(1));
  return out.dump(1) + "\n";
}

absl::StatusOr<CheckpointManifest> ParseManifest(std::string_view text) {
  HONE_ASSIGN_OR_RETURN(const nlohmann::json root, ParseJson(text, {.max_bytes = size_t{4} << 20, .max_depth = 4}));
  if (!root.is_object() || root.value("format", nlohmann::json()) != std::string(kFormat)) {
    return InvalidArgument("format must be ", kFormat);
  }
  CheckpointManifest manifest;
  const auto step = root.find("step"), files = root.find("files");
  if (step == root.end() || !step->is_number_unsigned() || *step > kMaxStep)
    return InvalidArgument("step is not a step");
  manifest.step = step->get<int64_t>();
  if (files == root.end() || !files->is_array() || files->size() > kMaxFiles) {
    return InvalidArgument("files must be a list of at most ", kMaxFiles);
  }
  for (const auto& entry : *files) {
    const nlohmann::json none;
    const auto name = entry.is_object() ? entry.value("name", none) : none;
    const auto bytes = entry.is_object() ? entry.value("bytes", none) : none;
    const auto sha256 = entry.is_object() ? entry.value("sha256", none) : none;
    if (!name.is_string() || !IsPlainName(name.get<std::string>()) || name == "manifest.json" ||
        !bytes.is_number_unsigned() || !sha256.is_string() || !IsSha256Hex(sha256.get<std::string>())) {
      return InvalidArgument("files[", manifest.files.size(), "] must have a plain name, bytes and a SHA-256");
    }
    for (const auto& other : manifest.files) {
      if (other.name == name) return InvalidArgument("files: ", other.name, " is there twice");
    }
    manifest.files.push_back({name.get<std::string>(), bytes.get<uint64_t>(), sha256.get<std::string>()});
  }
  // There is one way to write a manifest: any changed byte, the digest's own included, makes a difference.
  if (WriteManifest(manifest) != text) return DataLoss("its own SHA-256 differs");
  return manifest;
}

absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path + "/manifest.json", uint64_t{4} << 20));
  auto manifest = ParseManifest(text);
  if (!manifest.ok()) return Annotate(manifest.status(), path + "/manifest.json");
  LoadedCheckpoint loaded{.step = manifest->step, .path = path};
  bool has_state = false;
  for (const auto& entry : manifest->files) {
    HONE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path + "/" + entry.name));
    if (file.bytes().size() != entry.bytes) {
      return DataLoss(path, "/", entry.name, ": ", file.bytes().size(), " bytes, the manifest says ", entry.bytes);
    }
    if (Sha256Hex(file.bytes()) != entry.sha256) return DataLoss(path, "/", entry.name, ": its SHA-256 differs");
    if (entry.name != "state.json") {
      loaded.parts.emplace(entry.name, std::move(file));
      continue;
    }
    auto state = ParseJson(file.bytes(), {.max_bytes = kMaxStateBytes});
    if (!state.ok()) return Annotate(state.status(), path + "/state.json");
    loaded.state = *std::move(state);
    has_state = true;
  }
  if (!has_state) return DataLoss(path, ": there is no state.json");
  return loaded;
}

absl::StatusOr<CheckpointSearch> LoadNewestCheckpoint(const std::string& root) {
  CheckpointSearch search;
  HONE_ASSIGN_OR_RETURN(const Listing listing, List(root));
  for (const std::string& name : listing.temporary) RemoveFolder(root, name);
  for (const int64_t step : listing.steps) {
    const std::string name = StepName(step);
    auto loaded = LoadCheckpoint(root + "/" + name);
    if (loaded.ok() && loaded->step != step) loaded = DataLoss("the manifest is that of step ", loaded->step);
    if (loaded.ok()) {
      search.newest = *std::move(loaded);
      break;
    }
    search.damaged.push_back(StrCat(name, ": ", loaded.status().message()));
  }
  return search;
}

}  // namespace hone
