// From a job file on this machine to a spec that the daemon can run: --set, early checks with line numbers, data
// uploaded by digest, the model's path made absolute. Not here: what the daemon checks (data, model, plan).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/places.h"
#include "hone/v1/spec.pb.h"

namespace hone {

struct JobFile {
  v1::JobSpec spec;                             // as written, after --set
  std::vector<std::string> advice;              // warnings for people
  std::string folder;                           // where the file lies
  std::map<std::string, std::string> uploaded;  // digests of data files, to their names here
};

// "-" reads stdin. Relative paths in it are looked for in the current folder, then beside the job file.
absl::StatusOr<JobFile> LoadJobFile(const std::string& path, const std::vector<std::string>& sets);

// The same from a spec that a daemon gave (`hone submit --from JOB`), with --set on top.
absl::StatusOr<JobFile> JobFileFromSpec(const v1::JobSpec& spec, const std::vector<std::string>& sets);

// Absolute model path; data files uploaded and replaced by "sha256:<digest>". on_progress(path, done, total) may be
// null.
absl::Status PrepareForDaemon(const Environment& environment, Client& client,
                              const std::function<void(const std::string&, uint64_t, uint64_t)>& on_progress,
                              JobFile& file);

// A message about data as the daemon keeps it (".../blobs/<digest>: row 3"), with the name that the file has here.
std::string NameUploads(const JobFile& file, std::string_view message);
absl::Status NameUploads(const JobFile& file, const absl::Status& status);

}  // namespace hone
