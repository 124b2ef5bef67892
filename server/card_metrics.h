// The cards' part of the metrics: what the driver says of each card, who else holds memory on it, and the energy it
// took since the last look, which metrics.cc shares among the jobs. Bounded: kMaxForeign processes a card have a
// series, the rest share one. Not here: what is read (cards.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "server/cards.h"

namespace hone {

class CardMetrics {
 public:
  static constexpr size_t kMaxForeign = 8;
  explicit CardMetrics(prometheus::Registry* registry);

  // `elapsed_seconds`: since the last call. Returns the joules that each card took meanwhile: by the driver's counter
  // or, where the card has none, power times time; 0 at the first call.
  std::vector<double> Update(const std::vector<CardDetail>& cards, double elapsed_seconds);

 private:
  using Labels = std::map<std::string, std::string>;
  using Gauges = prometheus::Family<prometheus::Gauge>;

  void SetSlowdowns(const CardDetail& card, const Labels& labels);
  void SetForeign(const CardDetail& card, size_t index, const Labels& labels);
  double TakeEnergy(const CardDetail& card, size_t index, double elapsed_seconds);

  Gauges& total_;
  Gauges& used_;
  Gauges& temperature_;
  Gauges& power_;
  Gauges& utilization_;
  Gauges& slowdowns_;
  Gauges& foreign_;
  prometheus::Family<prometheus::Counter>& energy_;
  struct Known {
    std::optional<double> energy_joules;
    std::map<std::string, prometheus::Gauge*> foreign;  // by process id
  };
  std::vector<Known> known_;  // by card
};

}  // namespace hone
