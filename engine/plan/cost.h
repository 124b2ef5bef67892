// What a step takes, by part, from what a dry run counted and a machine's rates. The sum of all but `launches` and
// `transfer` is the roofline: each part at its ceiling, one after the other.
#pragma once

#include "engine/plan/rates.h"
#include "hone/v1/plan.pb.h"
#include "kernels/dry/dry_ops.h"

namespace hone {

struct StepCost {  // seconds
  double gemm = 0, attention = 0, decode = 0, elementwise = 0, head = 0, optimizer = 0;
  double launches = 0;  // gaps between launches, and what products too small to fill the card lose
  double transfer = 0;  // over the link, beside the rest: half of it out, half of it back
  // Of all but transfer, what runs while layers' pieces go out (a training launch's forward pass) and come back (its
  // backward pass).
  double beside_out = 0, beside_back = 0;

  double computing() const { return gemm + attention + decode + elementwise + head + optimizer + launches; }
  // What transfers take beyond what runs beside them is waited for.
  double seconds() const;
  StepCost& operator+=(const StepCost& other);
  StepCost& operator*=(double factor);
};
StepCost operator+(StepCost a, const StepCost& b);
StepCost operator*(double factor, StepCost a);

StepCost CostOf(const DryCounts& counts, const Rates& rates);
// In the plan's order; transfer: only what is waited for.
void ToProto(const StepCost& cost, v1::Plan* plan);

}  // namespace hone
