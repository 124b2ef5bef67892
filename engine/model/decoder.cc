#include "engine/model/decoder.h"

#include <algorithm>
#include <cmath>

#include "proto/base/status.h"

namespace hone {
namespace {

Tensor Reserve(Arena& arena, DType dtype, int64_t capacity_rows, int64_t rows, int64_t cols) {
  return arena.AllocateTensor(dtype, capacity_rows, cols).Rows(0, rows);
}

}  // namespace

// `capacity` rows are laid out, `rows` are used.
struct Decoder::Inputs {
  int64_t tokens = 0;
  int64_t logit_rows = 0;
  Tensor ids;       // kI32 [1, T]
  Tensor cos, sin;  // fp32 [T, D/2]
  Segments segments;
  Tensor row_ids;  // kI32 [1, m]
  Tensor targets;  // kI32 [1, m]
};

struct Decoder::LayerActivations {
  Tensor x_in;     // act [T, H]
  Tensor n1;       // act [T, H + R]     normed input of q, k, v
  Tensor rstd1;    // fp32 [T, 1]
  Tensor qkv;      // act [T, Nqkv + R]  after rotary; its gradient replaces it
  Tensor qk_pre;   // act [T, Nq + Nk]   before qk-norm; empty without it
  Tensor q_rstd;   // fp32 [T, heads]
  Tensor k_rstd;   // fp32 [T, kv_heads]
  Tensor attn;     // act [T, Nq + R]    input of o
  Tensor lse;      // fp32 [T, heads]
  Tensor x_mid;    // act [T, H]         after attention's residual
  Tensor n2;       // act [T, H + R]     normed input of gate, up
  Tensor rstd2;    // fp32 [T, 1]
  Tensor gate_up;  // act [T, 2F + R]    its gradient replaces it
  Tensor h;        // act [T, F + R]     input of down
};

struct Decoder::CacheSlot {
  Tensor k, v;  // act [cache rows, Nk]
  Tensor rows;  // kI32 [1, T]
};

struct Decoder::HeadState {
  Tensor hidden;     // act [m, H]  gathered rows before the final norm
  Tensor d_normed;   // act [m, H]  unit gradient with respect to the normed rows
  Tensor rstd;       // fp32 [m, 1]
  Tensor log_probs;  // fp32 [1, m]
};

Decoder::Decoder(Ops& ops, const Model& model, const Lora* lora, const DecoderOptions& options)
    : ops_(ops), model_(model), config_(model.config()), lora_(lora), options_(options) {}

LinearGroup Decoder::Group(int64_t layer, const LayerWeights& weights, GroupKind kind) const {
  const auto members = MembersOf(kind);
  LinearGroup group;
  // Members of a group are neighbours in LinearKind.
  group.weights = std::span(weights.linear).subspan(static_cast<size_t>(members.front()), members.size());
  group.lora = lora_;
  group.spare = SpareColumns(ops_, lora_, layer, kind);
  if (group.spare > 0) group.adapters = &lora_->layout->group(layer, kind);
  return group;
}

Decoder::Inputs Decoder::Upload(const PackedBatch& batch, const BatchLimits& limits, Arena& arena) {
  Inputs in;
  in.tokens = batch.tokens();
  in.logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  const auto segment_count = static_cast<int64_t>(batch.segments.size());
  HONE_CHECK(in.tokens > 0 && in.tokens <= limits.tokens, in.tokens, " tokens for ", limits.tokens);
  HONE_CHECK(in.logit_rows <= limits.logit_rows, in.logit_rows, " logit rows for ", limits.logit_rows);
  HONE_CHECK(segment_count <= limits.segments, segment_count, " segments for ", limits.segments);
  const int64_t half = config_.head_dim / 2;
  in.ids = arena.AllocateTensor(DType::kI32, 1, limits.tokens).Cols(0, in.tokens);
  Tensor positions = arena.AllocateTensor(DType::kI32, 1, limits.tokens).Cols(0, in.tokens);
  in.cos = Reserve(arena, DType::kF32, limits.tokens, in.tokens, half);
  in.sin = Reserve(arena, DType::kF32, limits.tokens, in.tokens, half);
  in.segments.host = batch.segments;
  in.segments.device = Reserve(arena, DType::kI32, limits.segments, segment_count, 6);
  in.row_ids = arena.AllocateTensor(DType::kI32, 1, limits.logit_rows).Cols(0, in.logit_rows);
  in.targets = arena.AllocateTensor(DType::kI32, 1, limits.logit_rows).Cols(0, in.logit_rows);
  auto upload = [&](const void* host, Tensor out) {
    out.pitch = out.cols;
    ops_.Upload(host, out);
  };
  upload(batch.ids.data(), in.ids);
  upload(batch.positions.data(), positions);
  upload(batch.segments.data(), in.segments.device);
  if (in.logit_rows > 0) {
    upload(batch.logit_rows.data(), in.row_ids);
    upload(batch.targets.data(), in.targets);
  }
  ops_.RopeTable(positions, model_.inv_freq(), 1, in.cos, in.sin);
  return in;
}

Decoder::LayerActivations Decoder::AllocateLayer(int64_t layer, const BatchLimits& limits, Arena& arena) const {
  const DType act = ops_.activation_dtype();
  const int64_t t = limits.tokens, h = config_.hidden_size, f = config_.intermediate_size;
  const int64_t nq = config_.num_heads * config_.head_dim, nk = config_.num_kv_heads * config_.head_dim;
  auto spare = [&](GroupKind kind) { return SpareColumns(ops_, lora_, layer, kind); };
  LayerActivations a;
  a.n1 = arena.AllocateTensor(act, t, h + spare(GroupKind::kQkv));
  a.rstd1 = arena.AllocateTensor(DType::kF32, t, 1);
  a.qkv = arena.AllocateTensor(act, t, nq + 2 * nk + spare(GroupKind::kQkv));
  if (config_.qk_norm) {
    a.qk_pre = arena.AllocateTensor(act, t, nq + nk);
    a.q_rstd = arena.AllocateTensor(DType::kF32, t, config_.num_heads);
    a.k_rstd = arena.AllocateTensor(DType::kF32, t, config_.num_kv_heads);
  }
  a.attn = arena.AllocateTensor(act, t, nq + spare(GroupKind::kO));
  a.lse = arena.AllocateTensor(DType::kF32, t, config_.num_heads);
  a.x_mid = arena.AllocateTensor(act, t, h);
  a.n2 = arena.AllocateTensor(act, t, h + spare(GroupKind::kGateUp));
  a.rstd2 = arena.AllocateTensor(DType::kF32, t, 1);
  a.gate_up = arena.AllocateTensor(act, t, 2 * f + spare(GroupKind::kGateUp));
  a.h = arena.AllocateTensor(act, t, f + spare(GroupKind::kDown));
  return a;
}

void Decoder::LayerForward(int64_t layer, const Inputs& in, AdapterMode mode, const LayerActivations& full,
                           Tensor x_out, const CacheSlot* cache, Arena& scratch) {
  const LayerLease weights = model_.Acquire(layer);
  const int64_t t = in.tokens, h = config_.hidden_size, f = config_.intermediate_size, d = config_.head_dim;
  const int64_t nq = config_.num_heads * d, nk = config_.num_kv_heads * d;
  auto rows = [t](Tensor x) { return x.empty() ? x : x.Rows(0, t); };
  const Tensor x_in = full.x_in, n1 = rows(full.n1), qkv = rows(full.qkv), attn = rows(full.attn),
               x_mid = rows(full.x_mid);
  const Tensor n2 = rows(full.n2), gate_up = rows(full.gate_up), hidden = rows(full.h);

  ops_.RmsNorm(x_in, weights->input_norm, config_.rms_norm_eps, n1.Cols(0, h), rows(full.rstd1));
  LinearForward(ops_, Group(layer, *weights, GroupKind::kQkv), mode, n1, qkv.Cols(0, nq + 2 * nk), 0, scratch);
  if (!weights->qkv_bias.empty()) ops_.AddBias(weights->qkv_bias, qkv.Cols(0, nq + 2 * nk));
  const Tensor q = qkv.Cols(0, nq), k = qkv.Cols(nq, nk), v = qkv.Cols(nq + nk, nk);
  if (config_.qk_norm) {
    const Tensor pre = rows(full.qk_pre);
    ops_.Copy(qkv.Cols(0, nq + nk), pre);
    ops_.RmsNorm(pre.Cols(0, nq), weights->q_norm, config_.rms_norm_eps, q, rows(full.q_rstd));
    ops_.RmsNorm(pre.Cols(nq, nk), weights->k_norm, config_.rms_norm_eps, k, rows(full.k_rstd));
  }
  ops_.Rope(q, d, in.cos, in.sin, RopeDirection::kForward);
  ops_.Rope(k, d, in.cos, in.sin, RopeDirection::kForward);
  AttentionShape shape{config_.num_heads,     config_.num_kv_heads, d, 1.0f / std::sqrt(static_cast<float>(d)), 0,
                       config_.sliding_window};
  if (cache != nullptr) {
    ops_.ScatterRows(k, cache->rows, cache->k);
    ops_.ScatterRows(v, cache->rows, cache->v);
    ops_.Attention(q, cache->k, cache->v, in.segments, shape, attn.Cols(0, nq), rows(full.lse));
  } else {
    ops_.Attention(q, k, v, in.segments, shape, attn.Cols(0, nq), rows(full.lse));
  }
  ops_.Copy(x_in, x_mid);
  LinearForward(ops_, Group(layer, *weights, GroupKind::kO), mode, attn, x_mid, 1, scratch);
  ops_.RmsNorm(x_mid, weights->post_attention_norm, config_.rms_norm_eps, n2.Cols(0, h), rows(full.rstd2));
  LinearForward(ops_, Group(layer, *weights, GroupKind::kGateUp), mode, n2, gate_up.Cols(0, 2 * f), 0, scratch);
  ops_.Glu(gate_up.Cols(0, 2 * f), config_.activation, hidden.Cols(0, f));
  if (x_out.empty()) return;  // recomputation: the output is not needed
  ops_.Copy(x_mid, x_out);
  LinearForward(ops_, Group(layer, *weights, GroupKind::kDown), mode, hidden, x_out, 1, scratch);
}

// dx_aug act [T, H + spare]: the gradient of the layer's output, replaced by that of its input. The spare columns serve
// the groups whose output is the residual stream (o and down).
void Decoder::LayerBackward(int64_t layer, const Inputs& in, const LayerActivations& full, Tensor dx_aug,
                            Arena& scratch) {
  ArenaScope scope(scratch);
  const LayerLease weights = model_.Acquire(layer);
  const DType act = ops_.activation_dtype();
  const int64_t t = in.tokens, h = config_.hidden_size, f = config_.intermediate_size, d = config_.head_dim;
  const int64_t nq = config_.num_heads * d, nk = config_.num_kv_heads * d;
  const int64_t capacity = full.n1.rows;
  auto rows = [t](Tensor x) { return x.empty() ? x : x.Rows(0, t); };
  const Tensor dx = dx_aug.Cols(0, h);
  const Tensor gate_up = rows(full.gate_up), qkv = rows(full.qkv);

  const LinearGroup down = Group(layer, *weights, GroupKind::kDown);
  const Tensor d_norm = Reserve(scratch, act, capacity, t, h);
  {
    ArenaScope mlp(scratch);
    const Tensor d_hidden = Reserve(scratch, act, capacity, t, f);
    LinearBackward(ops_, down, dx_aug.Cols(0, h + down.spare), rows(full.h), d_hidden, scratch);
    ops_.GluBackward(d_hidden, gate_up.Cols(0, 2 * f), config_.activation, gate_up.Cols(0, 2 * f));
  }
  LinearBackward(ops_, Group(layer, *weights, GroupKind::kGateUp), gate_up, rows(full.n2), d_norm, scratch);
  ops_.RmsNormBackward(d_norm, rows(full.x_mid), weights->post_attention_norm, rows(full.rstd2), dx, 1);

  const LinearGroup qkv_group = Group(layer, *weights, GroupKind::kQkv);
  const Tensor d_qkv = Reserve(scratch, act, capacity, t, nq + 2 * nk + qkv_group.spare);
  const Tensor dq = d_qkv.Cols(0, nq), dk = d_qkv.Cols(nq, nk), dv = d_qkv.Cols(nq + nk, nk);
  {
    ArenaScope attention(scratch);
    const LinearGroup o = Group(layer, *weights, GroupKind::kO);
    const Tensor d_attn = Reserve(scratch, act, capacity, t, nq);
    const Tensor delta = Reserve(scratch, DType::kF32, capacity, t, config_.num_heads);
    LinearBackward(ops_, o, dx_aug.Cols(0, h + o.spare), rows(full.attn), d_attn, scratch);
    AttentionShape shape{config_.num_heads,     config_.num_kv_heads, d, 1.0f / std::sqrt(static_cast<float>(d)), 0,
                         config_.sliding_window};
    ops_.AttentionBackward(d_attn, qkv.Cols(0, nq), qkv.Cols(nq, nk), qkv.Cols(nq + nk, nk),
                           rows(full.attn).Cols(0, nq), rows(full.lse), in.segments, shape, delta, dq, dk, dv);
  }
  ops_.Rope(dq, d, in.cos, in.sin, RopeDirection::kBackward);
  ops_.Rope(dk, d, in.cos, in.sin, RopeDirection::kBackward);
  if (config_.qk_norm) {
    const Tensor pre = rows(full.qk_pre);
    ops_.RmsNormBackward(dq, pre.Cols(0, nq), weights->q_norm, rows(full.q_rstd), dq, 0);
    ops_.RmsNormBackward(dk, pre.Cols(nq, nk), weights->k_norm, rows(full.k_rstd), dk, 0);
  }
  const bool last = layer == lora_->layout->first_layer();
  LinearBackward(ops_, qkv_group, d_qkv, rows(full.n1), last ? Tensor{} : d_norm, scratch);
  if (!last) ops_.RmsNormBackward(d_norm, full.x_in, weights->input_norm, rows(full.rstd1), dx, 1);
}

// Log-probabilities of the wanted rows of x, and with `gradient` their unit gradients. State is laid out in `kept`.
Decoder::HeadState Decoder::HeadForward(const Inputs& in, const BatchLimits& limits, Tensor x, bool gradient,
                                        Arena& kept, Arena& scratch) {
  const DType act = ops_.activation_dtype();
  const int64_t m = in.logit_rows, h = config_.hidden_size, v = config_.vocab_size;
  HeadState state;
  state.hidden = Reserve(kept, act, limits.logit_rows, m, h);
  if (gradient) state.d_normed = Reserve(kept, act, limits.logit_rows, m, h);
  state.rstd = Reserve(kept, DType::kF32, limits.logit_rows, m, 1);
  state.log_probs = kept.AllocateTensor(DType::kF32, 1, limits.logit_rows).Cols(0, m);
  ArenaScope scope(scratch);
  const Tensor normed = Reserve(scratch, act, limits.logit_rows, m, h);
  const int64_t chunk_capacity = std::min(options_.head_chunk_rows, limits.logit_rows);
  const Tensor logits_buffer = scratch.AllocateTensor(act, chunk_capacity, v);
  Tensor head{const_cast<void*>(model_.head().data), act, v, h, h};
  if (model_.head().dtype != act) {
    head = scratch.AllocateTensor(act, v, h);
    ops_.DecodeWeight(model_.head(), head);
  }
  if (m == 0) return state;
  ops_.GatherRows(x, in.row_ids, state.hidden);
  ops_.RmsNorm(state.hidden, model_.final_norm(), config_.rms_norm_eps, normed, state.rstd);
  for (int64_t begin = 0; begin < m; begin += chunk_capacity) {
    const int64_t count = std::min(chunk_capacity, m - begin);
    const Tensor logits = logits_buffer.Rows(0, count);
    ops_.Matmul(normed.Rows(begin, count), Transpose::kNo, head, Transpose::kYes, logits);
    ops_.LogProb(logits, in.targets.Cols(begin, count), transform_,
                 gradient ? LogProbMode::kUnitGradient : LogProbMode::kLogProbOnly, state.log_probs.Cols(begin, count));
    if (gradient) ops_.Matmul(logits, Transpose::kNo, head, Transpose::kNo, state.d_normed.Rows(begin, count));
  }
  return state;
}

// x [T, H] <- the residual stream after all layers; forward only, one layer's activations at a time.
void Decoder::RunLayersForward(const Inputs& in, const BatchLimits& limits, AdapterMode mode, Tensor x, KvCache* cache,
                               Tensor cache_rows, Arena& scratch) {
  ArenaScope scope(scratch);
  ops_.EmbeddingRows(model_.embedding(), in.ids, x);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    ArenaScope layer_scope(scratch);
    LayerActivations a = AllocateLayer(layer, limits, scratch);
    a.x_in = x;
    if (cache == nullptr) {
      LayerForward(layer, in, mode, a, x, nullptr, scratch);
      continue;
    }
    const CacheSlot slot{cache->k[layer], cache->v[layer], cache_rows};
    LayerForward(layer, in, mode, a, x, &slot, scratch);
  }
}

