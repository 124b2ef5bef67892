#include "server/card_metrics.h"

#include <algorithm>
#include <utility>

#include "server/errors.h"

namespace hone {
namespace {

constexpr size_t kMaxCommandBytes = 64;

struct Reason {
  uint64_t bit;
  const char* name;
};
constexpr Reason kReasons[] = {{NvmlDevice::kPowerCap, "power-cap"},
                               {NvmlDevice::kHardware, "hardware"},
                               {NvmlDevice::kThermal, "thermal"},
                               {NvmlDevice::kHardwareHot, "hardware-thermal"},
                               {NvmlDevice::kPowerBrake, "power-brake"}};

prometheus::Family<prometheus::Gauge>& Family(prometheus::Registry* registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry);
}

}  // namespace

CardMetrics::CardMetrics(prometheus::Registry* registry)
    : total_(Family(registry, "hone_gpu_memory_total_bytes", "Memory of the card.")),
      used_(Family(registry, "hone_gpu_memory_used_bytes", "Memory of the card in use, by whomever.")),
      temperature_(Family(registry, "hone_gpu_temperature_celsius", "Temperature of the card's chip.")),
      power_(Family(registry, "hone_gpu_power_watts", "Power that the card draws.")),
      utilization_(Family(registry, "hone_gpu_utilization_ratio", "Share of the time in which a kernel ran.")),
      slowdowns_(Family(registry, "hone_gpu_throttled",
                        "1 while the card's clocks are held down for this reason, by the driver.")),
      foreign_(Family(registry, "hone_gpu_foreign_memory_bytes",
                      "Memory of the card held by a process that is no worker of this daemon.")),
      energy_(prometheus::BuildCounter()
                  .Name("hone_gpu_energy_joules_total")
                  .Help("Energy that the card took since the daemon started.")
                  .Register(*registry)) {}

std::vector<double> CardMetrics::Update(const std::vector<CardDetail>& cards, double elapsed_seconds) {
  known_.resize(std::max(known_.size(), cards.size()));
  std::vector<double> joules;
  for (size_t i = 0; i < cards.size(); ++i) {
    const CardReading& reading = cards[i].reading;
    const Labels labels = {{"gpu", std::to_string(i)}, {"name", reading.name}};
    total_.Add(labels).Set(static_cast<double>(reading.total_bytes));
    used_.Add(labels).Set(static_cast<double>(reading.used_bytes));
    if (reading.temperature_celsius) temperature_.Add(labels).Set(*reading.temperature_celsius);
    if (reading.power_watts) power_.Add(labels).Set(*reading.power_watts);
    if (reading.utilization_ratio) utilization_.Add(labels).Set(*reading.utilization_ratio);
    SetSlowdowns(cards[i], labels);
    SetForeign(cards[i], i, labels);
    joules.push_back(TakeEnergy(cards[i], i, elapsed_seconds));
    energy_.Add(labels).Increment(joules.back());
  }
  return joules;
}

void CardMetrics::SetSlowdowns(const CardDetail& card, const Labels& labels) {
  if (!card.slowdowns.has_value()) return;
  for (const Reason& reason : kReasons) {
    Labels with = labels;
    with["reason"] = reason.name;
    slowdowns_.Add(with).Set((*card.slowdowns & reason.bit) != 0 ? 1 : 0);
  }
}

void CardMetrics::SetForeign(const CardDetail& card, size_t index, const Labels& labels) {
  std::map<std::string, prometheus::Gauge*> now;
  double rest = 0;
  const auto set = [&](const std::string& pid, const std::string& command, double bytes) {
    Labels with = labels;
    with["pid"] = pid;
    with["command"] = command;
    prometheus::Gauge& gauge = foreign_.Add(with);
    gauge.Set(bytes);
    now[pid] = &gauge;
  };
  for (size_t i = 0; i < card.foreign.size(); ++i) {
    const ForeignProcess& process = card.foreign[i];
    if (i < kMaxForeign) {
      set(std::to_string(process.pid), ToValidUtf8(process.command, kMaxCommandBytes),
          static_cast<double>(process.bytes));
    } else {
      rest += static_cast<double>(process.bytes);
    }
  }
  if (rest > 0) set("", "others", rest);
  for (const auto& [pid, gauge] : known_[index].foreign) {
    const auto found = now.find(pid);
    if (found == now.end() || found->second != gauge) foreign_.Remove(gauge);
  }
  known_[index].foreign = std::move(now);
}

double CardMetrics::TakeEnergy(const CardDetail& card, size_t index, double elapsed_seconds) {
  std::optional<double>& last = known_[index].energy_joules;
  if (!card.energy_joules.has_value()) return card.reading.power_watts.value_or(0) * elapsed_seconds;
  const std::optional<double> before = std::exchange(last, card.energy_joules);
  // The counter begins anew when the driver is loaded again.
  return before.has_value() && *card.energy_joules >= *before ? *card.energy_joules - *before : 0;
}

}  // namespace hone
