// One launch on the device: a PackedBatch with null rows behind it, laid out for limits that a plan knows. Not here:
// what is computed with it.
#pragma once

#include <cstdint>

#include "engine/model/batch.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

struct Launch {
  int64_t tokens = 0;             // rows that segments may name; the rest, up to `rows`, are null
  int64_t rows = 0;               // rows that are computed
  int64_t capacity = 0;           // rows that buffers are laid out for
  int64_t backward_capacity = 0;  // and those of the backward pass
  int64_t logit_rows = 0;
  int64_t gradient_logits = 0;  // the first so many of them have a gradient
  int64_t logit_capacity = 0;
  Tensor ids;       // kI32 [1, rows]
  Tensor cos, sin;  // fp32 [rows, D/2]
  Segments segments;
  Tensor row_ids;  // kI32 [1, logit_capacity], zeros behind logit_rows
  Tensor targets;  // kI32 [1, logit_capacity]

  // A buffer for the launch: laid out for the capacity, used in part.
  Tensor Buffer(Arena& arena, DType dtype, int64_t cols) const {
    return arena.AllocateTensor(dtype, capacity, cols).Rows(0, rows);
  }
};

// Rows that a launch of so many tokens computes.
int64_t LaunchRows(int64_t tokens, int64_t row_multiple);
// Logit rows are padded to a multiple of their own where rows are.
int64_t LogitMultiple(int64_t row_multiple);

// Uploads `batch` into `arena` and makes the rotary tables. inv_freq fp32 [1, D/2].
Launch MakeLaunch(Ops& ops, const PackedBatch& batch, const BatchLimits& limits, int64_t row_multiple, Tensor inv_freq,
                  Arena& arena);
// The part of `launch` that is not forward-only.
Launch BackwardPart(const Launch& launch, const PackedBatch& batch, int64_t row_multiple);

}  // namespace hone
