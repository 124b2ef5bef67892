// TimingOps: hands every operation to another Ops and adds up where the time goes, by operation, and by shape for
// products. For benchmarks ("which share of a training step is products, and what is the rest"); not for production.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace hone {

struct ProductShape {
  bool ta = false, tb = false;
  int64_t m = 0, n = 0, k = 0;
  auto operator<=>(const ProductShape&) const = default;
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};
struct TimedUse {
  int64_t calls = 0;
  double seconds = 0;
};

class TimingOps : public Ops {
 public:
  virtual const std::map<std::string, TimedUse>& by_operation() const = 0;
  virtual const std::map<ProductShape, TimedUse>& products() const = 0;
  virtual void Reset() = 0;

  double ProductFlops() const;  // of all calls together
  double ProductSeconds() const;
  double TotalSeconds() const;  // within operations
  // A table, most expensive first, with each row's share of `step_seconds`; what no operation accounts for is
  // "elsewhere".
  std::string Report(double step_seconds) const;
};

// inner must outlive it. Waits for the device around every operation.
std::unique_ptr<TimingOps> MakeTimingOps(Ops& inner);

// FLOP/s of exactly these products, one after the other on `ops` and nothing else: the ceiling for a step made of them.
// memory: at least ProductReplayBytes of them.
uint64_t ProductReplayBytes(const std::map<ProductShape, TimedUse>& products, DType dtype);
double ReplayFlopsPerSecond(Ops& ops, const std::map<ProductShape, TimedUse>& products, void* memory,
                            int repetitions = 3);

}  // namespace hone
