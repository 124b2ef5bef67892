#include "engine/model/head.h"

#include <algorithm>

#include "engine/model/linear.h"
#include "proto/base/status.h"

namespace hone {

Tensor Head::Weight(Arena& scratch) {
  const DType act = ops_.activation_dtype();
  const WeightView& stored = model_.head();
  if (stored.dtype == act) return {const_cast<void*>(stored.data), act, stored.rows, stored.cols, stored.cols};
  const Tensor decoded = scratch.AllocateTensor(act, stored.rows, stored.cols);
  ops_.DecodeWeight(stored, decoded);
  return decoded;
}

Head::State Head::Forward(const Launch& launch, Tensor x, bool gradient, Arena& scratch) {
  const DType act = ops_.activation_dtype();
  const int64_t capacity = launch.logit_capacity, h = hidden_size(), v = model_.config().vocab_size;
  State state;
  state.log_probs = scratch.AllocateTensor(DType::kF32, 1, capacity);
  state.rstd = scratch.AllocateTensor(DType::kF32, capacity, 1);
  if (gradient) state.d_normed = scratch.AllocateTensor(act, capacity, h);
  ArenaScope scope(scratch);
  const int64_t chunk = std::min(chunk_rows_, capacity);
  const Tensor normed_buffer = scratch.AllocateTensor(act, chunk, h);
  const Tensor logits_buffer = scratch.AllocateTensor(act, chunk, v);
  const Tensor weight = Weight(scratch);
  // Padding rows are computed twice or for nothing; what they leave is overwritten or never read.
  auto range = [&](int64_t first, int64_t end, bool with_gradient) {
    for (int64_t begin = first; begin < end; begin += chunk) {
      const int64_t wanted = std::min(chunk, end - begin);
      const int64_t count = std::min({(wanted + multiple_ - 1) / multiple_ * multiple_, chunk, capacity - begin});
      const Tensor normed = normed_buffer.Rows(0, count), logits = logits_buffer.Rows(0, count);
      ops_.GatherRows(x, launch.row_ids.Cols(begin, count), normed);
      ops_.RmsNorm(normed, model_.final_norm(), model_.config().rms_norm_eps, normed, state.rstd.Rows(begin, count));
      ops_.Matmul(normed, Transpose::kNo, weight, Transpose::kYes, logits);
      ops_.LogProb(logits, launch.targets.Cols(begin, count), transform_,
                   with_gradient ? LogProbMode::kUnitGradient : LogProbMode::kLogProbOnly,
                   state.log_probs.Cols(begin, count));
      if (with_gradient) {
        ops_.Matmul(logits, Transpose::kNo, weight, Transpose::kNo, state.d_normed.Rows(begin, count));
      }
    }
  };
  const int64_t with_gradient = gradient ? launch.gradient_logits : 0;
  range(0, with_gradient, true);
  range(with_gradient, launch.logit_rows, false);
  state.log_probs.cols = state.log_probs.pitch = launch.logit_rows;
  return state;
}

void Head::Backward(const Launch& launch, Tensor x, const State& state, std::span<const float> factors, Tensor dx,
                    Arena& scratch) {
  HONE_CHECK(static_cast<int64_t>(factors.size()) == launch.gradient_logits);
  const int64_t m = launch.gradient_logits, h = hidden_size(), v = model_.config().vocab_size;
  ops_.Fill(dx, 0);
  ArenaScope scope(scratch);
  // As many rows at a time as the logits' space holds.
  const int64_t chunk =
      std::min(launch.logit_capacity, std::min(chunk_rows_, launch.logit_capacity) * std::max<int64_t>(1, v / h));
  const Tensor hidden_buffer = scratch.AllocateTensor(ops_.activation_dtype(), chunk, h);
  if (m == 0) return;
  Tensor factor_list = state.log_probs.Cols(0, m);
  factor_list.pitch = m;
  ops_.Upload(factors.data(), factor_list);
  for (int64_t begin = 0; begin < m; begin += chunk) {
    const int64_t count = std::min(chunk, m - begin);
    const Tensor hidden = hidden_buffer.Rows(0, count), d = state.d_normed.Rows(begin, count);
    ops_.GatherRows(x, launch.row_ids.Cols(begin, count), hidden);
    ops_.ScaleRows(d, factor_list.Cols(begin, count));
    ops_.RmsNormBackward(d, hidden, model_.final_norm(), state.rstd.Rows(begin, count), d, 0);
    ops_.ScatterRows(d, launch.row_ids.Cols(begin, count), dx);
  }
}

Tensor Head::Logits(const Launch& launch, Tensor x, Arena& scratch) {
  const int64_t m = launch.logit_rows, v = model_.config().vocab_size;
  const DType act = ops_.activation_dtype();
  const Tensor normed = scratch.AllocateTensor(act, launch.logit_capacity, hidden_size()).Rows(0, m);
  const Tensor rstd = scratch.AllocateTensor(DType::kF32, launch.logit_capacity, 1).Rows(0, m);
  const Tensor out = scratch.AllocateTensor(DType::kF32, launch.logit_capacity, v).Rows(0, m);
  ArenaScope scope(scratch);
  const bool as_stored = launch.logit_capacity <= StoredProductRows(ops_);
  const Tensor weight = as_stored ? Tensor{} : Weight(scratch);
  if (m == 0) return out;
  ops_.GatherRows(x, launch.row_ids.Cols(0, m), normed);
  ops_.RmsNorm(normed, model_.final_norm(), model_.config().rms_norm_eps, normed, rstd);
  if (as_stored) {
    ops_.WeightMatmul(normed, {&model_.head(), 1}, out);
  } else {
    ops_.Matmul(normed, Transpose::kNo, weight, Transpose::kYes, out);
  }
  return out;
}

}  // namespace hone
