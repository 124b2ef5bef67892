// The machine's NVIDIA cards as the driver reports them. The daemon opens no CUDA context: it reads numbers only. Not
// here: what may start (scheduler.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/base/nvml.h"

namespace hone {

struct CardReading {
  std::string name;
  uint64_t total_bytes = 0, free_bytes = 0, used_bytes = 0;
  std::optional<double> temperature_celsius, power_watts, utilization_ratio;
};

// A process on a card that is not one of this daemon's workers.
struct ForeignProcess {
  unsigned int pid = 0;
  std::string command;  // "python3"; "unknown" where the driver's ids are not ours (a container)
  uint64_t bytes = 0;
};

// What only the metrics ask for.
struct CardDetail {
  CardReading reading;
  std::optional<double> energy_joules;  // since the driver was loaded
  std::optional<uint64_t> slowdowns;    // NvmlDevice::Slowdown bits
  std::vector<ForeignProcess> foreign;  // the largest first
};

class Cards {
 public:
  Cards();  // finds what is there now; a driver that is installed later is found after a restart
  std::vector<CardReading> Read() const;
  std::vector<CardDetail> ReadDetails() const;

 private:
  std::vector<std::unique_ptr<NvmlDevice>> devices_;
};

}  // namespace hone
