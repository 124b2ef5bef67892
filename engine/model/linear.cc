#include "engine/model/linear.h"

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr Transpose kNo = Transpose::kNo;
constexpr Transpose kYes = Transpose::kYes;

// W' in scratch, its spare parts filled for `mode`. Without spare columns a weight already stored as activations are is
// used where it lies.
Tensor AugmentedWeight(Ops& ops, const LinearGroup& group, AdapterMode mode, Arena& scratch) {
  const int64_t n = group.outputs(), k = group.inputs(), spare = group.spare;
  const DType dtype = ops.activation_dtype();
  if (spare == 0 && group.weights.size() == 1 && group.weights[0].dtype == dtype) {
    return Tensor{const_cast<void*>(group.weights[0].data), dtype, n, k, k};
  }
  Tensor w = scratch.AllocateTensor(dtype, n + spare, k + spare);
  int64_t row = 0;
  for (const WeightView& weight : group.weights) {
    ops.DecodeWeight(weight, w.Sub(row, weight.rows, 0, k));
    row += weight.rows;
  }
  if (spare == 0) return w;
  // The block diagonal leaves zeros between its blocks; one block that fills the columns leaves none. Below row n
  // nothing is read.
  const bool whole = group.weights.size() == 1 && mode == AdapterMode::kOn && group.adapters->sum_r == spare;
  if (!whole) ops.Fill(w.Sub(0, n, k, spare), 0);
  if (mode == AdapterMode::kOff) return w;
  int64_t column = 0;
  row = 0;
  for (size_t i = 0; i < group.weights.size(); ++i) {
    if (group.adapters->member[i] >= 0) {
      const LoraMatrix& m = group.lora->layout->matrices()[group.adapters->member[i]];
      ops.Copy(group.lora->B(m), w.Sub(row, m.out, k + column, m.r));
      column += m.r;
    }
    row += group.weights[i].rows;
  }
  ops.Copy(group.lora->StackedA(*group.adapters, k), w.Sub(n, group.adapters->sum_r, 0, k));
  if (group.adapters->sum_r < spare) {
    ops.Fill(w.Sub(n + group.adapters->sum_r, spare - group.adapters->sum_r, 0, k), 0);
  }
  return w;
}

}  // namespace

int64_t LinearGroup::outputs() const {
  int64_t n = 0;
  for (const WeightView& weight : weights) n += weight.rows;
  return n;
}

int64_t SpareColumns(const Ops& ops, const Lora* lora, int64_t layer, GroupKind kind) {
  if (lora == nullptr) return 0;
  const int64_t sum_r = lora->layout->group(layer, kind).sum_r;
  return sum_r == 0 ? 0 : ops.AdapterColumns(sum_r);
}

void LinearForward(Ops& ops, const LinearGroup& group, AdapterMode mode, Tensor x_aug, Tensor y, float beta,
                   Arena& scratch) {
  ArenaScope scope(scratch);
  const int64_t n = group.outputs(), k = group.inputs(), spare = group.spare;
  const Tensor w = AugmentedWeight(ops, group, mode, scratch);
  if (spare > 0) {
    const int64_t used = mode == AdapterMode::kOn ? group.adapters->sum_r : 0;
    if (used > 0) {
      ops.Matmul(x_aug.Cols(0, k), kNo, w.Sub(n, used, 0, k), kYes, x_aug.Cols(k, used),
                 group.lora->layout->config().scale());
    }
    if (used < spare) ops.Fill(x_aug.Cols(k + used, spare - used), 0);
  }
  ops.Matmul(x_aug, kNo, w.Rows(0, n), kYes, y, 1, beta);
}

void AdapterColumnsForward(Ops& ops, const LinearGroup& group, Tensor x_aug, Arena& scratch) {
  if (group.spare == 0) return;
  ArenaScope scope(scratch);
  const int64_t k = group.inputs(), used = group.adapters->sum_r;
  const Tensor a = scratch.AllocateTensor(ops.activation_dtype(), used, k);
  ops.Copy(group.lora->StackedA(*group.adapters, k), a);
  ops.Matmul(x_aug.Cols(0, k), kNo, a, kYes, x_aug.Cols(k, used), group.lora->layout->config().scale());
  if (used < group.spare) ops.Fill(x_aug.Cols(k + used, group.spare - used), 0);
}

void LinearBackward(Ops& ops, const LinearGroup& group, Tensor dy_aug, Tensor x_aug, Tensor dx, Arena& scratch) {
  const int64_t n = group.outputs(), k = group.inputs(), spare = group.spare;
  if (spare == 0 && dx.empty()) return;
  ArenaScope scope(scratch);
  const Tensor w = AugmentedWeight(ops, group, AdapterMode::kOn, scratch);
  if (spare > 0) {
    const float scale = group.lora->layout->config().scale();
    int64_t row = 0, column = 0;
    for (size_t i = 0; i < group.weights.size(); ++i) {
      if (group.adapters->member[i] >= 0) {
        const LoraMatrix& m = group.lora->layout->matrices()[group.adapters->member[i]];
        const Tensor dy = dy_aug.Cols(row, m.out);
        ops.Matmul(dy, kNo, w.Sub(row, m.out, k + column, m.r), kNo, dy_aug.Cols(n + column, m.r), scale);
        ops.Matmul(dy, kYes, x_aug.Cols(k + column, m.r), kNo, group.lora->GradB(m), 1, 1);
        column += m.r;
      }
      row += group.weights[i].rows;
    }
    if (column < spare) ops.Fill(dy_aug.Cols(n + column, spare - column), 0);
    ops.Matmul(dy_aug.Cols(n, column), kYes, x_aug.Cols(0, k), kNo, group.lora->GradStackedA(*group.adapters, k), 1, 1);
  }
  if (!dx.empty()) ops.Matmul(dy_aug, kNo, w.Cols(0, k), kNo, dx);
}

}  // namespace hone
