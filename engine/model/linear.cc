#include "engine/model/linear.h"

#include <algorithm>
#include <array>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr Transpose kNo = Transpose::kNo;
constexpr Transpose kYes = Transpose::kYes;

// The adapter of member i of the group, null if it has none, and its place among the spare columns.
struct MemberAdapter {
  const LoraMatrix* matrix = nullptr;
  int64_t column = 0;
};

MemberAdapter AdapterOf(const LinearGroup& group, int i) {
  if (group.spare == 0) return {};
  const auto matrices = group.lora->layout->matrices();
  MemberAdapter found;
  for (int m = 0; m <= group.first + i; ++m) {
    const int index = group.adapters->member[m];
    if (m == group.first + i) {
      if (index >= 0) found.matrix = &matrices[index];
    } else if (index >= 0) {
      found.column += matrices[index].r;
    }
  }
  return found;
}

template <typename Part>
struct PartsOf {
  std::array<Part, 3> parts;
  size_t count = 0;
  std::span<const Part> span() const { return std::span(parts).first(count); }
};

PartsOf<AugmentPart> AugmentParts(const LinearGroup& group, bool adapters) {
  PartsOf<AugmentPart> p;
  for (const WeightView& weight : group.weights) {
    const MemberAdapter adapter = AdapterOf(group, static_cast<int>(p.count));
    AugmentPart& part = p.parts[p.count++];
    part.weight = weight;
    if (!adapters || adapter.matrix == nullptr) continue;
    part.b = group.lora->B(*adapter.matrix);
    part.column = adapter.column;
  }
  return p;
}

PartsOf<AdapterPart> AdapterParts(const LinearGroup& group) {
  PartsOf<AdapterPart> p;
  for (const WeightView& weight : group.weights) {
    const MemberAdapter adapter = AdapterOf(group, static_cast<int>(p.count));
    AdapterPart& part = p.parts[p.count++];
    part.rows = weight.rows;
    if (adapter.matrix == nullptr) continue;
    part.db = group.lora->GradB(*adapter.matrix);
    part.column = adapter.column;
  }
  return p;
}

}  // namespace

int64_t LinearGroup::outputs() const {
  int64_t n = 0;
  for (const WeightView& weight : weights) n += weight.rows;
  return n;
}

LinearGroup LinearGroup::Member(int i) const {
  HONE_CHECK(decoded.empty());
  LinearGroup member = *this;
  member.weights = weights.subspan(i, 1);
  member.first = first + i;
  return member;
}

int64_t SpareColumns(const Ops& ops, const Lora* lora, int64_t layer, GroupKind kind) {
  if (lora == nullptr) return 0;
  const int64_t sum_r = lora->layout->group(layer, kind).sum_r;
  return sum_r == 0 ? 0 : ops.AdapterColumns(sum_r);
}

Tensor DecodedWeight(Ops& ops, const LinearGroup& group, AdapterMode mode, Arena& scratch) {
  if (!group.decoded.empty()) return group.decoded;
  const int64_t n = group.outputs(), k = group.inputs();
  const DType dtype = ops.activation_dtype();
  if (group.spare == 0 && group.weights.size() == 1 && group.weights[0].dtype == dtype) {
    return Tensor{const_cast<void*>(group.weights[0].data), dtype, n, k, k};
  }
  const Tensor w = scratch.AllocateTensor(dtype, n + group.spare, k + group.spare);
  const bool on = mode == AdapterMode::kOn && group.spare > 0;
  ops.AugmentWeight(AugmentParts(group, on).span(), on ? group.lora->StackedA(*group.adapters, k) : Tensor{}, w);
  return w;
}

void RefreshKeptWeights(Ops& ops, std::span<const LinearGroup> groups) {
  HONE_CHECK(groups.size() <= kGroupKinds, groups.size());
  std::array<PartsOf<AugmentPart>, kGroupKinds> parts;
  std::array<AdapterRefresh, kGroupKinds> weights;
  size_t count = 0;
  for (const LinearGroup& group : groups) {
    if (group.decoded.empty() || group.spare == 0) continue;
    parts[count] = AugmentParts(group, true);
    weights[count] = {parts[count].span(), group.lora->StackedA(*group.adapters, group.inputs()), group.decoded};
    ++count;
  }
  if (count > 0) ops.RefreshAdapters(std::span(weights).first(count));
}

