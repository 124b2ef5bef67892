// A stand-in for the driver's libnvidia-ml.so.1 with one card that draws 30 W and on which the process with id 1 holds
// memory, so that the card's series can be seen
// on a machine without one (dashboard_live.sh). While the file "driver-gone" is in the working directory it answers
// nothing. Signatures as in NVIDIA's NVML reference; only what proto/base/nvml.cc asks for. Not a test of any figure.
#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace {

constexpr int kOk = 0, kInvalidArgument = 2, kNotFound = 6, kGpuIsLost = 15;

int Answer() { return access("driver-gone", F_OK) == 0 ? kGpuIsLost : kOk; }

}  // namespace

extern "C" {

struct FakeMemory {
  unsigned long long total, free, used;
};
struct FakeProcess {
  unsigned int pid;
  unsigned long long bytes;
  unsigned int gpu_instance, compute_instance;
};
struct FakeUtilization {
  unsigned int gpu, memory;
};

int nvmlInit_v2() { return kOk; }
int nvmlShutdown() { return kOk; }
int nvmlDeviceGetHandleByPciBusId_v2(const char*, void**) { return kNotFound; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void** device) {
  static int card;
  *device = &card;
  return index == 0 ? kOk : kInvalidArgument;
}
int nvmlDeviceGetName(void*, char* name, unsigned int size) {
  std::snprintf(name, size, "Stand-in card");
  return kOk;
}
int nvmlSystemGetDriverVersion(char* version, unsigned int size) {
  std::snprintf(version, size, "0");
  return kOk;
}
int nvmlDeviceGetMemoryInfo(void*, FakeMemory* memory) {
  *memory = {24ull << 30, 23ull << 30, 1ull << 30};
  return Answer();
}
int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned int* count, void*) {
  *count = 0;
  return Answer();
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void*, unsigned int* count, FakeProcess* processes) {
  if (*count < 1) return kInvalidArgument;
  *count = 1;
  processes[0] = {1, 512ull << 20, 0, 0};
  return Answer();
}
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  using std::chrono::milliseconds;
  const auto up = std::chrono::steady_clock::now().time_since_epoch();
  *millijoules = static_cast<unsigned long long>(std::chrono::duration_cast<milliseconds>(up).count()) * 30;
  return Answer();
}
int nvmlDeviceGetCurrentClocksEventReasons(void*, unsigned long long* reasons) {
  constexpr unsigned long long kIdle = 1, kPowerCap = 4;
  *reasons = kIdle | kPowerCap;
  return Answer();
}
int nvmlDeviceGetTemperature(void*, int, unsigned int* celsius) {
  *celsius = 50;
  return Answer();
}
int nvmlDeviceGetPowerUsage(void*, unsigned int* milliwatts) {
  *milliwatts = 30000;
  return Answer();
}
int nvmlDeviceGetUtilizationRates(void*, FakeUtilization* utilization) {
  *utilization = {7, 3};
  return Answer();
}

}  // extern "C"
