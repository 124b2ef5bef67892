#include <algorithm>
#include <utility>

#include "engine/model/block.h"

namespace hone {
namespace {

// Of what a forward pass left, the rows [begin, begin + rows).
BlockActivations RowsOf(BlockActivations a, int64_t begin, int64_t rows) {
  auto cut = [&](Tensor& t) {
    if (!t.empty()) t = t.Rows(begin, rows);
  };
  cut(a.x_in);
  for (const auto tensor : kKeptTensors) cut(a.*tensor);
  return a;
}

}  // namespace

void Block::Backward(const BlockCall& call, const BlockActivations& kept, Tensor dx_aug, bool input_gradient,
                     Arena& scratch) {
  ArenaScope scope(scratch);
  const Launch& launch = *call.launch;
  const DType act = ops_.activation_dtype();
  const LinearGroup qkv = Group(call, GroupKind::kQkv), o = Group(call, GroupKind::kO);
  BlockActivations a = RowsOf(kept, 0, launch.rows);
  Shared shared;
  const bool again = a.x_mid.empty(), attention_again = a.attn.empty();
  if (again) {
    if (!options_.decode_apart) {
      shared.qkv = DecodedWeight(ops_, qkv, call.mode, scratch);
      shared.o = DecodedWeight(ops_, o, call.mode, scratch);
      if (qkv.spare > 0) a.n1 = launch.Buffer(scratch, act, config_.hidden_size + qkv.spare);
    }
    a.rstd1 = launch.Buffer(scratch, DType::kF32, 1);
    if (attention_again) {
      const BlockActivations buffers = KeepAttention(call.layer, launch, scratch);
      a.attn = buffers.attn;
      a.lse = buffers.lse;
    }
    Qkv(call, a, shared, scratch);
    if (attention_again) AttentionOutput(call, a);
  }
  {
    ArenaScope mlp(scratch);
    Tensor x_mid = a.x_mid;
    if (again) {
      x_mid = launch.Buffer(scratch, act, config_.hidden_size);
      WithWeight(o, call.mode, shared.o, scratch, [&](Tensor w) {
        if (attention_again) AdapterForward(ops_, o, call.mode, w, a.attn);
        LinearProduct(ops_, o, w, a.attn, a.x_in, x_mid);
      });
    }
    MlpBackward(call, a, x_mid, dx_aug, scratch);
  }
  AttentionBackward(call, a, dx_aug, input_gradient, shared, scratch);
}

// dx <- the gradient of x_mid, from that of the block's output. down's product is never needed again.
void Block::MlpBackward(const BlockCall& call, const BlockActivations& a, Tensor x_mid, Tensor dx_aug, Arena& scratch) {
  const Launch& launch = *call.launch;
  const int64_t capacity = ChunkRows(a, launch.capacity);
  Shared shared;
  if (!options_.decode_apart) {
    if (a.gate_up.empty()) shared.gate_up = DecodedWeight(ops_, Group(call, GroupKind::kGateUp), call.mode, scratch);
    if (capacity < launch.capacity)
      shared.down = DecodedWeight(ops_, Group(call, GroupKind::kDown), call.mode, scratch);
  }
  for (int64_t begin = 0; begin < launch.rows; begin += capacity) {
    const int64_t rows = std::min(capacity, launch.rows - begin);
    MlpBackwardRows(call, RowsOf(a, begin, rows), x_mid.Rows(begin, rows), dx_aug.Rows(begin, rows), capacity, shared,
                    scratch);
  }
}

void Block::MlpBackwardRows(const BlockCall& call, BlockActivations a, Tensor x_mid, Tensor dx_aug, int64_t capacity,
                            const Shared& shared, Arena& scratch) {
  ArenaScope scope(scratch);
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  const int64_t rows = x_mid.rows, spare = Spare(call.layer, GroupKind::kGateUp);
  auto buffer = [&](DType dtype, int64_t cols) { return scratch.AllocateTensor(dtype, capacity, cols).Rows(0, rows); };
  a.x_mid = x_mid;
  if (a.rstd2.empty()) a.rstd2 = buffer(DType::kF32, 1);
  const bool gate_up_kept = !a.gate_up.empty();
  if (!gate_up_kept) {
    a.gate_up = buffer(act, 2 * f + spare);
    a.n2 = buffer(act, h + spare);
    GateUp(call, x_mid, a.n2, a.rstd2, a.gate_up, shared.gate_up, scratch);
  }
  DownBackward(call, a, gate_up_kept, dx_aug, capacity, shared.down, scratch);
  const Tensor d_n2 = buffer(act, h);
  GateUpBackward(call, a, d_n2, capacity, shared.gate_up, scratch);
  ops_.RmsNormBackward(d_n2, x_mid, call.weights->post_attention_norm, a.rstd2, dx_aug.Cols(0, h), 1);
}

// gate_up <- its gradient. The gated unit's output is written again on the way where it was not kept.
void Block::DownBackward(const BlockCall& call, const BlockActivations& a, bool gate_up_kept, Tensor dx_aug,
                         int64_t capacity, Tensor shared, Arena& scratch) {
  ArenaScope scope(scratch);
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  const int64_t rows = a.gate_up.rows;
  const LinearGroup down = Group(call, GroupKind::kDown);
  const bool again = a.h.empty() && down.spare > 0;
  const Tensor d_hidden = scratch.AllocateTensor(act, capacity, f).Rows(0, rows);
  const Tensor hidden = again ? scratch.AllocateTensor(act, capacity, f + down.spare).Rows(0, rows) : a.h;
  const Tensor dy = dx_aug.Cols(0, h + down.spare), gate_up = a.gate_up.Cols(0, 2 * f);
  const Tensor u = !again ? AdapterColumns(down, hidden) : gate_up_kept ? DownColumns(down, a) : Tensor{};
  WithWeight(down, call.mode, shared, scratch, [&](Tensor w) {
    AdapterBackward(ops_, down, w, dy.Cols(0, h), u, dy.Cols(h, down.spare));
    InputGradient(ops_, down, w, dy, d_hidden);
    ops_.GluBackward(d_hidden, gate_up, config_.activation, gate_up, again ? hidden.Cols(0, f) : Tensor{});
    if (!u.empty() || down.spare == 0) return;
    AdapterForward(ops_, down, call.mode, w, hidden);
    AdapterGradientB(ops_, down, w, dy.Cols(0, h), AdapterColumns(down, hidden));
  });
  AdapterGradientA(ops_, down, dy.Cols(h, down.spare), hidden);
}

// d_n2 <- the gradient of the norm's output, from that of gate_up.
void Block::GateUpBackward(const BlockCall& call, BlockActivations a, Tensor d_n2, int64_t capacity, Tensor shared,
                           Arena& scratch) {
  ArenaScope scope(scratch);
  const auto [h, f, d, nq, nk] = sizes();
  const LinearGroup group = Group(call, GroupKind::kGateUp);
  const Tensor dy = a.gate_up, spare = dy.Cols(2 * f, group.spare);
  const bool norm_again = a.n2.empty() && group.spare > 0;
  if (norm_again) {
    a.n2 = scratch.AllocateTensor(ops_.activation_dtype(), capacity, h + group.spare).Rows(0, dy.rows);
    ops_.RmsNorm(a.x_mid, call.weights->post_attention_norm, config_.rms_norm_eps, a.n2.Cols(0, h), a.rstd2);
  }
  if (!Apart(group)) {
    WithWeight(group, call.mode, shared, scratch, [&](Tensor w) {
      if (norm_again) AdapterForward(ops_, group, call.mode, w, a.n2);
      AdapterBackward(ops_, group, w, dy.Cols(0, 2 * f), AdapterColumns(group, a.n2), spare);
      InputGradient(ops_, group, w, dy, d_n2);
    });
  } else {
    const LinearGroup gate = group.Member(0), up = group.Member(1);
    WithWeight(gate, call.mode, {}, scratch, [&](Tensor w) {
      if (norm_again) AdapterForward(ops_, gate, call.mode, w, a.n2);
      AdapterBackward(ops_, gate, w, dy.Cols(0, f), AdapterColumns(gate, a.n2), spare);
      ops_.Matmul(dy.Cols(0, f), Transpose::kNo, w.Sub(0, f, 0, h), Transpose::kNo, d_n2);
    });
    WithWeight(up, call.mode, {}, scratch, [&](Tensor w) {
      AdapterBackward(ops_, up, w, dy.Cols(f, f), AdapterColumns(up, a.n2), spare, 1);
      ops_.Matmul(dy.Cols(f, f + group.spare), Transpose::kNo, w.Sub(0, f + group.spare, 0, h), Transpose::kNo, d_n2, 1,
                  1);
    });
  }
  AdapterGradientA(ops_, group, spare, a.n2);
}

// dx: from the gradient of x_mid to that of x_in.
void Block::AttentionBackward(const BlockCall& call, BlockActivations a, Tensor dx_aug, bool input_gradient,
                              const Shared& shared, Arena& scratch) {
  ArenaScope scope(scratch);
  const Launch& launch = *call.launch;
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  const LinearGroup o = Group(call, GroupKind::kO);
  const Tensor d_qkv = launch.Buffer(scratch, act, nq + 2 * nk + Spare(call.layer, GroupKind::kQkv));
  const Tensor dq = d_qkv.Cols(0, nq), dk = d_qkv.Cols(nq, nk), dv = d_qkv.Cols(nq + nk, nk);
  {
    ArenaScope attention_scope(scratch);
    const Tensor d_attn = launch.Buffer(scratch, act, nq);
    const Tensor delta = launch.Buffer(scratch, DType::kF32, config_.num_heads);
    const Tensor dy = dx_aug.Cols(0, h + o.spare);
    WithWeight(o, call.mode, shared.o, scratch, [&](Tensor w) {
      AdapterBackward(ops_, o, w, dy.Cols(0, h), AdapterColumns(o, a.attn), dy.Cols(h, o.spare));
      InputGradient(ops_, o, w, dy, d_attn);
    });
    AdapterGradientA(ops_, o, dy.Cols(h, o.spare), a.attn);
    if (config_.qk_norm && a.qk.empty()) {
      a.qk = launch.Buffer(scratch, act, nq + nk);
      QkNorm(call, a);
    }
    const Tensor qk = Qk(a);
    ops_.AttentionBackward(d_attn, qk.Cols(0, nq), qk.Cols(nq, nk), a.qkv.Cols(nq + nk, nk), a.attn.Cols(0, nq), a.lse,
                           launch.segments, attention(), delta, dq, dk, dv);
  }
  ops_.Rope(d_qkv.Cols(0, nq + nk), d, launch.cos, launch.sin, RopeDirection::kBackward);
  if (config_.qk_norm) {
    ops_.RmsNormBackward(dq, a.qkv.Cols(0, nq), call.weights->q_norm, a.q_rstd, dq, 0);
    ops_.RmsNormBackward(dk, a.qkv.Cols(nq, nk), call.weights->k_norm, a.k_rstd, dk, 0);
  }
  QkvBackward(call, a, d_qkv, dx_aug.Cols(0, h), input_gradient, shared, scratch);
}

void Block::QkvBackward(const BlockCall& call, BlockActivations a, Tensor d_qkv, Tensor dx, bool input_gradient,
                        const Shared& shared, Arena& scratch) {
  const LinearGroup group = Group(call, GroupKind::kQkv);
  if (group.spare == 0 && !input_gradient) return;
  ArenaScope scope(scratch);
  const Launch& launch = *call.launch;
  const DType act = ops_.activation_dtype();
  const int64_t h = config_.hidden_size, n = group.outputs();
  const bool norm_again = a.n1.empty() && group.spare > 0;
  const Tensor d_n1 = input_gradient ? launch.Buffer(scratch, act, h) : Tensor{};
  if (norm_again) {
    a.n1 = launch.Buffer(scratch, act, h + group.spare);
    ops_.RmsNorm(a.x_in, call.weights->input_norm, config_.rms_norm_eps, a.n1.Cols(0, h), a.rstd1);
  }
  WithWeight(group, call.mode, shared.qkv, scratch, [&](Tensor w) {
    if (norm_again) AdapterForward(ops_, group, call.mode, w, a.n1);
    AdapterBackward(ops_, group, w, d_qkv.Cols(0, n), AdapterColumns(group, a.n1), d_qkv.Cols(n, group.spare));
    if (input_gradient) InputGradient(ops_, group, w, d_qkv, d_n1);
  });
  AdapterGradientA(ops_, group, d_qkv.Cols(n, group.spare), a.n1);
  if (input_gradient) ops_.RmsNormBackward(d_n1, a.x_in, call.weights->input_norm, a.rstd1, dx, 1);
}

}  // namespace hone
