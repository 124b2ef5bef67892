#include "server/faults.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "proto/base/status.h"
#include "server/errors.h"

namespace hone {
namespace {

constexpr std::string_view kRandomPrefix = "random:";
constexpr char kSmi[] = "/usr/bin/nvidia-smi";

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::optional<Cause> Missing(std::string_view reason, std::string_view field, std::string path) {
  if (path.rfind(kRandomPrefix, 0) == 0) path.erase(0, kRandomPrefix.size());
  if (path.empty() || access(path.c_str(), R_OK) == 0) return std::nullopt;
  return Cause{std::string(reason), StrCat(field, ": cannot read ", path, ": ", std::strerror(errno),
                                           "; goes on by itself when it is there again")};
}

}  // namespace

Fault FaultOf(const absl::Status& error) {
  const std::string_view text = ToStd(error.message());
  if (ReasonOf(error) == kDiskFull) return Fault::kDiskFull;
  for (const int number : {ENOSPC, EDQUOT}) {
    if (Contains(text, std::strerror(number))) return Fault::kDiskFull;
  }
  for (const char* lost :
       {"cudaErrorDevicesUnavailable", "cudaErrorNoDevice", "cudaErrorDeviceUninitialized", "cudaErrorECCUncorrectable",
        "cudaErrorSystemNotReady", "cudaErrorSystemDriverMismatch", "GPU is lost", "NVML_ERROR_GPU_IS_LOST"}) {
    if (Contains(text, lost)) return Fault::kDeviceLost;
  }
  if (Contains(text, "cudaError") || Contains(text, "CUBLAS_STATUS_")) return Fault::kDeviceError;
  if (Contains(text, "the loss is ") && (Contains(text, "nan") || Contains(text, "inf"))) return Fault::kNotFinite;
  return Fault::kOther;
}

std::string DeviceErrorText(std::string_view message) {
  constexpr std::string_view kInvariant = "invariant broken: ";
  if (const size_t at = message.find(kInvariant); at != std::string_view::npos) {
    message.remove_prefix(at + kInvariant.size());
    const size_t condition = message.find(": ");
    if (condition != std::string_view::npos) message.remove_prefix(condition + 2);
  }
  return StrCat("the card reported an error: ", message,
                "; other jobs are not touched by it. Its last checkpoint is kept; the worker's log says where it was");
}

std::optional<Cause> MissingInput(const v1::JobSpec& resolved) {
  if (auto cause = Missing(kModelMissing, "model.source", resolved.model().source())) return cause;
  if (auto cause = Missing(kDataMissing, "data.train", resolved.data().train())) return cause;
  return Missing(kDataMissing, "data.eval", resolved.data().eval());
}

uint64_t SpaceToGoOn(const v1::Plan& plan, uint64_t min_free) {
  return min_free + 2 * (plan.bytes().adapter() + plan.bytes().optimizer());
}

absl::Status ProbeGpu() {
  if (access(kSmi, X_OK) != 0) return absl::OkStatus();
  // timeout(1): a driver that hangs must not hang the daemon.
  std::FILE* pipe = popen("timeout -k 1 5 /usr/bin/nvidia-smi -L 2>&1", "re");
  if (pipe == nullptr) return absl::UnavailableError(std::strerror(errno));
  std::string text;
  char chunk[512];
  for (size_t count; (count = std::fread(chunk, 1, sizeof(chunk), pipe)) > 0;) {  // to the end: it must not get SIGPIPE
    if (text.size() < sizeof(chunk)) text.append(chunk, count);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnavailableError(ToAbsl(StrCat("nvidia-smi: ", ToValidUtf8(text, 300))));
}

}  // namespace hone
