#include "kernels/cuda/nvml.h"

#include <dlfcn.h>
#include <unistd.h>

#include <vector>

namespace hone::cuda {
namespace {

// From NVML's reference manual (nvmlMemory_t, nvmlProcessInfo_t of the _v3 call).
struct Memory {
  unsigned long long total = 0, free = 0, used = 0;
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
  int (*memory)(void*, Memory*) = nullptr;
  int (*processes)(void*, unsigned int*, ProcessInfo*) = nullptr;
  int (*driver_version)(char*, unsigned int) = nullptr;

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

std::unique_ptr<NvmlDevice> NvmlDevice::Open(const std::string& pci_bus_id) {
  auto library = std::make_unique<Library>();
  library->handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library->handle == nullptr) return nullptr;
  int (*init)() = nullptr;
  int (*by_bus_id)(const char*, void**) = nullptr;
  const bool found = library->Find("nvmlInit_v2", init) && library->Find("nvmlShutdown", library->shutdown) &&
                     library->Find("nvmlDeviceGetHandleByPciBusId_v2", by_bus_id) &&
                     library->Find("nvmlDeviceGetMemoryInfo", library->memory) &&
                     library->Find("nvmlDeviceGetComputeRunningProcesses_v3", library->processes) &&
                     library->Find("nvmlSystemGetDriverVersion", library->driver_version);
  if (!found || init() != kSuccess) {
    dlclose(library->handle);
    return nullptr;
  }
  std::unique_ptr<NvmlDevice> device(new NvmlDevice(std::move(library)));
  if (by_bus_id(pci_bus_id.c_str(), &device->library_->device) != kSuccess) return nullptr;
  return device;
}

std::string NvmlDevice::driver() const {
  char version[96] = {};
  return library_->driver_version(version, sizeof(version)) == kSuccess ? version : "";
}

uint64_t NvmlDevice::UsedBytes() const {
  Memory memory;
  return library_->memory(library_->device, &memory) == kSuccess ? memory.used : 0;
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

}  // namespace hone::cuda
