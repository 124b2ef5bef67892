// The decoder as plain call sequences over Ops: embedding, blocks, head; forward, recomputation, backward. It holds no
// weight pointers (layers come by lease) and allocates nothing after its buffers were laid out: the same code on DryOps
// is the plan. Not here: objectives (they turn log-probabilities into one coefficient per token), optimiser, data.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/model/batch.h"
#include "engine/model/block.h"
#include "engine/model/decoder_options.h"
#include "engine/model/head.h"
#include "engine/model/linear.h"
#include "engine/model/model.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

struct Arenas {
  Arena* saved = nullptr;
  Arena* scratch = nullptr;
  Arena* pinned = nullptr;  // host; only where layers wait there
};

// Keys and values of earlier tokens, for generation: per layer act [rows, kv_heads * D], side by side in one buffer.
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

  // From log-probabilities, one per logit row, to d loss / d log_prob, one per logit row that is not forward-only.
  // Called once, between forward and backward.
  using Coefficients = std::function<void(std::span<const float> log_probs, std::span<float> coefficients)>;
  // Adds the gradient of the adapter. Logit rows must be distinct but for forward-only ones (PackedBatch::tail_logits).
  void ForwardBackward(const PackedBatch& batch, const BatchLimits& limits, Arenas arenas,
                       const Coefficients& coefficients);

  // Generation: rows of `batch` are new tokens; row i's key and value go to cache row cache_rows[i], and segments' kv
  // rows (and prefixes) are cache rows. logits [logit_rows, V] to the host, after the model's transform.
  void Logits(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows, KvCache& cache,
              AdapterMode mode, Arena& scratch, std::vector<float>& logits);
  // The same, but for the most likely token of each logit row alone, the first where several are: tokens
  // [logit_rows].
  void MostLikely(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows,
                  KvCache& cache, AdapterMode mode, Arena& scratch, std::span<int32_t> tokens);
  // Weights that are kept decoded hold the adapter's values. Without this each forward pass puts them there; an owner
  // that gives a new number, above 0, whenever values have changed saves that.
  void SetAdapterVersion(int64_t version) { adapter_version_ = version; }
  // While on, a pass computes one layer of each kind and moves nothing to the host and back: every kernel and every
  // shape of product that a real one has, and a worthless result. For warming up.
  void SetRehearsing(bool on) { rehearsing_ = on; }

  static KvCache AllocateCache(const Ops& ops, const DecoderConfig& config, int64_t rows, Arena& arena);

 private:
  void RunLayersForward(const Launch& launch, AdapterMode mode, Tensor x, KvCache* cache, Tensor cache_rows,
                        const Lora* stored, Arena& scratch);
  // What generation's logits, on the device before the model's transform, are found by.
  struct NewLogits {
    Tensor logits;  // fp32 [logit_rows, V]
    Tensor tokens;  // kI32 [1, logit_rows], to be written
  };
  NewLogits RunWithCache(const PackedBatch& batch, const BatchLimits& limits, std::span<const int32_t> cache_rows,
                         KvCache& cache, AdapterMode mode, Arena& scratch);
  Recompute LevelOf(int64_t layer) const {
    return options_.recompute.empty() ? Recompute::kNone : options_.recompute[layer];
  }

  bool NeedsRefresh(int64_t layer, AdapterMode mode);
  std::vector<bool> SkippedLayers() const;

  Ops& ops_;
  const Model& model_;
  const DecoderConfig& config_;
  const Lora* lora_;
  DecoderOptions options_;
  Block block_;
  Head head_;
  bool rehearsing_ = false;
  int64_t adapter_version_ = 0;
  std::vector<int64_t> refreshed_;  // by layer: the version that its kept weights hold
};

}  // namespace hone
