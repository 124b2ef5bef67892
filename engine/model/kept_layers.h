// What layers keep between the forward and the backward pass, and where it waits: in the saved arena, or in pinned host
// memory. There each layer's input is one piece and what else it keeps another; the pieces of all layers pass through
// two buffers on the device by turns, each transfer beside another layer's work. Not here: computing.
#pragma once

#include <array>
#include <vector>

#include "engine/model/block.h"
#include "engine/model/decoder_options.h"
#include "engine/model/launch.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

class KeptLayers {
 public:
  struct Options {
    int64_t first = 0;              // lower layers keep nothing
    std::vector<Recompute> levels;  // of all layers
    int64_t hidden_size = 0;
    int64_t backward_rows = 0;  // rows that the backward pass needs again
    bool offload = false;
    Recompute offload_from = Recompute::kBlock;  // levels below stay on the device
  };
  // Lays everything out. pinned: only with offload.
  KeptLayers(Ops& ops, const Block& block, const Launch& launch, Options options, Arena& saved, Arena* pinned);

  // act [T, H] for the input of a layer, or with the number of layers for the last one's output; in ascending order.
  Tensor Input(int64_t layer);
  // Forward: what the layer is to keep, its input already written; then, when it has run.
  const BlockActivations& BeginForward(int64_t layer);
  void EndForward(int64_t layer);
  // Backward, in descending order, after the last output was used: what was kept, ready. Starts the next transfers.
  const BlockActivations& BeginBackward(int64_t layer);

 private:
  // Two device buffers that a list of pieces shares.
  struct Ring {
    std::array<void*, 2> buffer = {};
    std::vector<int64_t> layers;  // ordinal -> layer
    uint64_t bytes = 0;           // of the largest piece
    int slot = 0;                 // of the first buffer's transfers
    void* Buffer(int64_t ordinal) const { return buffer[ordinal % 2]; }
    int Slot(int64_t ordinal) const { return slot + static_cast<int>(ordinal % 2); }
    int64_t count() const { return static_cast<int64_t>(layers.size()); }
  };
  struct Kept {
    BlockActivations activations;
    int64_t input = -1, rest = -1;  // ordinals in the rings; -1: not there
    void *input_host = nullptr, *rest_host = nullptr;
    Tensor rest_piece;  // all but the input, as plain words
  };
  bool Offloads(int64_t layer) const;
  void LayOut(Arena& saved, Arena* pinned);
  void LayOutRest(int64_t layer);
  Tensor InputOf(int64_t ordinal) const;
  void StartInput(const Kept& kept, bool fetch);
  void StartRest(const Kept& kept, bool fetch);

  Ops& ops_;
  const Block& block_;
  const Launch& launch_;
  Options options_;
  Ring inputs_, rests_;
  std::vector<Kept> layers_;
  Tensor last_output_;
};

}  // namespace hone
