#include "proto/base/nvml.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

namespace hone {
namespace {

// From NVML's reference manual (nvmlMemory_t, nvmlProcessInfo_t of the _v3 call).
struct RawMemory {
  unsigned long long total = 0, free = 0, used = 0;
};
struct RawUtilization {
  unsigned int gpu = 0, memory = 0;
};
struct ProcessInfo {
  unsigned int pid = 0;
  unsigned long long used_bytes = 0;
  unsigned int gpu_instance = 0, compute_instance = 0;
};
constexpr int kSuccess = 0;
constexpr unsigned long long kUnknown = ~0ull;
constexpr unsigned int kMaxProcesses = 256;

}  // namespace

struct NvmlDevice::Library {
  void* handle = nullptr;
  void* device = nullptr;
  int (*shutdown)() = nullptr;
  int (*memory)(void*, RawMemory*) = nullptr;
  int (*processes)(void*, unsigned int*, ProcessInfo*) = nullptr;
  int (*driver_version)(char*, unsigned int) = nullptr;
  int (*by_bus_id)(const char*, void**) = nullptr;
  int (*by_index)(unsigned int, void**) = nullptr;
  int (*name)(void*, char*, unsigned int) = nullptr;
  int (*temperature)(void*, int, unsigned int*) = nullptr;
  int (*power)(void*, unsigned int*) = nullptr;
  int (*utilization)(void*, RawUtilization*) = nullptr;
  // Null where the library is too old for them.
  int (*drawing_processes)(void*, unsigned int*, ProcessInfo*) = nullptr;
  int (*energy)(void*, unsigned long long*) = nullptr;
  int (*clock_reasons)(void*, unsigned long long*) = nullptr;

  template <typename Function>
  bool Find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function != nullptr;
  }
};

NvmlDevice::NvmlDevice(std::unique_ptr<Library> library) : library_(std::move(library)) {}

NvmlDevice::~NvmlDevice() {
  library_->shutdown();
  dlclose(library_->handle);
}

std::unique_ptr<NvmlDevice::Library> NvmlDevice::Load() {
  auto library = std::make_unique<Library>();
  library->handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library->handle == nullptr) return nullptr;
  int (*init)() = nullptr;
  const bool found = library->Find("nvmlInit_v2", init) && library->Find("nvmlShutdown", library->shutdown) &&
                     library->Find("nvmlDeviceGetHandleByPciBusId_v2", library->by_bus_id) &&
                     library->Find("nvmlDeviceGetHandleByIndex_v2", library->by_index) &&
                     library->Find("nvmlDeviceGetName", library->name) &&
                     library->Find("nvmlDeviceGetMemoryInfo", library->memory) &&
                     library->Find("nvmlDeviceGetComputeRunningProcesses_v3", library->processes) &&
                     library->Find("nvmlDeviceGetTemperature", library->temperature) &&
                     library->Find("nvmlDeviceGetPowerUsage", library->power) &&
                     library->Find("nvmlDeviceGetUtilizationRates", library->utilization) &&
                     library->Find("nvmlSystemGetDriverVersion", library->driver_version);
  library->Find("nvmlDeviceGetGraphicsRunningProcesses_v3", library->drawing_processes);
  library->Find("nvmlDeviceGetTotalEnergyConsumption", library->energy);
  if (!library->Find("nvmlDeviceGetCurrentClocksEventReasons", library->clock_reasons)) {  // its name since 535
    library->Find("nvmlDeviceGetCurrentClocksThrottleReasons", library->clock_reasons);
  }
  if (found && init() == kSuccess) return library;
  dlclose(library->handle);
  return nullptr;
}

std::unique_ptr<NvmlDevice> NvmlDevice::Open(const std::string& pci_bus_id) {
  auto library = Load();
  if (library == nullptr) return nullptr;
  std::unique_ptr<NvmlDevice> device(new NvmlDevice(std::move(library)));
  const Library& api = *device->library_;
  if (api.by_bus_id(pci_bus_id.c_str(), &device->library_->device) != kSuccess) return nullptr;
  return device;
}

