#include "engine/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

#include "engine/model/kept_layers.h"
#include "proto/base/status.h"

namespace hone {

Decoder::Decoder(Ops& ops, const Model& model, const Lora* lora, const DecoderOptions& options)
    : ops_(ops),
      model_(model),
      config_(model.config()),
      lora_(lora),
      options_(options),
      block_(ops, config_, lora, options),
      head_(ops, model, options.head_chunk_rows, options.row_multiple),
      refreshed_(config_.num_layers, 0) {
  HONE_CHECK(options_.recompute.empty() || static_cast<int64_t>(options_.recompute.size()) == config_.num_layers,
             options_.recompute.size(), " levels for ", config_.num_layers, " layers");
}

bool Decoder::NeedsRefresh(int64_t layer, AdapterMode mode) {
  if (mode == AdapterMode::kOff) return false;
  if (adapter_version_ > 0 && refreshed_[layer] == adapter_version_) return false;
  refreshed_[layer] = adapter_version_;
  return true;
}

// Rehearsing, layers that do what a lower one does are left out.
std::vector<bool> Decoder::SkippedLayers() const {
  std::vector<bool> skipped(config_.num_layers, false);
  if (!rehearsing_) return skipped;
  std::set<std::vector<int64_t>> seen;
  const int64_t first = lora_ == nullptr ? 0 : lora_->layout->first_layer();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const LayerLease weights = model_.Acquire(layer);
    std::vector<int64_t> kind = {layer < first ? 1 : 0, layer > first ? 1 : 0, static_cast<int64_t>(LevelOf(layer))};
    for (int group = 0; group < kGroupKinds; ++group) {
      kind.push_back(weights->decoded[group].empty() ? 0 : 1);
      kind.push_back(lora_ == nullptr ? 0 : lora_->layout->group(layer, static_cast<GroupKind>(group)).sum_r);
    }
    for (const WeightView& weight : weights->linear) kind.push_back(static_cast<int64_t>(weight.dtype));
    skipped[layer] = !seen.insert(std::move(kind)).second;
  }
  return skipped;
}

// x [T, H] <- the residual stream after all layers; forward only, in place, one layer's activations at a time.
void Decoder::RunLayersForward(const Launch& launch, AdapterMode mode, Tensor x, KvCache* cache, Tensor cache_rows,
                               const Lora* stored, Arena& scratch) {
  ops_.EmbeddingRows(model_.embedding(), launch.ids, x);
  const std::vector<bool> skipped = SkippedLayers();
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (skipped[layer]) continue;
    const LayerLease weights = model_.Acquire(layer);
    const CacheSlot slot = cache != nullptr ? CacheSlot{cache->k[layer], cache->v[layer], cache_rows} : CacheSlot{};
    BlockActivations a;
    a.x_in = x;
    block_.Forward(
        {layer, &*weights, &launch, mode, cache != nullptr ? &slot : nullptr, NeedsRefresh(layer, mode), stored}, a, x,
        scratch);
  }
}

void Decoder::LogProbs(const PackedBatch& batch, const BatchLimits& limits, AdapterMode mode, Arena& scratch,
                       std::span<float> log_probs) {
  ArenaScope scope(scratch);
  const Launch launch = MakeLaunch(ops_, batch, limits, options_.row_multiple, model_.inv_freq(), scratch);
  const Tensor x = launch.Buffer(scratch, ops_.activation_dtype(), config_.hidden_size);
  RunLayersForward(launch, mode, x, nullptr, {}, nullptr, scratch);
  const Head::State head = head_.Forward(launch, x, false, scratch);
  if (launch.logit_rows > 0) ops_.Download(head.log_probs, log_probs.data());
}

