// What layers keep between the forward and the backward pass, and where it waits: in the saved arena, or (of layers that
// keep their input and at most attention's output) in pinned host memory. Those pass through two buffers on the device
// by turns, each transfer beside another layer's work. Not here: computing.
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
    int64_t first = 0;                 // lower layers keep nothing
    std::vector<Recompute> levels;     // of all layers
    int64_t hidden_size = 0;
    int64_t backward_rows = 0;         // rows that the backward pass needs again
    bool offload = false;
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
  // Two device buffers that a list of layers shares, with what the host holds of each.
  struct Ring {
    std::array<void*, 2> buffer = {};
    std::vector<int64_t> layers;  // ordinal -> layer
    int slot = 0;                 // of the first buffer
  };
  struct Slot {
    BlockActivations kept;
    int64_t x_ordinal = -1, attn_ordinal = -1;  // in the rings; -1: in the saved arena
    void *x_host = nullptr, *attn_host = nullptr, *lse_host = nullptr;
  };
  bool Offloads(int64_t layer) const;
  void LayOut(Arena& saved, Arena* pinned);
  void TransferInput(const Slot& slot, bool fetch);
  void TransferAttention(const Slot& slot, bool fetch);

  Ops& ops_;
  const Block& block_;
  const Launch& launch_;
  Options options_;
  Ring inputs_, attentions_;
  std::array<void*, 2> lse_ = {};
  std::vector<Slot> slots_;
  Tensor last_output_;
};

}  // namespace hone
