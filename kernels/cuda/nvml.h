// What the driver says of a card and of this process's memory on it, through NVML, found at run time: a machine that
// lacks the library only knows less. Works without a CUDA context.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace hone::cuda {

class NvmlDevice {
 public:
  // pci_bus_id as cudaDeviceGetPCIBusId writes it. Null: no library, or no such card.
  static std::unique_ptr<NvmlDevice> Open(const std::string& pci_bus_id);
  ~NvmlDevice();
  NvmlDevice(const NvmlDevice&) = delete;
  NvmlDevice& operator=(const NvmlDevice&) = delete;

  std::string driver() const;  // "580.82.07"
  uint64_t UsedBytes() const;  // of the whole card
  // Of this process, context included; 0 where the driver lists processes by ids that are not ours (a container).
  uint64_t ProcessBytes() const;

 private:
  struct Library;
  explicit NvmlDevice(std::unique_ptr<Library> library);
  std::unique_ptr<Library> library_;
};

}  // namespace hone::cuda
