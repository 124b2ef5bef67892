// Reference log-probabilities (of the base model, adapters off), kept by what they were computed from: SHA-256 of the
// model's digest, the ids and the trained mask. One small file, written durably; a damaged or foreign file is an error,
// not a silent miss. Not here: computing them.
//
// File: "HONEREF1", then little-endian u64 count, count records of {32-byte key, fp64 bits} ascending by key, and the
// SHA-256 (32 bytes) of everything before.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/data/examples.h"

namespace hone {

using ReferenceKey = std::array<uint8_t, 32>;

// model_digest: names weights, quantisation, compute precision and device kind: whatever changes a log-probability's
// bits.
ReferenceKey MakeReferenceKey(std::string_view model_digest, const Example& example);

class ReferenceCache {
 public:
  // An empty cache if `path` does not exist.
  static absl::StatusOr<ReferenceCache> Load(const std::string& path);
  absl::Status Save(const std::string& path) const;

  std::optional<double> Find(const ReferenceKey& key) const;  // sum of log-probabilities over trained tokens
  void Put(const ReferenceKey& key, double log_prob);
  size_t size() const { return entries_.size(); }

 private:
  std::map<ReferenceKey, double> entries_;
};

}  // namespace hone
