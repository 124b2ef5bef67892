#include "engine/model/kept_layers.h"

#include <algorithm>
#include <utility>

#include "proto/base/status.h"

namespace hone {

KeptLayers::KeptLayers(Ops& ops, const Block& block, const Launch& launch, Options options, Arena& saved, Arena* pinned)
    : ops_(ops), block_(block), launch_(launch), options_(std::move(options)), layers_(options_.levels.size()) {
  static_assert(kTransferSlots >= 4);
  inputs_.slot = 0;
  rests_.slot = 2;
  LayOut(saved, pinned);
}

bool KeptLayers::Offloads(int64_t layer) const {
  return options_.offload && options_.levels[layer] >= options_.offload_from;
}

Tensor KeptLayers::InputOf(int64_t ordinal) const {
  return {inputs_.Buffer(ordinal), ops_.activation_dtype(), launch_.rows, options_.hidden_size, options_.hidden_size};
}

void KeptLayers::LayOut(Arena& saved, Arena* pinned) {
  const DType act = ops_.activation_dtype();
  const auto count = static_cast<int64_t>(layers_.size());
  inputs_.bytes = launch_.capacity * options_.hidden_size * BlockBytes(act);
  for (int64_t layer = options_.first; layer < count; ++layer) {
    Kept& kept = layers_[layer];
    if (!Offloads(layer)) {
      kept.activations = block_.Keep(layer, options_.levels[layer], launch_, saved);
      kept.activations.x_in = launch_.Buffer(saved, act, options_.hidden_size);
      continue;
    }
    HONE_CHECK(pinned != nullptr);
    kept.input = inputs_.count();
    inputs_.layers.push_back(layer);
    kept.input_host = pinned->Allocate(inputs_.bytes);
    Arena whole = Arena::Dry("rest");
    block_.Keep(layer, options_.levels[layer], launch_, whole);
    if (whole.used() == 0) continue;
    kept.rest = rests_.count();
    rests_.layers.push_back(layer);
    kept.rest_host = pinned->Allocate(whole.used());
    rests_.bytes = std::max(rests_.bytes, whole.used());
  }
  if (inputs_.layers.empty()) {
    last_output_ = launch_.Buffer(saved, act, options_.hidden_size);
    return;
  }
  for (int i = 0; i < 2; ++i) {
    inputs_.buffer[i] = saved.Allocate(inputs_.bytes);
    rests_.buffer[i] = saved.Allocate(rests_.bytes);
  }
  for (int64_t layer = options_.first; layer < count; ++layer) LayOutRest(layer);
  last_output_ = InputOf(inputs_.count());
}

// Only rows that this launch has are moved: what is kept lies as if they were all that buffers are laid out for.
void KeptLayers::LayOutRest(int64_t layer) {
  Kept& kept = layers_[layer];
  if (kept.rest >= 0) {
    Launch dense = launch_;
    dense.capacity = launch_.rows;
    Arena arena("rest", rests_.Buffer(kept.rest), rests_.bytes);
    kept.activations = block_.Keep(layer, options_.levels[layer], dense, arena);
    const auto words = static_cast<int64_t>(arena.used() / sizeof(float));
    kept.rest_piece = {rests_.Buffer(kept.rest), DType::kF32, 1, words, words};
  }
  if (kept.input >= 0) kept.activations.x_in = InputOf(kept.input);
}

void KeptLayers::StartInput(const Kept& kept, bool fetch) {
  const Tensor x = kept.activations.x_in.Rows(0, options_.backward_rows);
  const int slot = inputs_.Slot(kept.input);
  fetch ? ops_.StartFetch(kept.input_host, x, slot) : ops_.StartOffload(x, kept.input_host, slot);
}

void KeptLayers::StartRest(const Kept& kept, bool fetch) {
  const int slot = rests_.Slot(kept.rest);
  fetch ? ops_.StartFetch(kept.rest_host, kept.rest_piece, slot)
        : ops_.StartOffload(kept.rest_piece, kept.rest_host, slot);
}

Tensor KeptLayers::Input(int64_t layer) {
  const bool last = layer == static_cast<int64_t>(layers_.size());
  // Of the two buffers the last offloaded layer's input stays in one, and the last output takes the other.
  const int64_t ordinal = !last ? layers_[layer].input : inputs_.layers.empty() ? -1 : inputs_.count();
  if (ordinal >= 2) ops_.FinishTransfer(inputs_.Slot(ordinal));  // the buffer's earlier owner must have left
  return last ? last_output_ : layers_[layer].activations.x_in;
}

const BlockActivations& KeptLayers::BeginForward(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (kept.rest >= 2) ops_.FinishTransfer(rests_.Slot(kept.rest));
  if (kept.input >= 0 && kept.input + 1 < inputs_.count()) StartInput(kept, false);
  return kept.activations;
}

void KeptLayers::EndForward(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (kept.rest >= 0 && kept.rest + 2 < rests_.count()) StartRest(kept, false);
}

const BlockActivations& KeptLayers::BeginBackward(int64_t layer) {
  const Kept& kept = layers_[layer];
  if (kept.input >= 0 && kept.input + 1 < inputs_.count()) ops_.FinishTransfer(inputs_.Slot(kept.input));
  if (kept.rest >= 0 && kept.rest + 2 < rests_.count()) ops_.FinishTransfer(rests_.Slot(kept.rest));
  // The buffers that the layer before this one (in this order) used are free now.
  if (kept.input > 0) StartInput(layers_[inputs_.layers[kept.input - 1]], true);
  if (kept.rest > 0 && kept.rest + 1 < rests_.count()) StartRest(layers_[rests_.layers[kept.rest - 1]], true);
  return kept.activations;
}

}  // namespace hone
