#include "engine/plan/cost.h"

#include <algorithm>

namespace hone {
namespace {

double Computing(const StepCost& c) {
  return c.gemm + c.attention + c.decode + c.elementwise + c.head + c.optimizer + c.launches;
}

// Transfers run beside the work: what is kept leaves beside the forward pass, about a third of a step, and comes back
// beside the backward one.
double Exposed(const StepCost& c) {
  const double computing = Computing(c), one_way = c.transfer / 2;
  return std::max(0.0, one_way - 0.3 * computing) + std::max(0.0, one_way - 0.6 * computing);
}

}  // namespace

double StepCost::seconds() const { return Computing(*this) + Exposed(*this); }

StepCost& StepCost::operator+=(const StepCost& other) {
  gemm += other.gemm;
  attention += other.attention;
  decode += other.decode;
  elementwise += other.elementwise;
  head += other.head;
  optimizer += other.optimizer;
  launches += other.launches;
  transfer += other.transfer;
  return *this;
}

StepCost& StepCost::operator*=(double factor) {
  for (double* part : {&gemm, &attention, &decode, &elementwise, &head, &optimizer, &launches, &transfer}) {
    *part *= factor;
  }
  return *this;
}

StepCost operator+(StepCost a, const StepCost& b) { return a += b; }
StepCost operator*(double factor, StepCost a) { return a *= factor; }

StepCost CostOf(const DryCounts& counts, const Rates& rates) {
  StepCost cost;
  cost.gemm = counts.gemm_flops / rates.gemm_flops;
  cost.attention = counts.attention_seconds;
  cost.decode = counts.decode_bytes / rates.copy_bytes;
  cost.head = counts.head_bytes / rates.copy_bytes;
  cost.optimizer = counts.optimizer_bytes / rates.copy_bytes;
  cost.elementwise =
      (counts.bytes - counts.decode_bytes - counts.head_bytes - counts.optimizer_bytes) / rates.copy_bytes;
  cost.launches =
      static_cast<double>(counts.launches) * rates.launch_seconds + std::max(0.0, counts.gemm_seconds - cost.gemm);
  cost.transfer = counts.transfer_bytes / rates.link_bytes;
  return cost;
}

void ToProto(const StepCost& cost, v1::Plan* plan) {
  plan->clear_step_parts();
  auto part = [&](const char* name, double seconds) {
    v1::PlanPart* row = plan->add_step_parts();
    row->set_name(name);
    row->set_seconds(seconds);
  };
  part("gemm", cost.gemm);
  part("attention", cost.attention);
  part("decode", cost.decode);
  part("elementwise", cost.elementwise);
  part("head", cost.head);
  part("optimizer", cost.optimizer);
  part("transfer", Exposed(cost));
  part("launches", cost.launches);
}

}  // namespace hone
