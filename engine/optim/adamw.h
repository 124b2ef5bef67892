// AdamW over the adapter's flat vectors: owns the states' layout in the optimizer arena and the step's scalars. The
// update itself is Ops::AdamW, or with 8-bit states Ops::AdamW8bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hone/v1/spec.pb.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

class AdamWOptimizer {
 public:
  AdamWOptimizer(Ops& ops, const v1::OptimizerSpec& spec, int64_t elements, Arena& arena);
  void Reset();  // states to zero
  // One update of `values` by `gradients` (fp32 [1, elements]); step 0 is the first. Gradients are clipped by global
  // norm.
  void Step(Tensor values, Tensor gradients, int64_t step, double learning_rate);
  double GradientNorm();  // of the last step, before clipping; waits for the device
  // That of a step not yet made, for who may leave it out; Step measures the same again.
  double NormOf(Tensor gradients);

  // What a checkpoint keeps, dense: fp32 "adamw_m" and "adamw_v", or of each its codes (kU8) and its blocks' scales.
  struct State {
    std::string name;
    Tensor tensor;
  };
  const std::vector<State>& states() const { return states_; }

 private:
  Ops& ops_;
  AdamWConstants constants_;
  float max_grad_norm_;
  bool eight_bit_;
  Tensor m_, v_, m_absmax_, v_absmax_, sum_squares_, step_;
  std::vector<Tensor> zeroed_;  // what Reset fills; codes as whole words
  std::vector<State> states_;
};

}  // namespace hone