std::unique_ptr<NvmlDevice> NvmlDevice::OpenIndex(unsigned int index) {
  auto library = Load();
  if (library == nullptr) return nullptr;
  std::unique_ptr<NvmlDevice> device(new NvmlDevice(std::move(library)));
  const Library& api = *device->library_;
  if (api.by_index(index, &device->library_->device) != kSuccess) return nullptr;
  return device;
}

std::string NvmlDevice::name() const {
  char name[96] = {};
  return library_->name(library_->device, name, sizeof(name)) == kSuccess ? name : "";
}

std::optional<NvmlDevice::Memory> NvmlDevice::memory() const {
  RawMemory raw;
  if (library_->memory(library_->device, &raw) != kSuccess) return std::nullopt;
  return Memory{raw.total, raw.free, raw.used};
}

std::optional<double> NvmlDevice::TemperatureCelsius() const {
  unsigned int degrees = 0;
  constexpr int kOfTheChip = 0;
  if (library_->temperature(library_->device, kOfTheChip, &degrees) != kSuccess) return std::nullopt;
  return degrees;
}

std::optional<double> NvmlDevice::PowerWatts() const {
  unsigned int milliwatts = 0;
  if (library_->power(library_->device, &milliwatts) != kSuccess) return std::nullopt;
  return milliwatts / 1000.0;
}

std::optional<double> NvmlDevice::UtilizationRatio() const {
  RawUtilization percent;
  if (library_->utilization(library_->device, &percent) != kSuccess) return std::nullopt;
  return percent.gpu / 100.0;
}

std::optional<double> NvmlDevice::EnergyJoules() const {
  unsigned long long millijoules = 0;
  if (library_->energy == nullptr || library_->energy(library_->device, &millijoules) != kSuccess) return std::nullopt;
  return static_cast<double>(millijoules) / 1000.0;
}

std::optional<uint64_t> NvmlDevice::Slowdowns() const {
  unsigned long long reasons = 0;
  const auto read = library_->clock_reasons;
  if (read == nullptr || read(library_->device, &reasons) != kSuccess) return std::nullopt;
  return reasons & (kPowerCap | kHardware | kThermal | kHardwareHot | kPowerBrake);  // idle and set clocks are no fault
}

std::vector<NvmlDevice::Process> NvmlDevice::Processes() const {
  std::map<unsigned int, uint64_t> bytes;  // a process that does both is listed twice, with the same figure
  for (const auto read : {library_->processes, library_->drawing_processes}) {
    std::vector<ProcessInfo> raw(kMaxProcesses);
    unsigned int count = kMaxProcesses;
    if (read == nullptr || read(library_->device, &count, raw.data()) != kSuccess) continue;
    for (unsigned int i = 0; i < std::min(count, kMaxProcesses); ++i) {
      if (raw[i].used_bytes != kUnknown) bytes[raw[i].pid] = std::max<uint64_t>(bytes[raw[i].pid], raw[i].used_bytes);
    }
  }
  std::vector<Process> processes;
  for (const auto& [pid, used] : bytes) processes.push_back({pid, used});
  return processes;
}

std::string NvmlDevice::driver() const {
  char version[96] = {};
  return library_->driver_version(version, sizeof(version)) == kSuccess ? version : "";
}

uint64_t NvmlDevice::UsedBytes() const {
  const std::optional<Memory> now = memory();
  return now.has_value() ? now->used : 0;
}

uint64_t NvmlDevice::ProcessBytes() const {
  std::vector<ProcessInfo> processes(kMaxProcesses);
  unsigned int count = kMaxProcesses;
  if (library_->processes(library_->device, &count, processes.data()) != kSuccess) return 0;
  const auto self = static_cast<unsigned int>(::getpid());
  for (unsigned int i = 0; i < count && i < kMaxProcesses; ++i) {
    if (processes[i].pid == self && processes[i].used_bytes != kUnknown) return processes[i].used_bytes;
  }
  return 0;
}

}  // namespace hone