void Decoder::ForwardBackward(const PackedBatch& batch, const BatchLimits& limits, Arenas arenas,
                              const Coefficients& coefficients) {
  HONE_CHECK(lora_ != nullptr && !lora_->gradients.empty());
  Arena& saved = *arenas.saved;
  Arena& scratch = *arenas.scratch;
  ArenaScope saved_scope(saved), scratch_scope(scratch);
  std::optional<ArenaScope> pinned_scope;
  if (arenas.pinned != nullptr) pinned_scope.emplace(*arenas.pinned);
  const DType act = ops_.activation_dtype();
  const int64_t first = lora_->layout->first_layer(), layers = config_.num_layers, h = config_.hidden_size;
  const Launch launch = MakeLaunch(ops_, batch, limits, options_.row_multiple, model_.inv_freq(), saved);
  const Launch backward = BackwardPart(launch, batch, options_.row_multiple);

  KeptLayers::Options keeping;
  keeping.first = first;
  for (int64_t layer = 0; layer < layers; ++layer) keeping.levels.push_back(LevelOf(layer));
  keeping.hidden_size = h;
  keeping.backward_rows = backward.rows;
  for (int64_t layer = 0; layer < layers; ++layer) keeping.on_host.push_back(OnHost(options_, layer));
  keeping.transfers = !rehearsing_;
  KeptLayers kept(ops_, block_, launch, keeping, saved, arenas.pinned);

  // Layers under the first adapter need nothing later and run in place.
  Tensor x = kept.Input(first);
  ops_.EmbeddingRows(model_.embedding(), launch.ids, x);
  for (int64_t layer = 0; layer < first; ++layer) {
    const LayerLease weights = model_.Acquire(layer);
    BlockActivations nothing;
    nothing.x_in = x;
    block_.Forward({layer, &*weights, &launch, AdapterMode::kOn}, nothing, x, scratch);
  }
  const std::vector<bool> skipped = SkippedLayers();
  for (int64_t layer = first; layer < layers; ++layer) {
    const LayerLease weights = model_.Acquire(layer);
    const BlockActivations& a = kept.BeginForward(layer);
    x = kept.Input(layer + 1);
    if (skipped[layer]) {
      ops_.Copy(a.x_in, x);
    } else {
      block_.Forward({layer, &*weights, &launch, AdapterMode::kOn, nullptr, NeedsRefresh(layer, AdapterMode::kOn)}, a,
                     x, scratch);
    }
    kept.EndForward(layer);
  }

  int64_t spare = 0;
  for (int64_t layer = first; layer < layers; ++layer) spare = std::max(spare, block_.OutputSpare(layer));
  const Tensor dx_aug = backward.Buffer(scratch, act, h + spare);
  {
    ArenaScope head_scope(scratch);
    const Head::State head = head_.Forward(launch, x, true, scratch);
    std::vector<float> log_probs(launch.logit_rows), factors(launch.gradient_logits);
    ops_.Download(head.log_probs, log_probs.data());
    coefficients(log_probs, factors);
    head_.Backward(launch, x, head, factors, dx_aug.Cols(0, h), scratch);
  }
  for (int64_t layer = layers - 1; layer >= first; --layer) {
    const LayerLease weights = model_.Acquire(layer);
    const BlockActivations& a = kept.BeginBackward(layer);
    if (skipped[layer]) continue;
    block_.Backward({layer, &*weights, &backward, AdapterMode::kOn}, a, dx_aug, layer > first, scratch);
  }
}

KvCache Decoder::AllocateCache(const Ops& ops, const DecoderConfig& config, int64_t rows, Arena& arena) {
  KvCache cache;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const int64_t nk = config.num_kv_heads * config.head_dim;
    const Tensor both = arena.AllocateTensor(ops.activation_dtype(), rows, 2 * nk);
    cache.k.push_back(both.Cols(0, nk));
    cache.v.push_back(both.Cols(nk, nk));
  }
  return cache;
}

Decoder::NewLogits Decoder::RunWithCache(const PackedBatch& batch, const BatchLimits& limits,
                                         std::span<const int32_t> cache_rows, KvCache& cache, AdapterMode mode,
                                         Arena& scratch) {
  HONE_CHECK(static_cast<int64_t>(cache_rows.size()) == batch.tokens());
  const Launch launch = MakeLaunch(ops_, batch, limits, 1, model_.inv_freq(), scratch);
  auto list = [&](int64_t most, int64_t count) {
    Tensor t = scratch.AllocateTensor(DType::kI32, 1, most).Cols(0, count);
    t.pitch = t.cols;
    return t;
  };
  const Tensor rows = list(limits.tokens, launch.tokens), tokens = list(limits.logit_rows, launch.logit_rows);
  ops_.Upload(cache_rows.data(), rows);
  const Tensor x = launch.Buffer(scratch, ops_.activation_dtype(), config_.hidden_size);
  // The adapter in the activations' dtype, for products with weights as stored.
  Lora act_lora;
  if (lora_ != nullptr) {
    act_lora = *lora_;
    if (act_lora.values.dtype != ops_.activation_dtype()) {
      act_lora.values = scratch.AllocateTensor(ops_.activation_dtype(), 1, lora_->values.cols);
      if (mode == AdapterMode::kOn) ops_.Copy(lora_->values, act_lora.values);
    }
  }
  const bool as_stored = launch.rows <= StoredProductRows(ops_);
  RunLayersForward(launch, mode, x, &cache, rows, as_stored ? &act_lora : nullptr, scratch);
  return {head_.Logits(launch, x, scratch), tokens};
}

void Decoder::Logits(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows,
                     KvCache& cache, AdapterMode mode, Arena& scratch, std::vector<float>& logits) {
  ArenaScope scope(scratch);
  const Tensor out = RunWithCache(batch, limits, cache_rows, cache, mode, scratch).logits;
  if (batch.logit_rows.empty()) return;
  logits.resize(out.elements());
  ops_.Download(out, logits.data());
  const LogitTransform& transform = head_.transform();
  if (transform.softcap > 0 || transform.scale != 1) {
    for (float& z : logits) {
      z *= transform.scale;
      if (transform.softcap > 0) z = transform.softcap * std::tanh(z / transform.softcap);
    }
  }
}

void Decoder::MostLikely(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows,
                         KvCache& cache, AdapterMode mode, Arena& scratch, std::span<int32_t> tokens) {
  HONE_CHECK(tokens.size() == batch.logit_rows.size() && head_.transform().scale > 0);
  ArenaScope scope(scratch);
  const NewLogits found = RunWithCache(batch, limits, cache_rows, cache, mode, scratch);
  if (tokens.empty()) return;
  ops_.ArgMax(found.logits, found.tokens);  // the transform keeps the order
  ops_.Download(found.tokens, tokens.data());
}

}  // namespace hone
