// The decoder as plain call sequences over Ops: embedding, blocks, head; forward, recomputation, backward. It holds no
// weight pointers (layers come by lease) and allocates nothing after its buffers were laid out: the same code on DryOps
// is the plan. Not here: objectives (they turn log-probabilities into one coefficient per token), optimiser, data.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/batch.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

// What the forward pass keeps of a layer for the backward one; the rest is computed again, bit for bit. In order of
// falling memory: all; all but what norms and the gated unit put out; nor gate and up; the layer's input and attention's
// output; the input alone.
enum class Recompute : uint8_t { kNone, kActivation, kMlp, kBlock, kFull };

struct DecoderOptions {
  std::vector<Recompute> recompute;  // by layer; empty: kNone everywhere
  bool offload_inputs = false;       // layers' inputs wait in Arenas::pinned between forward and backward
  int64_t head_chunk_rows = 256;     // rows of logits that exist at one time
  int64_t mlp_chunk_rows = 0;        // rows that gate, up and down compute at a time where gate and up are not kept; 0: all
  int64_t row_multiple = 1;          // launches are padded with null rows to a multiple (few shapes of products)
};

struct Arenas {
  Arena* saved = nullptr;
  Arena* scratch = nullptr;
  Arena* pinned = nullptr;  // host; only with offload_inputs
};

// Keys and values of earlier tokens, for generation: per layer act [rows, kv_heads * D].
struct KvCache {
  std::vector<Tensor> k, v;
};

class Decoder {
 public:
  // lora may be null. Model, lora and ops outlive the decoder.
  Decoder(Ops& ops, const Model& model, const Lora* lora, const DecoderOptions& options);

  // log_probs[i] = log p(targets[i] | ...) for the batch's logit rows; forward only. Everything lies in scratch, laid
  // out for `limits`.
  void LogProbs(const PackedBatch& batch, const BatchLimits& limits, AdapterMode mode, Arena& scratch,
                std::span<float> log_probs);

  // From log-probabilities to d loss / d log_prob, one per logit row. Called once, between forward and backward.
  using Coefficients = std::function<void(std::span<const float> log_probs, std::span<float> coefficients)>;
  // Adds the gradient of the adapter. Logit rows must be distinct.
  void ForwardBackward(const PackedBatch& batch, const BatchLimits& limits, Arenas arenas,
                       const Coefficients& coefficients);

  // Generation: rows of `batch` are new tokens; row i's key and value go to cache row cache_rows[i], and segments' kv
  // rows (and prefixes) are cache rows. logits [logit_rows, V] to the host, after the model's transform.
  void Logits(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows, KvCache& cache,
              AdapterMode mode, Arena& scratch, std::vector<float>& logits);
  static KvCache AllocateCache(const Ops& ops, const DecoderConfig& config, int64_t rows, Arena& arena);

 private:
  struct Inputs;            // a batch on the device
  struct LayerActivations;  // what one layer's backward needs
  struct CacheSlot;
  struct HeadState;

  Inputs Upload(const PackedBatch& batch, const BatchLimits& limits, Arena& arena);
  LayerActivations AllocateLayer(int64_t layer, const BatchLimits& limits, Arena& arena) const;
  void LayerForward(int64_t layer, const Inputs& in, AdapterMode mode, const LayerActivations& a, Tensor x_out,
                    const CacheSlot* cache, Arena& scratch);
  void LayerBackward(int64_t layer, const Inputs& in, const LayerActivations& a, Tensor dx_aug, Arena& scratch);
  HeadState HeadForward(const Inputs& in, const BatchLimits& limits, Tensor x, bool gradient, Arena& kept,
                        Arena& scratch);
  void RunLayersForward(const Inputs& in, const BatchLimits& limits, AdapterMode mode, Tensor x, KvCache* cache,
                        Tensor cache_rows, Arena& scratch);
  Recompute LevelOf(int64_t layer) const {
    return options_.recompute.empty() ? Recompute::kNone : options_.recompute[layer];
  }
  LinearGroup Group(int64_t layer, const LayerWeights& weights, GroupKind kind) const;

  Ops& ops_;
  const Model& model_;
  const DecoderConfig& config_;
  const Lora* lora_;
  DecoderOptions options_;
  LogitTransform transform_;
};

}  // namespace hone
