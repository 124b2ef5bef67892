// AdamW over the adapter's flat vectors: owns the states' layout in the optimizer arena and the step's scalars. The
// update itself is Ops::AdamW.
#pragma once

#include <cstdint>

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
  Tensor m() const { return m_; }
  Tensor v() const { return v_; }

 private:
  Ops& ops_;
  AdamWConstants constants_;
  float max_grad_norm_;
  Tensor m_, v_, sum_squares_, step_;
};

}  // namespace hone