void Decoder::LogProbs(const PackedBatch& batch, const BatchLimits& limits, AdapterMode mode, Arena& scratch,
                       std::span<float> log_probs) {
  ArenaScope scope(scratch);
  const Inputs in = Upload(batch, limits, scratch);
  const Tensor x = Reserve(scratch, ops_.activation_dtype(), limits.tokens, in.tokens, config_.hidden_size);
  RunLayersForward(in, limits, mode, x, nullptr, {}, scratch);
  HeadState head = HeadForward(in, limits, x, false, scratch, scratch);
  if (in.logit_rows == 0) return;
  head.log_probs.pitch = head.log_probs.cols;
  ops_.Download(head.log_probs, log_probs.data());
}

void Decoder::ForwardBackward(const PackedBatch& batch, const BatchLimits& limits, Arenas arenas,
                              const Coefficients& coefficients) {
  HONE_CHECK(lora_ != nullptr && !lora_->gradients.empty());
  Arena& saved = *arenas.saved;
  Arena& scratch = *arenas.scratch;
  ArenaScope saved_scope(saved), scratch_scope(scratch);
  const DType act = ops_.activation_dtype();
  const Inputs in = Upload(batch, limits, saved);
  const int64_t first = lora_->layout->first_layer(), layers = config_.num_layers, h = config_.hidden_size;
  int64_t residual_spare = 0;
  for (int64_t layer = first; layer < layers; ++layer) {
    residual_spare = std::max({residual_spare, SpareColumns(ops_, lora_, layer, GroupKind::kO),
                               SpareColumns(ops_, lora_, layer, GroupKind::kDown)});
  }
  const Tensor dx_aug = Reserve(saved, act, limits.tokens, in.tokens, h + residual_spare);

  // Forward. Layers under the first adapter need nothing later and run in place.
  Tensor x = Reserve(saved, act, limits.tokens, in.tokens, h);
  ops_.EmbeddingRows(model_.embedding(), in.ids, x);
  std::vector<LayerActivations> kept(layers);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const bool keep = layer >= first && LevelOf(layer) == Recompute::kNone;
    ArenaScope layer_scope(scratch);
    LayerActivations a = AllocateLayer(layer, limits, keep ? saved : scratch);
    a.x_in = x;
    if (layer >= first) x = Reserve(saved, act, limits.tokens, in.tokens, h);
    LayerForward(layer, in, AdapterMode::kOn, a, x, nullptr, scratch);
    kept[layer] = a;
  }

  HeadState head = HeadForward(in, limits, x, true, saved, scratch);
  std::vector<float> log_probs(in.logit_rows), factors(in.logit_rows);
  head.log_probs.pitch = head.log_probs.cols;
  ops_.Download(head.log_probs, log_probs.data());
  coefficients(log_probs, factors);
  ops_.Upload(factors.data(), head.log_probs);
  ops_.ScaleRows(head.d_normed, head.log_probs);
  ops_.RmsNormBackward(head.d_normed, head.hidden, model_.final_norm(), head.rstd, head.d_normed, 0);
  ops_.Fill(dx_aug.Cols(0, h), 0);
  ops_.ScatterRows(head.d_normed, in.row_ids, dx_aug.Cols(0, h));

  for (int64_t layer = layers - 1; layer >= first; --layer) {
    ArenaScope layer_scope(scratch);
    LayerActivations a = kept[layer];
    if (LevelOf(layer) != Recompute::kNone) {
      a = AllocateLayer(layer, limits, scratch);
      a.x_in = kept[layer].x_in;
      LayerForward(layer, in, AdapterMode::kOn, a, Tensor{}, nullptr, scratch);
      // The recomputation stops before down's product; its input's spare columns are what that product would have
      // written.
      const LayerLease weights = model_.Acquire(layer);
      const LinearGroup down = Group(layer, *weights, GroupKind::kDown);
      AdapterColumnsForward(ops_, down, a.h.Rows(0, in.tokens), scratch);
    }
    LayerBackward(layer, in, a, dx_aug, scratch);
  }
}

