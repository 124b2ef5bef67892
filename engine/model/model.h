// A frozen model in memory: every weight in its stored form, in one arena. Layers are handed out by lease, so that
// weights may later be streamed or gathered; blocks never keep a weight pointer. Adapters are apart (lora.h).
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder_config.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

class ModelFiles;

struct LayerWeights {
  std::array<WeightView, kLinearKinds> linear;  // by LinearKind
  Tensor input_norm, post_attention_norm;       // fp32 [1, H]
  Tensor q_norm, k_norm;                        // fp32 [1, D]; empty without qk-norm
  Tensor qkv_bias;                              // fp32 [1, (heads + 2 kv_heads) D]; empty without bias
  // A group's W' (linear.h) where it is kept decoded: act [N + R, K + R], the frozen weights in place, spare columns
  // and rows zero until the decoder puts an adapter there. Its `linear` views then have shapes, and data where the
  // stored form is kept too. Empty: decoded for each use.
  std::array<Tensor, kGroupKinds> decoded;
};

// Weights of one layer, valid while the lease lives.
class LayerLease {
 public:
  explicit LayerLease(const LayerWeights* weights) : weights_(weights) {}
  const LayerWeights& operator*() const { return *weights_; }
  const LayerWeights* operator->() const { return weights_; }

 private:
  const LayerWeights* weights_;
};

class LayerSource {
 public:
  virtual ~LayerSource() = default;
  virtual LayerLease Acquire(int64_t layer) const = 0;
};

enum class WeightQuantization : uint8_t { kNone, kNf4 };

// Where and how a model's weights lie: a plan's choices. kNf4 quantises the decoder's linears, not embedding and head.
struct ModelPlacement {
  WeightQuantization quantization = WeightQuantization::kNone;
  int64_t decoded_layers = 0;      // so many first layers keep their groups decoded (LayerWeights::decoded) and only so
  std::vector<int64_t> spare;      // R beside decoded weights: [layer * kGroupKinds + group]; empty: none
  bool embedding_on_host = false;  // the table in pinned host memory; not with tied embeddings
};

// What a model is laid out in. Without `pinned` nothing can lie on the host.
struct ModelArenas {
  Arena* weights = nullptr;
  Arena* pinned = nullptr;
  // Where weights lie until they are quantised, given back when Load returns: memory that training uses later. Without
  // it the end of `weights`, which then is larger.
  Arena* staging = nullptr;
  // Page-locked memory that what is read goes through on its way to a card, kLoadRingBytes; only while loading. Empty:
  // ordinary memory, slower there.
  std::span<std::byte> ring = {};
};
inline constexpr uint64_t kLoadRingBytes = uint64_t{128} << 20;

class Model : public LayerSource {
 public:
  using LoadProgress = std::function<void(int64_t done, int64_t total)>;
  // Reads every weight of `files` into the arenas through `ops` (dry arenas: lays them out only).
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelFiles& files, const ModelPlacement& placement, Ops& ops,
                                                     const ModelArenas& arenas, const LoadProgress& progress = nullptr);
  static absl::StatusOr<std::unique_ptr<Model>> Load(const ModelFiles& files, WeightQuantization quantization, Ops& ops,
                                                     Arena& arena, const LoadProgress& progress = nullptr);
  const DecoderConfig& config() const { return config_; }
  LayerLease Acquire(int64_t layer) const override { return LayerLease(&layers_[layer]); }
  const WeightView& embedding() const { return embedding_; }  // [V, H]
  const WeightView& head() const { return head_; }            // [V, H]; the embedding when tied
  Tensor final_norm() const { return final_norm_; }           // fp32 [1, H]
  Tensor inv_freq() const { return inv_freq_; }               // fp32 [1, D/2]
  int64_t parameters() const { return parameters_; }

 private:
  friend class ModelLoader;
  DecoderConfig config_;
  std::vector<LayerWeights> layers_;
  WeightView embedding_, head_;
  Tensor final_norm_, inv_freq_;
  int64_t parameters_ = 0;
};

}  // namespace hone
