#include "server/daemon_service.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "proto/base/build_info.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/reactors.h"
#include "server/store/states.h"

namespace hone {
namespace {

constexpr uint64_t kMaxProcFile = 1 << 20;

// The value of the first "key : value" line, or "".
std::string ProcValue(const std::string& text, std::string_view key) {
  const size_t at = text.find(key);
  if (at == std::string::npos) return "";
  const size_t colon = text.find(':', at);
  const size_t end = text.find('\n', at);
  if (colon == std::string::npos || colon > end) return "";
  const size_t begin = text.find_first_not_of(" \t", colon + 1);
  return begin >= end ? "" : text.substr(begin, end - begin);
}

v1::DeviceInfo Cpu() {
  v1::DeviceInfo cpu;
  cpu.set_name("cpu");
  const absl::StatusOr<std::string> info = ReadFile("/proc/cpuinfo", kMaxProcFile);
  const std::string model = info.ok() ? ProcValue(*info, "model name") : "";
  cpu.set_description(
      StrCat(model.empty() ? "processor" : model, ", ", std::thread::hardware_concurrency(), " threads"));
  cpu.set_total_bytes(TotalMemory());
  cpu.set_free_bytes(AvailableMemory());
  cpu.set_usable(true);
  cpu.set_note("jobs run here that ask for it, or where there is no card");
  return cpu;
}

// What the kernel module and the driver say; the daemon itself opens no card.
std::vector<v1::DeviceInfo> CardInfos(const std::vector<CardReading>& readings) {
  std::vector<v1::DeviceInfo> cards;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    v1::DeviceInfo card;
    const size_t i = cards.size();
    card.set_name(StrCat("cuda:", i));
    const absl::StatusOr<std::string> info = ReadFile(entry.path() / "information", kMaxProcFile);
    card.set_description(info.ok() ? ProcValue(*info, "Model") : entry.path().filename().string());
    card.set_usable(i < readings.size());
    if (card.usable()) {
      card.set_total_bytes(readings[i].total_bytes);
      card.set_free_bytes(readings[i].free_bytes);
      card.set_note(i == 0 ? "jobs run here" : "seen, not used: jobs run on the first card");
    } else {
      card.set_note("the driver does not answer for it (NVML)");
    }
    cards.push_back(std::move(card));
  }
  return cards;
}

}  // namespace

grpc::ServerUnaryReactor* DaemonService::GetStatus(grpc::CallbackServerContext* call, const v1::GetStatusRequest*,
                                                   v1::DaemonStatus* status) {
  return RunUnary(context_->quick, call, [this, call, status]() -> absl::Status {
    status->set_version(std::string(BuildVersion()));
    status->set_build_id(std::string(BuildId()));
    status->set_pid(getpid());
    status->mutable_start_time()->set_seconds(context_->start_time_us / 1'000'000);
    status->set_state_dir(context_->layout->root());
    status->set_metrics_address(context_->metrics->address());
    HONE_ASSIGN_OR_RETURN(const auto counts, context_->store->CountJobs());
    for (const auto& [state, count] : counts) (*status->mutable_jobs())[std::string(StateName(state))] = count;
    HONE_ASSIGN_OR_RETURN(const auto running, context_->store->JobsIn({v1::STARTING, v1::RUNNING, v1::FINALIZING,
                                                                       v1::CANCELLING, v1::PAUSING}));
    for (const std::string& id : running) status->add_running_jobs(id);
    status->set_draining(context_->draining);
    status->set_disk_free_bytes(DiskFree(context_->layout->root()));
    status->set_worker_path(context_->worker_program);
    const Caller caller = CallerOf(*context_, *call);
    if (caller.uid >= 0) status->set_caller_uid(caller.uid);
    status->set_caller_is_admin(caller.admin);
    status->set_problem(context_->scheduler->Problem());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* DaemonService::ListDevices(grpc::CallbackServerContext* call, const v1::ListDevicesRequest*,
                                                     v1::ListDevicesResponse* response) {
  return RunUnary(context_->quick, call, [this, response]() -> absl::Status {
    *response->add_devices() = Cpu();
    const auto readings = context_->cards == nullptr ? std::vector<CardReading>() : context_->cards->Read();
    for (v1::DeviceInfo& card : CardInfos(readings)) *response->add_devices() = std::move(card);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* DaemonService::Shutdown(grpc::CallbackServerContext* call, const v1::ShutdownRequest*,
                                                  v1::ShutdownResponse*) {
  return RunUnary(context_->quick, call, [this, call]() -> absl::Status {
    if (!CallerOf(*context_, *call).admin) {
      return WithReason(
          absl::PermissionDeniedError("only the daemon's own user, root and the admin socket may stop it"),
          "NOT_ADMIN");
    }
    if (context_->request_shutdown) context_->request_shutdown();
    return absl::OkStatus();
  });
}

}  // namespace hone
