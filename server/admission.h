// From a submitted spec to one that may be queued: defaults and rules (proto/spec), names of blobs and models turned
// into absolute paths, then a worker's word on the data and the memory plan. The daemon itself opens none of the files.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hone/v1/jobs.pb.h"
#include "server/layout.h"
#include "server/store/store.h"

namespace hone {

struct Planned {
  v1::Plan plan;
  std::string report_json;
  std::vector<std::string> warnings;
};

class Admission {
 public:
  struct Options {
    std::string worker_program;
    std::function<uint64_t()> memory_budget;  // what plans are held against; null: 0, the worker's own choice
    std::function<uint64_t()> card_budget;    // the same for a card
  };
  using Cancelled = std::function<bool()>;

  Admission(const Layout* layout, Store* store, Options options)
      : layout_(layout), store_(store), options_(std::move(options)) {}

  // Errors name the field: INVALID_ARGUMENT, and FAILED_PRECONDITION with reason BLOB_MISSING for data that was not
  // uploaded (upload it, then ask again). Files that user `uid` may not read are refused, even if the daemon may (-1
  // and the daemon's own user: no such check).
  absl::StatusOr<v1::JobSpec> Resolve(const v1::JobSpec& spec, int64_t uid = -1) const;
  // Asks a worker to validate the data and to plan, for `device` (v1::Run::device) where it is given. A plan that does
  // not fit is no error here.
  absl::StatusOr<Planned> Plan(const v1::JobSpec& resolved, const Cancelled& cancelled,
                               const std::string& device = "") const;
  // FAILED_PRECONDITION with reason PLAN_DOES_NOT_FIT and the smallest changes that would make it fit.
  static absl::Status CheckFits(const v1::Plan& plan);
  // The data report of a spec.
  absl::StatusOr<std::string> Validate(const v1::JobSpec& resolved, const Cancelled& cancelled) const;
  // What `honed-worker inspect` prints.
  absl::StatusOr<std::string> Inspect(const std::string& model_path, const Cancelled& cancelled) const;
  // Has a worker write a quantised copy of a model ("nf4") to a folder; its receipt.
  absl::StatusOr<std::string> Quantise(const std::string& model_path, const std::string& format,
                                       const std::string& output, const Cancelled& cancelled) const;
  // A registry name, an absolute path or random:/absolute/config.json, to a path.
  absl::StatusOr<std::string> ModelPath(std::string_view source) const;

 private:
  absl::StatusOr<std::string> DataPath(const std::string& source, std::string_view field) const;
  absl::Status CheckUser(const v1::JobSpec& spec, int64_t uid) const;
  v1::Assign Assignment(v1::Verb verb) const;

  const Layout* layout_;
  Store* store_;
  const Options options_;
};

// An absolute path without NUL bytes, of bounded length, that exists and that this user may read. `field` for messages.
absl::Status CheckReadablePath(const std::string& path, std::string_view field);
// Whether a user may read a file or folder by the permission bits of it and of the folders above it; links are
// followed.
bool UserMayRead(int64_t uid, const std::string& path);

}  // namespace hone
