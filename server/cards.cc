#include "server/cards.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr unsigned int kMaxCards = 16;
constexpr uint64_t kMaxProcFile = 4096;

// The command's name and parent from /proc/PID/stat: "7 (python3) S 1 ...", where the name may hold anything.
void ReadProcess(unsigned int pid, std::string* command, int* parent) {
  const absl::StatusOr<std::string> stat = ReadFile(StrCat("/proc/", pid, "/stat"), kMaxProcFile);
  if (!stat.ok()) return;
  const size_t open = stat->find('('), close = stat->rfind(')');
  if (open == std::string::npos || close == std::string::npos || close <= open) return;
  *command = stat->substr(open + 1, close - open - 1);
  std::sscanf(stat->c_str() + close + 1, " %*c %d", parent);
}

std::vector<ForeignProcess> Foreign(const std::vector<NvmlDevice::Process>& all) {
  std::vector<ForeignProcess> foreign;
  for (const NvmlDevice::Process& process : all) {
    ForeignProcess one = {process.pid, "unknown", process.bytes};
    int parent = 0;
    ReadProcess(process.pid, &one.command, &parent);
    if (parent != getpid()) foreign.push_back(std::move(one));  // workers are children
  }
  std::stable_sort(foreign.begin(), foreign.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return foreign;
}

CardReading ReadCard(const NvmlDevice& device) {
  CardReading reading;
  reading.name = device.name();
  if (const auto memory = device.memory()) {
    reading.total_bytes = memory->total;
    reading.free_bytes = memory->free;
    reading.used_bytes = memory->used;
  }
  reading.temperature_celsius = device.TemperatureCelsius();
  reading.power_watts = device.PowerWatts();
  reading.utilization_ratio = device.UtilizationRatio();
  return reading;
}

}  // namespace

Cards::Cards() {
  for (unsigned int index = 0; index < kMaxCards; ++index) {
    auto device = NvmlDevice::OpenIndex(index);
    if (device == nullptr) return;
    devices_.push_back(std::move(device));
  }
}

std::vector<CardReading> Cards::Read() const {
  std::vector<CardReading> readings;
  for (const auto& device : devices_) readings.push_back(ReadCard(*device));
  return readings;
}

std::vector<CardDetail> Cards::ReadDetails() const {
  std::vector<CardDetail> details;
  for (const auto& device : devices_) {
    details.push_back({ReadCard(*device), device->EnergyJoules(), device->Slowdowns(), Foreign(device->Processes())});
  }
  return details;
}

}  // namespace hone
