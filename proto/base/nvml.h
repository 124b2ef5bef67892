// What the driver says of a card and of a process's memory on it, through NVML, found at run time: a machine that lacks
// the library only knows less. Works without a CUDA context, so the daemon may use it too.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

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
  // Since the driver was loaded; nothing before Volta.
  std::optional<double> EnergyJoules() const;
  // Why the clocks are lower than they could be, as bits of Slowdown; 0: they are not.
  enum Slowdown : uint64_t {
    kPowerCap = 0x4,      // the power limit that is set
    kHardware = 0x8,      // the board protects itself, power or heat
    kThermal = 0x20,      // too hot, the driver's doing
    kHardwareHot = 0x40,  // too hot, the board's doing
    kPowerBrake = 0x80,   // the power supply asks for less
  };
  std::optional<uint64_t> Slowdowns() const;
  struct Process {
    unsigned int pid = 0;  // as the driver knows it, which in a container need not be ours
    uint64_t bytes = 0;
  };
  // Who holds memory on the card, computing or drawing. Empty where the driver does not say.
  std::vector<Process> Processes() const;

 private:
  struct Library;
  explicit NvmlDevice(std::unique_ptr<Library> library);
  static std::unique_ptr<Library> Load();
  std::unique_ptr<Library> library_;
};

}  // namespace hone
