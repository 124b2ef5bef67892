#include "engine/plan/cost.h"

#include <algorithm>

namespace hone {
namespace {

// Two buffers by turns do not hide a transfer to the last microsecond.
constexpr double kHidden = 0.92;
// What runs beside a transfer is slower for it (memory, power, the events between): on an H100 8B steps of 2 x 2,048
// tokens took 4 ms longer with 114 ms of transfers than a plan without any that was to take as long.
constexpr double kBeside = 0.03;

double Exposed(const StepCost& c) {
  const double one_way = c.transfer / 2;
  return std::max(0.0, one_way - kHidden * c.beside_out) + std::max(0.0, one_way - kHidden * c.beside_back) +
         kBeside * c.transfer;
}

}  // namespace

double StepCost::seconds() const { return computing() + Exposed(*this); }

StepCost& StepCost::operator+=(const StepCost& other) {
  gemm += other.gemm;
  attention += other.attention;
  decode += other.decode;
  elementwise += other.elementwise;
  head += other.head;
  optimizer += other.optimizer;
  launches += other.launches;
  transfer += other.transfer;
  beside_out += other.beside_out;
  beside_back += other.beside_back;
  return *this;
}

StepCost& StepCost::operator*=(double factor) {
  for (double* part :
       {&gemm, &attention, &decode, &elementwise, &head, &optimizer, &launches, &transfer, &beside_out, &beside_back}) {
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
