#include "engine/model/kept_layers.h"

#include <algorithm>
#include <utility>

#include "proto/base/status.h"

namespace hone {

KeptLayers::KeptLayers(Ops& ops, const Block& block, const Launch& launch, Options options, Arena& saved, Arena* pinned)
    : ops_(ops), block_(block), launch_(launch), options_(std::move(options)), slots_(options_.levels.size()) {
  static_assert(kTransferSlots >= 4);
  inputs_.slot = 0;
  attentions_.slot = 2;
  LayOut(saved, pinned);
}

bool KeptLayers::Offloads(int64_t layer) const {
  return options_.offload && options_.levels[layer] >= Recompute::kBlock;
}

void KeptLayers::LayOut(Arena& saved, Arena* pinned) {
  const DType act = ops_.activation_dtype();
  const auto count = static_cast<int64_t>(slots_.size());
  const uint64_t x_bytes = launch_.capacity * options_.hidden_size * BlockBytes(act);
  uint64_t attn_bytes = 0, lse_bytes = 0;
  for (int64_t layer = options_.first; layer < count; ++layer) {
    Slot& slot = slots_[layer];
    const Recompute level = options_.levels[layer];
    if (!Offloads(layer)) {
      slot.kept = block_.Keep(layer, level, launch_, saved);
      slot.kept.x_in = launch_.Buffer(saved, act, options_.hidden_size);
      continue;
    }
    HONE_CHECK(pinned != nullptr);
    slot.x_ordinal = static_cast<int64_t>(inputs_.layers.size());
    inputs_.layers.push_back(layer);
    slot.x_host = pinned->Allocate(x_bytes);
    if (level != Recompute::kBlock) continue;
    slot.attn_ordinal = static_cast<int64_t>(attentions_.layers.size());
    attentions_.layers.push_back(layer);
    Arena dry = Arena::Dry("attention");
    const BlockActivations shape = block_.KeepAttention(layer, launch_, dry);
    const uint64_t attn = launch_.capacity * shape.attn.cols * BlockBytes(act);
    const uint64_t lse = launch_.capacity * shape.lse.cols * BlockBytes(DType::kF32);
    slot.kept.attn = shape.attn;
    slot.kept.lse = shape.lse;
    slot.attn_host = pinned->Allocate(attn);
    slot.lse_host = pinned->Allocate(lse);
    attn_bytes = std::max(attn_bytes, attn);
    lse_bytes = std::max(lse_bytes, lse);
  }
  if (inputs_.layers.empty()) {
    last_output_ = launch_.Buffer(saved, act, options_.hidden_size);
    return;
  }
  for (int i = 0; i < 2; ++i) {
    inputs_.buffer[i] = saved.Allocate(x_bytes);
    attentions_.buffer[i] = saved.Allocate(attn_bytes);
    lse_[i] = saved.Allocate(lse_bytes);
  }
  auto input = [&](int64_t ordinal) {
    return Tensor{inputs_.buffer[ordinal % 2], act, launch_.rows, options_.hidden_size, options_.hidden_size};
  };
  for (Slot& slot : slots_) {
    if (slot.x_ordinal >= 0) slot.kept.x_in = input(slot.x_ordinal);
    if (slot.attn_ordinal < 0) continue;
    slot.kept.attn.data = attentions_.buffer[slot.attn_ordinal % 2];
    slot.kept.lse.data = lse_[slot.attn_ordinal % 2];
  }
  last_output_ = input(static_cast<int64_t>(inputs_.layers.size()));
}

// Of the two buffers the last layer's input stays in one, and the last output takes the other.
void KeptLayers::TransferInput(const Slot& slot, bool fetch) {
  const Tensor x = slot.kept.x_in.Rows(0, options_.backward_rows);
  const int number = inputs_.slot + static_cast<int>(slot.x_ordinal % 2);
  fetch ? ops_.StartFetch(slot.x_host, x, number) : ops_.StartOffload(x, slot.x_host, number);
}

void KeptLayers::TransferAttention(const Slot& slot, bool fetch) {
  const Tensor attn = slot.kept.attn.Rows(0, options_.backward_rows), lse = slot.kept.lse.Rows(0, options_.backward_rows);
  const int number = attentions_.slot + static_cast<int>(slot.attn_ordinal % 2);
  if (fetch) {
    ops_.StartFetch(slot.attn_host, attn, number);
    ops_.StartFetch(slot.lse_host, lse, number);
  } else {
    ops_.StartOffload(attn, slot.attn_host, number);
    ops_.StartOffload(lse, slot.lse_host, number);
  }
}

Tensor KeptLayers::Input(int64_t layer) {
  const auto count = static_cast<int64_t>(slots_.size()), offloaded = static_cast<int64_t>(inputs_.layers.size());
  const bool last = layer == count;
  const int64_t ordinal = last ? (offloaded > 0 ? offloaded : -1) : slots_[layer].x_ordinal;
  // The buffer's earlier owner must have left.
  if (ordinal >= 2) ops_.FinishTransfer(inputs_.slot + static_cast<int>(ordinal % 2));
  return last ? last_output_ : slots_[layer].kept.x_in;
}

const BlockActivations& KeptLayers::BeginForward(int64_t layer) {
  const Slot& slot = slots_[layer];
  if (slot.attn_ordinal >= 2) ops_.FinishTransfer(attentions_.slot + static_cast<int>(slot.attn_ordinal % 2));
  if (slot.x_ordinal >= 0 && slot.x_ordinal + 1 < static_cast<int64_t>(inputs_.layers.size())) {
    TransferInput(slot, false);
  }
  return slot.kept;
}

void KeptLayers::EndForward(int64_t layer) {
  const Slot& slot = slots_[layer];
  if (slot.attn_ordinal >= 0 && slot.attn_ordinal + 2 < static_cast<int64_t>(attentions_.layers.size())) {
    TransferAttention(slot, false);
  }
}

const BlockActivations& KeptLayers::BeginBackward(int64_t layer) {
  const Slot& slot = slots_[layer];
  const int64_t inputs = static_cast<int64_t>(inputs_.layers.size());
  const int64_t attentions = static_cast<int64_t>(attentions_.layers.size());
  if (slot.x_ordinal >= 0 && slot.x_ordinal + 1 < inputs) {
    ops_.FinishTransfer(inputs_.slot + static_cast<int>(slot.x_ordinal % 2));
  }
  if (slot.attn_ordinal >= 0 && slot.attn_ordinal + 2 < attentions) {
    ops_.FinishTransfer(attentions_.slot + static_cast<int>(slot.attn_ordinal % 2));
  }
  // The buffer that the layer before this one (in this order) used is free now.
  if (slot.x_ordinal > 0) TransferInput(slots_[inputs_.layers[slot.x_ordinal - 1]], true);
  if (slot.attn_ordinal > 0 && slot.attn_ordinal + 1 < attentions) {
    TransferAttention(slots_[attentions_.layers[slot.attn_ordinal - 1]], true);
  }
  return slot.kept;
}

}  // namespace hone
