#include "engine/model/block.h"

#include <algorithm>
#include <cmath>

namespace hone {

Block::Sizes Block::sizes() const {
  const int64_t d = config_.head_dim;
  return {config_.hidden_size, config_.intermediate_size, d, config_.num_heads * d, config_.num_kv_heads * d};
}

AttentionShape Block::attention() const {
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  return {config_.num_heads, config_.num_kv_heads, config_.head_dim, scale, 0, config_.sliding_window};
}

LinearGroup Block::Group(const BlockCall& call, GroupKind kind) const {
  const auto members = MembersOf(kind);
  LinearGroup group;
  group.weights = std::span(call.weights->linear).subspan(static_cast<size_t>(members.front()), members.size());
  group.decoded = call.weights->decoded[static_cast<size_t>(kind)];
  group.lora = lora_;
  group.spare = Spare(call.layer, kind);
  if (group.spare > 0) group.adapters = &lora_->layout->group(call.layer, kind);
  return group;
}

int64_t Block::OutputSpare(int64_t layer) const {
  return std::max(Spare(layer, GroupKind::kO), Spare(layer, GroupKind::kDown));
}

int64_t Block::ChunkRows(const BlockActivations& kept, int64_t rows) const {
  if (!kept.gate_up.empty() || options_.mlp_chunk_rows <= 0) return rows;
  return std::min(options_.mlp_chunk_rows, rows);
}

BlockActivations Block::KeepAttention(int64_t layer, const Launch& launch, Arena& arena) const {
  BlockActivations a;
  a.attn = launch.Buffer(arena, ops_.activation_dtype(), sizes().nq + Spare(layer, GroupKind::kO));
  a.lse = launch.Buffer(arena, DType::kF32, config_.num_heads);
  return a;
}

BlockActivations Block::Keep(int64_t layer, Recompute level, const Launch& launch, Arena& arena) const {
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  BlockActivations a;
  if (level == Recompute::kFull) return a;
  a = KeepAttention(layer, launch, arena);
  if (level == Recompute::kBlock) return a;
  a.qkv = launch.Buffer(arena, act, nq + 2 * nk);
  a.rstd1 = launch.Buffer(arena, DType::kF32, 1);
  a.rstd2 = launch.Buffer(arena, DType::kF32, 1);
  if (config_.qk_norm) {
    a.q_rstd = launch.Buffer(arena, DType::kF32, config_.num_heads);
    a.k_rstd = launch.Buffer(arena, DType::kF32, config_.num_kv_heads);
  }
  a.x_mid = launch.Buffer(arena, act, h);
  if (level == Recompute::kMlp) return a;
  a.gate_up = launch.Buffer(arena, act, 2 * f + Spare(layer, GroupKind::kGateUp));
  if (level == Recompute::kActivation) return a;
  if (config_.qk_norm) a.qk = launch.Buffer(arena, act, nq + nk);
  // Inputs of linears are needed for their adapters alone.
  auto input = [&](int64_t cols, GroupKind kind) {
    const int64_t spare = Spare(layer, kind);
    return spare == 0 ? Tensor{} : launch.Buffer(arena, act, cols + spare);
  };
  a.n1 = input(h, GroupKind::kQkv);
  a.n2 = input(h, GroupKind::kGateUp);
  a.h = input(f, GroupKind::kDown);
  return a;
}

void Block::Forward(const BlockCall& call, const BlockActivations& kept, Tensor x_out, Arena& scratch) {
  ArenaScope scope(scratch);
  if (call.mode == AdapterMode::kOn && call.refresh) {
    std::array<LinearGroup, kGroupKinds> groups;
    for (int kind = 0; kind < kGroupKinds; ++kind) groups[kind] = Group(call, static_cast<GroupKind>(kind));
    RefreshKeptWeights(ops_, groups);
  }
  // Never in place: a product that adds to what its output holds rounds otherwise than one that adds what lies
  // elsewhere, and every plan is to have the same bits.
  const Tensor x_mid =
      kept.x_mid.empty() ? call.launch->Buffer(scratch, ops_.activation_dtype(), sizes().h) : kept.x_mid;
  {
    ArenaScope attention(scratch);
    BlockActivations a = kept;
    if (a.attn.empty()) {
      const BlockActivations buffers = KeepAttention(call.layer, *call.launch, scratch);
      a.attn = buffers.attn;
      a.lse = buffers.lse;
    }
    {
      ArenaScope before(scratch);
      Qkv(call, a, {}, scratch);
      AttentionOutput(call, a);
    }
    Product(call, GroupKind::kO, {}, a.attn, a.x_in, x_mid, scratch);
  }
  MlpForward(call, kept, x_mid, x_out, scratch);
}

// Where weights are used as stored: the space for W', which the largest launch may need.
void Block::LayOutDecoded(const BlockCall& call, const LinearGroup& group, Arena& scratch) {
  ArenaScope scope(scratch);
  if (call.launch->capacity <= StoredProductRows(ops_)) return;
  scratch.AllocateTensor(ops_.activation_dtype(), group.outputs() + group.spare, group.inputs() + group.spare);
}

// Whether gate, up and the unit are one operation: weights as stored, no adapter between.
bool Block::JoinsGlu(const BlockCall& call, const LinearGroup& gate_up) const {
  if (call.stored == nullptr || !gate_up.decoded.empty() || Apart(gate_up)) return false;
  if (gate_up.spare > 0 && call.mode == AdapterMode::kOn) return false;
  return gate_up.weights[0].dtype == gate_up.weights[1].dtype;
}

void Block::Product(const BlockCall& call, GroupKind kind, Tensor shared, Tensor x_aug, Tensor addend, Tensor y,
                    Arena& scratch) {
  const LinearGroup group = Group(call, kind);
  if (call.stored != nullptr && group.decoded.empty()) {
    LayOutDecoded(call, group, scratch);
    return StoredProduct(ops_, group, call.mode, *call.stored, x_aug, addend, y);
  }
  WithWeight(group, call.mode, shared, scratch, [&](Tensor w) {
    AdapterForward(ops_, group, call.mode, w, x_aug);
    LinearProduct(ops_, group, w, x_aug, addend, y);
  });
}

// n1 and its spare columns; q, k, v before qk-norm and rotary. What is not kept of the norm goes at once.
void Block::NormedQkv(const BlockCall& call, BlockActivations a, const Shared& shared, Arena& scratch) {
  ArenaScope scope(scratch);
  const LinearGroup group = Group(call, GroupKind::kQkv);
  const Launch& launch = *call.launch;
  if (a.rstd1.empty()) a.rstd1 = launch.Buffer(scratch, DType::kF32, 1);
  if (a.n1.empty()) a.n1 = launch.Buffer(scratch, ops_.activation_dtype(), config_.hidden_size + group.spare);
  ops_.RmsNorm(a.x_in, call.weights->input_norm, config_.rms_norm_eps, a.n1.Cols(0, config_.hidden_size), a.rstd1);
  Product(call, GroupKind::kQkv, shared.qkv, a.n1, {}, a.qkv, scratch);
  if (!call.weights->qkv_bias.empty()) ops_.AddBias(call.weights->qkv_bias, a.qkv);
}

// qk <- q and k of qkv, normed and rotated.
void Block::QkNorm(const BlockCall& call, const BlockActivations& a) {
  const auto [h, f, d, nq, nk] = sizes();
  ops_.RmsNorm(a.qkv.Cols(0, nq), call.weights->q_norm, config_.rms_norm_eps, a.qk.Cols(0, nq), a.q_rstd);
  ops_.RmsNorm(a.qkv.Cols(nq, nk), call.weights->k_norm, config_.rms_norm_eps, a.qk.Cols(nq, nk), a.k_rstd);
  ops_.Rope(a.qk, d, call.launch->cos, call.launch->sin, RopeDirection::kForward);
}

// From x_in to what attention reads. Buffers that are not kept are put into `a`, in scratch.
void Block::Qkv(const BlockCall& call, BlockActivations& a, const Shared& shared, Arena& scratch) {
  const Launch& launch = *call.launch;
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  if (a.qkv.empty()) a.qkv = launch.Buffer(scratch, act, nq + 2 * nk);
  NormedQkv(call, a, shared, scratch);
  if (!config_.qk_norm) {
    if (call.cache == nullptr) return ops_.Rope(Qk(a), d, launch.cos, launch.sin, RopeDirection::kForward);
    Tensor both = call.cache->k;  // and values, beside them there as here
    both.cols = 2 * nk;
    return ops_.RopeToCache(a.qkv, d, launch.cos, launch.sin, call.cache->rows, both);
  }
  if (a.q_rstd.empty()) {
    a.q_rstd = launch.Buffer(scratch, DType::kF32, config_.num_heads);
    a.k_rstd = launch.Buffer(scratch, DType::kF32, config_.num_kv_heads);
  }
  if (a.qk.empty()) a.qk = launch.Buffer(scratch, act, nq + nk);
  QkNorm(call, a);
}

void Block::AttentionOutput(const BlockCall& call, const BlockActivations& a) {
  const Launch& launch = *call.launch;
  const auto [h, f, d, nq, nk] = sizes();
  const Tensor qk = Qk(a), v = a.qkv.Cols(nq + nk, nk), out = a.attn.Cols(0, nq);
  Tensor keys = qk.Cols(nq, nk), values = v;
  if (call.cache != nullptr) {
    if (config_.qk_norm) {
      ops_.ScatterRows(keys, call.cache->rows, call.cache->k);
      ops_.ScatterRows(values, call.cache->rows, call.cache->v);
    }
    keys = call.cache->k;
    values = call.cache->v;
  }
  ops_.Attention(qk.Cols(0, nq), keys, values, launch.segments, attention(), out, a.lse);
  // Attention leaves null rows alone; what lies there must be finite.
  const int64_t null_rows = launch.rows - launch.tokens;
  if (null_rows > 0) ops_.Fill(out.Rows(launch.tokens, null_rows), 0);
}

// n2 with its spare columns, and gate | up, of some rows.
void Block::GateUp(const BlockCall& call, Tensor x_mid, Tensor n2, Tensor rstd2, Tensor gate_up, Tensor shared,
                   Arena& scratch) {
  const auto [h, f, d, nq, nk] = sizes();
  const LinearGroup group = Group(call, GroupKind::kGateUp);
  ops_.RmsNorm(x_mid, call.weights->post_attention_norm, config_.rms_norm_eps, n2.Cols(0, h), rstd2);
  if (!Apart(group)) return Product(call, GroupKind::kGateUp, shared, n2, {}, gate_up.Cols(0, 2 * f), scratch);
  for (int i = 0; i < 2; ++i) {
    const LinearGroup member = group.Member(i);
    WithWeight(member, call.mode, {}, scratch, [&](Tensor w) {
      if (i == 0) AdapterForward(ops_, member, call.mode, w, n2);
      LinearProduct(ops_, member, w, n2, {}, gate_up.Cols(i * f, f));
    });
  }
}

void Block::MlpForward(const BlockCall& call, const BlockActivations& kept, Tensor x_mid, Tensor x_out,
                       Arena& scratch) {
  ArenaScope scope(scratch);
  const DType act = ops_.activation_dtype();
  const auto [h, f, d, nq, nk] = sizes();
  const Launch& launch = *call.launch;
  const LinearGroup gate_up_group = Group(call, GroupKind::kGateUp), down = Group(call, GroupKind::kDown);
  const int64_t capacity = ChunkRows(kept, launch.capacity);
  Shared shared;
  if (capacity < launch.capacity && !options_.decode_apart) {
    shared.gate_up = DecodedWeight(ops_, gate_up_group, call.mode, scratch);
    shared.down = DecodedWeight(ops_, down, call.mode, scratch);
  }
  for (int64_t begin = 0; begin < launch.rows; begin += capacity) {
    ArenaScope chunk(scratch);
    const int64_t rows = std::min(capacity, launch.rows - begin);
    auto buffer = [&](Tensor whole, DType dtype, int64_t cols) {
      return whole.empty() ? scratch.AllocateTensor(dtype, capacity, cols).Rows(0, rows) : whole.Rows(begin, rows);
    };
    const Tensor gate_up = buffer(kept.gate_up, act, 2 * f);
    const Tensor middle = x_mid.Rows(begin, rows);
    const bool fused = JoinsGlu(call, gate_up_group);
    {
      ArenaScope norm(scratch);
      const Tensor n2 = buffer(kept.n2, act, h + gate_up_group.spare), rstd2 = buffer(kept.rstd2, DType::kF32, 1);
      if (fused) {
        LayOutDecoded(call, gate_up_group, scratch);
      } else {
        GateUp(call, middle, n2, rstd2, gate_up, shared.gate_up, scratch);
      }
    }
    const Tensor hidden = buffer(kept.h, act, f + down.spare);
    if (fused) {
      ArenaScope norm(scratch);
      const Tensor n2 = buffer({}, act, h + gate_up_group.spare).Cols(0, h), rstd2 = buffer({}, DType::kF32, 1);
      ops_.RmsNorm(middle, call.weights->post_attention_norm, config_.rms_norm_eps, n2, rstd2);
      ops_.WeightMatmulGlu(n2, gate_up_group.weights, config_.activation, gate_up, hidden.Cols(0, f));
    } else {
      ops_.Glu(gate_up.Cols(0, 2 * f), config_.activation, hidden.Cols(0, f));
    }
    Product(call, GroupKind::kDown, shared.down, hidden, middle, x_out.Rows(begin, rows), scratch);
    if (kept.gate_up.empty() || !kept.h.empty()) continue;
    BlockActivations a;
    a.gate_up = gate_up;
    if (const Tensor u = DownColumns(down, a); !u.empty()) ops_.Copy(AdapterColumns(down, hidden), u);
  }
}

// Where the spare columns of h, which cost a pass over it, wait for the backward pass beside a gate_up that is kept: in
// its own, which nothing needs before that. Empty: no room.
Tensor Block::DownColumns(const LinearGroup& down, const BlockActivations& a) const {
  const int64_t gate_up = 2 * sizes().f;
  if (down.spare == 0 || gate_up + down.spare > a.gate_up.cols) return {};
  return a.gate_up.Cols(gate_up, down.spare);
}

}  // namespace hone
