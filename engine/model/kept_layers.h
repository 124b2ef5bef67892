// What layers keep between the forward and the backward pass, and where it waits: in the saved arena, or in pinned host
// memory. There each layer's input is one piece, gate and up another, and what else it keeps a third. The pieces of all
// layers pass through device buffers by turns (two of each, one for gate and up of layers well apart), each transfer
// beside another layer's work. Rows that are forward-only are kept no longer than their layer runs. Not here:
// computing.
#pragma once

#include <array>
#include <deque>
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
    std::vector<bool> on_host;      // of all layers
    int64_t hidden_size = 0;
    int64_t backward_rows = 0;  // rows that the backward pass needs again
    bool transfers = true;      // else what waits on the host is lost (a warm-up)
  };
  // Lays everything out. pinned: only where a layer is on the host.
  KeptLayers(Ops& ops, const Block& block, const Launch& launch, Options options, Arena& saved, Arena* pinned);

  // act [T, H] for the input of a layer, or with the number of layers for the last one's output; in ascending order.
  Tensor Input(int64_t layer);
  // Forward: what the layer is to keep, its input already written; then, when it has run.
  const BlockActivations& BeginForward(int64_t layer);
  void EndForward(int64_t layer);
  // Backward, in descending order, after the last output was used: what was kept, ready. Starts the next transfers.
  const BlockActivations& BeginBackward(int64_t layer);

 private:
  // Device buffers that a list of pieces shares by turns. The last ones stay in them and are never moved.
  struct Ring {
    int64_t size;  // buffers, 1 or 2
    std::array<char*, 2> buffer = {};
    std::vector<int64_t> layers;  // ordinal -> layer
    uint64_t bytes = 0;           // of the largest piece
    char* Buffer(int64_t ordinal) const { return buffer[ordinal % size]; }
    int64_t count() const { return static_cast<int64_t>(layers.size()); }
  };
  // One tensor on its way: its rows of the backward pass.
  struct Piece {
    Tensor tensor;
    void* host = nullptr;
  };
  struct Kept {
    BlockActivations activations;
    int64_t input = -1, rest = -1, wide = -1;  // ordinals in the rings; -1: not there
    Piece input_piece, wide_piece;
    std::vector<Piece> rest_pieces;
  };
  // Tensors of one kind that stay on the device.
  struct Column {
    Tensor* tensor;
    uint64_t row_bytes;
  };
  Tensor* Wide(Kept& kept) const;
  void ListHostLayer(int64_t layer);
  void LayOutRings(Arena& saved, Arena* pinned);
  void LayOutHostLayer(int64_t layer, Arena* pinned);
  void LayOutRest(Kept& kept, Arena* pinned);
  void LayOutColumn(const std::vector<Column>& column, Arena& saved);
  bool InputMoves(const Kept& kept) const { return kept.input >= 0 && kept.input + 1 < inputs_.count(); }
  bool RestMoves(const Kept& kept) const { return kept.rest >= 0 && kept.rest + rests_.size < rests_.count(); }
  bool WideMoves(const Kept& kept) const { return kept.wide >= 0 && kept.wide + wides_.size < wides_.count(); }
  void OffloadInput(int64_t layer);
  void OffloadWide(int64_t layer);
  void StartWideParts(size_t count);
  void Start(const Piece& piece, bool fetch, int slot);
  void StartRest(const Kept& kept, bool fetch);
  void FetchWide(int64_t layer);

  Ops& ops_;
  const Block& block_;
  const Launch& launch_;
  Options options_;
  // The last layer's output takes the buffer that the last input on the host is not in.
  Ring inputs_{2}, rests_{2}, wides_{1};
  std::deque<Piece> wide_parts_;  // rows of gate and up that are still to go, some with each layer
  int64_t wide_here_ = 0;         // lowest ordinal whose gate and up are in a buffer, or on their way there
  std::vector<Kept> layers_;
  Tensor last_output_;
};

}  // namespace hone
