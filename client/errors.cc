#include "client/errors.h"

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

constexpr std::string_view kReasonPayload = "hone.dev/reason";

void CopyDetails(const std::string& bytes, absl::Status& status) {
  google::rpc::Status rich;
  if (bytes.empty() || !rich.ParseFromString(bytes)) return;
  for (const google::protobuf::Any& detail : rich.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    if (detail.Is<google::rpc::ErrorInfo>() && detail.UnpackTo(&info)) {
      status.SetPayload(ToAbsl(kReasonPayload), absl::Cord(info.reason()));
    } else if (detail.Is<google::rpc::BadRequest>() && detail.UnpackTo(&bad) && bad.field_violations_size() > 0) {
      status.SetPayload(ToAbsl(kFieldPayload), absl::Cord(bad.field_violations(0).field()));
    }
  }
}

}  // namespace

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status converted(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  CopyDetails(status.error_details(), converted);
  return converted;
}

std::string ErrorReason(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(ToAbsl(kReasonPayload));
  return payload.has_value() ? std::string(*payload) : std::string();
}

std::string ErrorHint(const absl::Status& status) {
  const std::string reason = ErrorReason(status);
  if (reason == "PLAN_DOES_NOT_FIT")
    return "`hone plan JOB.yaml` shows where the memory goes and the smallest changes that help.";
  if (reason == "JOB_FINISHED") return "`hone submit --from JOB` runs it again, with --set FIELD=VALUE changed.";
  if (reason == "NOT_QUEUED") return "`hone pause JOB` stops a running job for a while; `hone queue` shows what waits.";
  const std::string_view message(status.message().data(), status.message().size());
  if (status.code() == absl::StatusCode::kNotFound && message.rfind("no job", 0) == 0) return "`hone ls` lists jobs.";
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return "`hone daemon start` starts a daemon; `hone doctor` finds out what is wrong.";
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return "`hone doctor` shows the socket's owner and what to change.";
    case absl::StatusCode::kDeadlineExceeded:
      return "The daemon may be busy: `hone status` shows what it does.";
    case absl::StatusCode::kUnimplemented:
      return "The daemon may be older than this client: compare `hone --version` and `hone status`.";
    default:
      break;
  }
  const std::string field = FieldOf(status);
  const std::string known = field.substr(0, field.find('['));
  if (!known.empty() && SpecHelp(known).ok()) return StrCat("`hone spec ", known, "` explains this field.");
  if (message.find("unknown field") != std::string_view::npos) return "`hone spec` lists the fields.";
  return "";
}

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return kExitAuth;
    case absl::StatusCode::kUnavailable:
      return kExitUnreachable;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimeout;
    default:
      return kExitFailed;
  }
}

}  // namespace hone
