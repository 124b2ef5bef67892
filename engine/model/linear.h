// A group of frozen linears that share one input, with their adapters folded into the same matrix product.
//
// The decoded weights go to scratch as W' [N + R, K + R] (N outputs of the group stacked, K inputs, R spare columns for
// a summed rank):   W' = [ W  Bd ]   Bd: block diagonal of the B matrices
//               [ A  .. ]   A:  the stacked A matrices
// Activations have spare columns too: x' = [x | s x A^T], dy' = [dy | s dy Bd]. Then
//   forward   y  = x' W'[0:N, :]^T          backward   dx = dy' W'[:, 0:K]
//             dB = dy^T (s x A^T)                       dA = (s dy Bd)^T x
// so base and adapter cost one product each way (reference/gpus.md measured what that saves).
#pragma once

#include <span>

#include "engine/model/lora.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

enum class AdapterMode : uint8_t {
  kOn,
  kOff
};  // kOff: the same product with the adapter's columns zero (the reference)

struct LinearGroup {
  std::span<const WeightView> weights;  // [N_i, K] each
  const Lora* lora = nullptr;           // null: no adapter at all, R = 0
  const LoraGroup* adapters = nullptr;
  int64_t spare = 0;  // R

  int64_t inputs() const { return weights[0].cols; }
  int64_t outputs() const;
};

// The spare columns R that an activation beside this group needs.
int64_t SpareColumns(const Ops& ops, const Lora* lora, int64_t layer, GroupKind kind);

// y[T, N] <- x W^T (+ adapter) + beta y.  x_aug [T, K + R]: the first K columns are read, the spare ones written.
void LinearForward(Ops& ops, const LinearGroup& group, AdapterMode mode, Tensor x_aug, Tensor y, float beta,
                   Arena& scratch);

// What LinearForward writes beside x, without the product itself: [s x A^T | 0].
void AdapterColumnsForward(Ops& ops, const LinearGroup& group, Tensor x_aug, Arena& scratch);

// dy_aug [T, N + R]: the first N columns are read, the spare ones written. x_aug as the forward left it. dx [T, K] is
// overwritten (empty: not wanted). Adds to the adapter's gradients.
void LinearBackward(Ops& ops, const LinearGroup& group, Tensor dy_aug, Tensor x_aug, Tensor dx, Arena& scratch);

}  // namespace hone