void AdapterForward(Ops& ops, const LinearGroup& group, AdapterMode mode, Tensor w, Tensor x_aug) {
  if (group.spare == 0) return;
  const int64_t n = group.outputs(), k = group.inputs();
  if (mode == AdapterMode::kOff) return ops.Fill(x_aug.Cols(k, group.spare), 0);
  // A's zero rows give the columns that no adapter uses.
  ops.Matmul(x_aug.Cols(0, k), kNo, w.Sub(n, group.spare, 0, k), kYes, x_aug.Cols(k, group.spare),
             group.lora->layout->config().scale());
}

void LinearProduct(Ops& ops, const LinearGroup& group, Tensor w, Tensor x_aug, Tensor addend, Tensor y) {
  const Tensor rows = w.Rows(0, group.outputs());
  if (addend.empty()) return ops.Matmul(x_aug, kNo, rows, kYes, y);
  ops.MatmulAdd(x_aug, kNo, rows, kYes, addend, y);
}

// In fp32 (the CPU) a decoded weight and BLAS are faster from two rows on.
int64_t StoredProductRows(const Ops& ops) { return ops.activation_dtype() == DType::kF32 ? 1 : kWeightMatmulRows; }

void StoredProduct(Ops& ops, const LinearGroup& group, AdapterMode mode, const Lora& act, Tensor x_aug, Tensor addend,
                   Tensor y) {
  const int64_t k = group.inputs();
  const Tensor x = x_aug.Cols(0, k);
  const std::span<const WeightView> weights = group.weights;
  const auto alike = [&](const WeightView& w) { return w.dtype == weights[0].dtype; };
  if (std::all_of(weights.begin(), weights.end(), alike)) {
    ops.WeightMatmul(x, weights, y, addend);
  } else {  // a file may store a group's members in different forms
    int64_t row = 0;
    for (const WeightView& w : weights) {
      ops.WeightMatmul(x, {&w, 1}, y.Cols(row, w.rows), addend.empty() ? addend : addend.Cols(row, w.rows));
      row += w.rows;
    }
  }
  if (group.spare == 0 || mode == AdapterMode::kOff) return;
  const Tensor spare = x_aug.Cols(k, group.adapters->sum_r);
  ops.Matmul(x, kNo, act.StackedA(*group.adapters, k), kYes, spare, act.layout->config().scale());
  int64_t row = 0;
  for (size_t i = 0; i < group.weights.size(); ++i) {
    const MemberAdapter adapter = AdapterOf(group, static_cast<int>(i));
    if (adapter.matrix != nullptr) {
      const LoraMatrix& m = *adapter.matrix;
      ops.Matmul(spare.Cols(adapter.column, m.r), kNo, act.B(m), kYes, y.Cols(row, m.out), 1, 1);
    }
    row += group.weights[i].rows;
  }
}

Tensor AdapterColumns(const LinearGroup& group, Tensor x_aug) {
  return group.spare == 0 ? Tensor{} : x_aug.Cols(group.inputs(), group.spare);
}

void AdapterBackward(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy, Tensor u, Tensor spare, float beta) {
  if (group.spare == 0) return;
  const int64_t n = group.outputs(), k = group.inputs();
  ops.AdapterBackward(AdapterParts(group).span(), dy, w.Sub(0, n, k, group.spare), u,
                      group.lora->layout->config().scale(), beta, spare);
}

void AdapterGradientB(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy, Tensor u) {
  AdapterBackward(ops, group, w, dy, u, {});
}

void InputGradient(Ops& ops, const LinearGroup& group, Tensor w, Tensor dy_aug, Tensor dx) {
  ops.Matmul(dy_aug, kNo, w.Sub(0, group.outputs() + group.spare, 0, group.inputs()), kNo, dx);
}

void AdapterGradientA(Ops& ops, const LinearGroup& group, Tensor spare, Tensor x_aug) {
  if (group.spare == 0) return;
  const int64_t k = group.inputs();
  ops.Matmul(spare.Cols(0, group.adapters->sum_r), kYes, x_aug.Cols(0, k), kNo,
             group.lora->GradStackedA(*group.adapters, k), 1, 1);
}

}  // namespace hone
