// How a decoder spends memory and time: a plan's choices. None of them changes what is computed; recomputation, offload
// and decoded weights do not change a bit.
#pragma once

#include <cstdint>
#include <vector>

namespace hone {

// What the forward pass keeps of a layer for the backward one; the rest is computed again, bit for bit. In order of
// falling memory: all; all but what norms and the gated unit put out; nor gate and up; the layer's input and
// attention's output; the input alone.
enum class Recompute : uint8_t { kNone, kActivation, kMlp, kBlock, kFull };

struct DecoderOptions {
  std::vector<Recompute> recompute;  // by layer; empty: kNone everywhere
  // What layers of level offload_from or more recomputation keep waits in Arenas::pinned between forward and backward.
  bool offload_inputs = false;
  Recompute offload_from = Recompute::kBlock;
  std::vector<bool> on_host;      // by layer, in place of the two above; empty: they say it
  int64_t head_chunk_rows = 256;  // rows of logits that exist at one time
  // Rows that gate, up and down compute at a time where gate and up are not kept; 0: all.
  int64_t mlp_chunk_rows = 0;
  int64_t row_multiple = 1;  // launches are padded with null rows to a multiple (few shapes of products)
  // Weights are decoded for each use, gate and up one after the other: least scratch. Otherwise a layer's backward pass
  // decodes each once, and so does a pass over chunks of rows.
  bool decode_apart = false;
};

// Whether what a layer keeps waits on the host.
inline bool OnHost(const DecoderOptions& options, int64_t layer) {
  if (!options.on_host.empty()) return options.on_host[layer];
  const Recompute level = options.recompute.empty() ? Recompute::kNone : options.recompute[layer];
  return options.offload_inputs && level >= options.offload_from;
}

// What a plan means by offload where it does not name layers: the layers that recompute most wait on the host, and all
// of kBlock and kFull.
inline Recompute OffloadFrom(const std::vector<Recompute>& levels) {
  Recompute most = Recompute::kNone;
  for (const Recompute level : levels) most = level > most ? level : most;
  return most < Recompute::kBlock ? most : Recompute::kBlock;
}

}  // namespace hone
