// Durable checkpoints of anything: named byte parts and one JSON state. A checkpoint is a folder step-%012d under a
// root, either complete or not there at all: written to a temporary folder, each file fsynced, manifest.json (size and
// SHA-256 of each file, and of itself) last, then the folder fsynced, renamed, and the root fsynced. The newest `keep`
// stay. Loading verifies everything, falls back to the newest valid one and says which were damaged. Not here: what the
// parts mean (engine/train).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"

namespace hone {

struct CheckpointPart {
  std::string name;  // a plain file name: [A-Za-z0-9._-], not "state.json" or "manifest.json"
  std::string_view bytes;
};

struct CheckpointOptions {
  int keep = 2;
};

// Returns the folder. Doubles of the state come back bit for bit, but must be finite (JSON has no NaN). A checkpoint of
// the same step is replaced (it cannot differ: training is deterministic). Errors leave older checkpoints as they were;
// ResourceExhausted where the disk is full.
absl::StatusOr<std::string> SaveCheckpoint(const std::string& root, int64_t step, const nlohmann::json& state,
                                           std::span<const CheckpointPart> parts,
                                           const CheckpointOptions& options = {});

struct LoadedCheckpoint {
  int64_t step = 0;
  std::string path;
  nlohmann::json state;
  std::map<std::string, MappedFile> parts;
};

struct CheckpointSearch {
  std::optional<LoadedCheckpoint> newest;  // the newest valid one; nullopt: start from the beginning
  std::vector<std::string> damaged;  // newer ones that were skipped: "step-000000000024: adapter.bin: SHA-256 differs"
};
// A root that does not exist holds no checkpoint. Left-over temporary folders are removed.
absl::StatusOr<CheckpointSearch> LoadNewestCheckpoint(const std::string& root);

// One folder, everything verified.
absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& path);

struct CheckpointManifest {
  struct File {
    std::string name;
    uint64_t bytes = 0;
    std::string sha256;
  };
  int64_t step = 0;
  std::vector<File> files;
};
std::string WriteManifest(const CheckpointManifest& manifest);
absl::StatusOr<CheckpointManifest> ParseManifest(std::string_view text);

}  // namespace hone
