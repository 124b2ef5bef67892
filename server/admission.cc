#include "server/admission.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "server/errors.h"
#include "server/worker_call.h"

namespace hone {
namespace {

constexpr std::string_view kBlobPrefix = "sha256:";
constexpr std::string_view kRandomPrefix = "random:";
constexpr size_t kMaxPathBytes = 4000;
constexpr size_t kMaxWarnings = 100;
constexpr size_t kMaxWarningBytes = 2000;

bool StartsWith(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

}  // namespace

absl::Status CheckReadablePath(const std::string& path, std::string_view field) {
  if (path.empty() || path[0] != '/') {
    return FieldError(field,
                      StrCat("\"", path.substr(0, 200), "\" is not an absolute path; a relative path is the client's, ",
                             "which must resolve it"));
  }
  if (path.size() > kMaxPathBytes) return FieldError(field, StrCat("a path has at most ", kMaxPathBytes, " bytes"));
  if (path.find('\0') != std::string::npos) return FieldError(field, "a path has no NUL byte");
  if (access(path.c_str(), R_OK) == 0) return absl::OkStatus();
  return FieldError(field, StrCat("the daemon cannot read ", path, ": ", std::strerror(errno)));
}

bool UserMayRead(int64_t uid, const std::string& path) {
  if (uid < 0 || uid == 0 || uid == static_cast<int64_t>(geteuid())) return true;
  char* real = realpath(path.c_str(), nullptr);
  if (real == nullptr) return false;
  const std::string whole = real;
  std::free(real);
  passwd entry{};
  passwd* found = nullptr;
  char buffer[16384];
  std::vector<gid_t> groups;
  if (getpwuid_r(static_cast<uid_t>(uid), &entry, buffer, sizeof(buffer), &found) == 0 && found != nullptr) {
    int count = 256;
    groups.resize(static_cast<size_t>(count));
    if (getgrouplist(found->pw_name, found->pw_gid, groups.data(), &count) < 0) count = 256;
    groups.resize(static_cast<size_t>(std::max(0, count)));
  }
  const auto allows = [&](const std::string& at, mode_t bits) {
    struct stat info;
    if (stat(at.c_str(), &info) != 0) return false;
    const bool mine = info.st_uid == static_cast<uid_t>(uid);
    const bool ours = std::find(groups.begin(), groups.end(), info.st_gid) != groups.end();
    const mode_t granted = mine ? info.st_mode >> 6 : ours ? info.st_mode >> 3 : info.st_mode;
    return (granted & bits) == bits;
  };
  for (size_t slash = whole.find('/', 1); slash != std::string::npos; slash = whole.find('/', slash + 1)) {
    if (!allows(whole.substr(0, slash), 1)) return false;
  }
  struct stat info;
  if (stat(whole.c_str(), &info) != 0) return false;
  return allows(whole, S_ISDIR(info.st_mode) ? 5 : 4);
}

absl::StatusOr<std::string> Admission::ModelPath(std::string_view source) const {
  if (!IsModelPath(source)) {
    const absl::StatusOr<v1::Model> model = store_->GetModel(source);
    if (absl::IsNotFound(model.status())) {
      return WithReason(FieldError("model.source", StrCat("no model \"", source,
                                                          "\" in the registry; `hone models import PATH` "
                                                          "adds one, and a path has a slash")),
                        "MODEL_UNKNOWN");
    }
    if (!model.ok()) return model.status();
    HONE_RETURN_IF_ERROR(CheckReadablePath(model->path(), "model.source"));
    return model->path();
  }
  const bool random = StartsWith(source, kRandomPrefix);
  const std::string path(random ? source.substr(kRandomPrefix.size()) : source);
  HONE_RETURN_IF_ERROR(CheckReadablePath(path, "model.source"));
  return std::string(source);
}

absl::StatusOr<std::string> Admission::DataPath(const std::string& source, std::string_view field) const {
  if (!StartsWith(source, kBlobPrefix)) {
    HONE_RETURN_IF_ERROR(CheckReadablePath(source, field));
    return source;
  }
  const std::string digest = source.substr(kBlobPrefix.size());
  if (!IsSha256Hex(digest)) return FieldError(field, "after \"sha256:\" 64 lower-case hex digits are expected");
  HONE_ASSIGN_OR_RETURN(const std::optional<uint64_t> bytes, store_->BlobBytes(digest));
  if (!bytes.has_value() || access(layout_->Blob(digest).c_str(), R_OK) != 0) {
    return WithReason(
        WithField(FailedPrecondition(field, ": no data ", source, " has been uploaded; upload it and try again"),
                  field),
        "BLOB_MISSING");
  }
  return layout_->Blob(digest);
}

absl::StatusOr<v1::JobSpec> Admission::Resolve(const v1::JobSpec& spec, int64_t uid) const {
  HONE_ASSIGN_OR_RETURN(v1::JobSpec resolved, ResolveSpec(spec));
  HONE_RETURN_IF_ERROR(CheckUser(resolved, uid));
  HONE_ASSIGN_OR_RETURN(const std::string model, ModelPath(resolved.model().source()));
  resolved.mutable_model()->set_source(model);
  HONE_ASSIGN_OR_RETURN(const std::string train, DataPath(resolved.data().train(), "data.train"));
  resolved.mutable_data()->set_train(train);
  if (resolved.data().has_eval()) {
    HONE_ASSIGN_OR_RETURN(const std::string eval, DataPath(resolved.data().eval(), "data.eval"));
    resolved.mutable_data()->set_eval(eval);
  }
  return resolved;
}

// Paths the user names; uploads and models of the registry are the daemon's to give.
absl::Status Admission::CheckUser(const v1::JobSpec& spec, int64_t uid) const {
  const auto check = [&](std::string path, std::string_view field) -> absl::Status {
    if (StartsWith(path, kRandomPrefix)) path.erase(0, kRandomPrefix.size());
    if (path.empty() || path[0] != '/' || path.size() > kMaxPathBytes || UserMayRead(uid, path)) {
      return absl::OkStatus();
    }
    return WithReason(
        WithField(absl::PermissionDeniedError(ToAbsl(StrCat(field, ": user ", uid, " may not read ", path))), field),
        "NOT_READABLE");
  };
  if (IsModelPath(spec.model().source())) HONE_RETURN_IF_ERROR(check(spec.model().source(), "model.source"));
  HONE_RETURN_IF_ERROR(check(spec.data().train(), "data.train"));
  return check(spec.data().eval(), "data.eval");
}

v1::Assign Admission::Assignment(v1::Verb verb) const {
  v1::Assign assign;
  assign.set_verb(verb);
  assign.set_memory_budget_bytes(options_.memory_budget ? options_.memory_budget() : 0);
  assign.set_card_budget_bytes(options_.card_budget ? options_.card_budget() : 0);
  v1::Run* run = assign.add_runs();
  run->set_reference_cache_dir(layout_->ReferenceCache());
  return assign;
}

absl::StatusOr<Planned> Admission::Plan(const v1::JobSpec& resolved, const Cancelled& cancelled,
                                        const std::string& device) const {
  Planned planned;
  bool has_plan = false;
  WorkerCall call;
  call.options.program = options_.worker_program;
  call.assign = Assignment(v1::VERB_PLAN);
  *call.assign.mutable_runs(0)->mutable_spec() = resolved;
  call.assign.mutable_runs(0)->set_device(device);
  call.cancelled = cancelled;
  call.on_message = [&](const v1::FromWorker& message) {
    if (message.has_plan()) {
      planned.plan = message.plan();
      has_plan = true;
    }
    if (message.has_report_json()) planned.report_json = message.report_json();
    if (message.has_warning() && planned.warnings.size() < kMaxWarnings) {
      planned.warnings.push_back(ToValidUtf8(message.warning(), kMaxWarningBytes));
    }
    return absl::OkStatus();
  };
  HONE_RETURN_IF_ERROR(CallWorker(call).status());
  if (!has_plan) return Internal("the worker gave no plan");
  return planned;
}

absl::Status Admission::CheckFits(const v1::Plan& plan) {
  if (plan.fits()) return absl::OkStatus();
  std::string text = StrCat("the plan does not fit: ", plan.bytes().total() >> 20, " MiB are needed on ",
                            plan.device().empty() ? std::string("the device") : plan.device(), ", the budget is ",
                            plan.budget_bytes() >> 20, " MiB");
  for (int i = 0; i < plan.changes_size(); ++i)
    text += StrCat(i == 0 ? "; smallest changes that fit: " : ", ", plan.changes(i));
  return WithReason(FailedPrecondition(text), "PLAN_DOES_NOT_FIT");
}

absl::StatusOr<std::string> Admission::Validate(const v1::JobSpec& resolved, const Cancelled& cancelled) const {
  std::string report;
  WorkerCall call;
  call.options.program = options_.worker_program;
  call.assign = Assignment(v1::VERB_VALIDATE);
  *call.assign.mutable_runs(0)->mutable_spec() = resolved;
  call.cancelled = cancelled;
  call.on_message = [&](const v1::FromWorker& message) {
    if (message.has_report_json()) report = message.report_json();
    return absl::OkStatus();
  };
  HONE_RETURN_IF_ERROR(CallWorker(call).status());
  return report;
}

absl::StatusOr<std::string> Admission::Quantise(const std::string& model_path, const std::string& format,
                                                const std::string& output, const Cancelled& cancelled) const {
  std::string receipt;
  WorkerCall call;
  call.options.program = options_.worker_program;
  call.assign = Assignment(v1::VERB_EXPORT);
  call.assign.mutable_runs(0)->set_model_path(model_path);
  call.assign.mutable_runs(0)->set_format(format);
  call.assign.mutable_runs(0)->set_output_dir(output);
  call.cancelled = cancelled;
  call.on_message = [&](const v1::FromWorker& message) {
    if (message.has_report_json()) receipt = message.report_json();
    return absl::OkStatus();
  };
  HONE_RETURN_IF_ERROR(CallWorker(call).status());
  return receipt;
}

absl::StatusOr<std::string> Admission::Inspect(const std::string& model_path, const Cancelled& cancelled) const {
  std::string report;
  WorkerCall call;
  call.options.program = options_.worker_program;
  call.assign = Assignment(v1::VERB_INSPECT);
  call.assign.mutable_runs(0)->set_model_path(model_path);
  call.cancelled = cancelled;
  call.on_message = [&](const v1::FromWorker& message) {
    if (message.has_report_json()) report = message.report_json();
    return absl::OkStatus();
  };
  HONE_RETURN_IF_ERROR(CallWorker(call).status());
  return report;
}

}  // namespace hone
