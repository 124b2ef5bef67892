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

class Cards {
 public:
  Cards();  // finds what is there now; a driver that is installed later is found after a restart
  std::vector<CardReading> Read() const;

 private:
  std::vector<std::unique_ptr<NvmlDevice>> devices_;
};

}  // namespace hone
