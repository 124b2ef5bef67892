// A group of frozen linears that share one input, with their adapters folded into the same matrix product.
//
// The decoded weights are W' [N + R, K + R] (N outputs of the group stacked, K inputs, R spare columns for a summed
// rank), in scratch for each use or kept:
//               W' = [ W  Bd ]   Bd: block diagonal of the B matrices, zero elsewhere
//                    [ A  .. ]   A:  the stacked A matrices, then zero rows
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
};  // kOff: the same product with the activation's spare columns zero (the reference)

struct LinearGroup {
  std::span<const WeightView> weights;  // [N_i, K] each
  Tensor decoded;                       // W' where it is kept; empty: decoded for each use
  const Lora* lora = nullptr;           // null: no adapter at all, R = 0
  const LoraGroup* adapters = nullptr;
  int64_t spare = 0;  // R
  int first = 0;      // place of weights[0] among the group's members

  int64_t inputs() const { return weights[0].cols; }
  int64_t outputs() const;
  // One weight with the spare columns and A rows of the whole group, to be decoded alone.
  LinearGroup Member(int i) const;
};

// The spare columns R that an activation beside this group needs.
int64_t SpareColumns(const Ops& ops, const Lora* lora, int64_t layer, GroupKind kind);

// W', decoded into scratch unless it is kept or lies ready as stored.
Tensor DecodedWeight(Ops& ops, const LinearGroup& group, AdapterMode mode, Arena& scratch);
// Puts the adapter's present values into those W' of a layer that are kept.
void RefreshKeptWeights(Ops& ops, std::span<const LinearGroup> groups);

// Writes the spare columns of x' [T, K + R].
void AdapterForward(Ops& ops, const LinearGroup& group, AdapterMode mode, Tensor w, Tensor x_aug);
// y[T, N] <- x' W'^T (+ addend, which lies elsewhere; empty: none), x's spare columns already written.
void LinearProduct(Ops& ops, const LinearGroup& group, Tensor w, Tensor x_aug, Tensor addend, Tensor y);

// Launches of so many rows, in generation, use weights as stored.
int64_t StoredProductRows(const Ops& ops);
// The same from the weights as stored, for at most kWeightMatmulRows rows: y[T, N] <- x W^T + s x A^T B^T (+ addend;
// empty: none). `act` has the adapter's values in the activations' dtype; x's spare columns are scratch.
void StoredProduct(Ops& ops, const LinearGroup& group, AdapterMode mode, const Lora& act, Tensor x_aug, Tensor addend,
                   Tensor y);

// The spare columns of x' [T, K + R]; empty, where there are none.
Tensor AdapterColumns(const LinearGroup& group, Tensor x_aug);
// spare [T, R] (dy's own spare columns) <- s dy Bd + beta spare, and adds dB, dy [T, N] read once for both. u: the
// spare columns of x'; empty, where they are not written yet: no dB.
void AdapterBackward(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy, Tensor u, Tensor spare, float beta = 0);
// Adds dB alone, to the same bits.
void AdapterGradientB(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy, Tensor u);
// dx [T, K] <- dy' W'.
void InputGradient(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy_aug, Tensor dx);
// Adds dA. spare: dy's spare columns.
void AdapterGradientA(Ops& ops, const LinearGroup& group, Tensor spare, Tensor x_aug);

}  // namespace hone