KvCache Decoder::AllocateCache(const Ops& ops, const DecoderConfig& config, int64_t rows, Arena& arena) {
  KvCache cache;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    cache.k.push_back(arena.AllocateTensor(ops.activation_dtype(), rows, config.num_kv_heads * config.head_dim));
    cache.v.push_back(arena.AllocateTensor(ops.activation_dtype(), rows, config.num_kv_heads * config.head_dim));
  }
  return cache;
}

void Decoder::Logits(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows,
                     KvCache& cache, AdapterMode mode, Arena& scratch, std::vector<float>& logits) {
  HONE_CHECK(static_cast<int64_t>(cache_rows.size()) == batch.tokens());
  ArenaScope scope(scratch);
  const DType act = ops_.activation_dtype();
  const int64_t h = config_.hidden_size, v = config_.vocab_size;
  const Inputs in = Upload(batch, limits, scratch);
  Tensor rows = scratch.AllocateTensor(DType::kI32, 1, limits.tokens).Cols(0, in.tokens);
  rows.pitch = rows.cols;
  ops_.Upload(cache_rows.data(), rows);
  const Tensor x = Reserve(scratch, act, limits.tokens, in.tokens, h);
  RunLayersForward(in, limits, mode, x, &cache, rows, scratch);
  const int64_t m = in.logit_rows;
  const Tensor hidden = Reserve(scratch, act, limits.logit_rows, m, h);
  const Tensor rstd = Reserve(scratch, DType::kF32, limits.logit_rows, m, 1);
  const Tensor out = Reserve(scratch, DType::kF32, limits.logit_rows, m, v);
  Tensor head{const_cast<void*>(model_.head().data), act, v, h, h};
  if (model_.head().dtype != act) {
    head = scratch.AllocateTensor(act, v, h);
    ops_.DecodeWeight(model_.head(), head);
  }
  if (m == 0) return;
  ops_.GatherRows(x, in.row_ids, hidden);
  ops_.RmsNorm(hidden, model_.final_norm(), config_.rms_norm_eps, hidden, rstd);
  ops_.Matmul(hidden, Transpose::kNo, head, Transpose::kYes, out);
  logits.resize(m * v);
  ops_.Download(out, logits.data());
  if (transform_.softcap > 0 || transform_.scale != 1) {
    for (float& z : logits) {
      z *= transform_.scale;
      if (transform_.softcap > 0) z = transform_.softcap * std::tanh(z / transform_.softcap);
    }
  }
}

}  // namespace hone
