// What the driver says of a card and of a process's memory on it, through NVML, found at run time: a machine that lacks
// the library only knows less. Works without a CUDA context, so the daemon may use it too.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace hone {

class NvmlDevice {
 public:
  // pci_bus_id as cudaDeviceGetPCIBusId writes it. Null: no library, or no such card.
  static std::unique_ptr<NvmlDevice> Open(const std::string& pci_bus_id);
  // By NVML's own order. Null: no library, or fewer cards.
  static std::unique_ptr<NvmlDevice> OpenIndex(unsigned int index);
  ~NvmlDevice();
  NvmlDevice(const NvmlDevice&) = delete;
  NvmlDevice& operator=(const NvmlDevice&) = delete;

  struct Memory {
    uint64_t total = 0, free = 0, used = 0;  // bytes
  };
  std::string name() const;    // "NVIDIA GeForce RTX 3090"
  std::string driver() const;  // "580.82.07"
  std::optional<Memory> memory() const;
  uint64_t UsedBytes() const;  // of the whole card
  // Of this process, context included; 0 where the driver lists processes by ids that are not ours (a container).
  uint64_t ProcessBytes() const;
  std::optional<double> TemperatureCelsius() const;
  std::optional<double> PowerWatts() const;
  std::optional<double> UtilizationRatio() const;  // share of the last sample period in which a kernel ran

 private:
  struct Library;
  explicit NvmlDevice(std::unique_ptr<Library> library);
  static std::unique_ptr<Library> Load();
  std::unique_ptr<Library> library_;
};

}  // namespace hone
