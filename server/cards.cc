#include "server/cards.h"

namespace hone {
namespace {

constexpr unsigned int kMaxCards = 16;

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
  for (const auto& device : devices_) {
    CardReading reading;
    reading.name = device->name();
    if (const auto memory = device->memory()) {
      reading.total_bytes = memory->total;
      reading.free_bytes = memory->free;
      reading.used_bytes = memory->used;
    }
    reading.temperature_celsius = device->TemperatureCelsius();
    reading.power_watts = device->PowerWatts();
    reading.utilization_ratio = device->UtilizationRatio();
    readings.push_back(std::move(reading));
  }
  return readings;
}

}  // namespace hone
