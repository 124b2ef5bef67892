// Everything one run computes with, laid out in arenas: frozen model, adapter, optimiser, decoder. The same code on
// DryOps with dry arenas is the memory plan (engine/plan); on a real back end it trains. Not here: what order things
// happen in (trainer.h).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder.h"
#include "engine/model/lora.h"
#include "engine/model/model.h"
#include "engine/optim/adamw.h"
#include "hone/v1/plan.pb.h"
#include "hone/v1/spec.pb.h"
#include "hone/v1/worker.pb.h"
#include "kernels/backend.h"

namespace hone {

// The arenas of a run. Sizes come from a plan; nothing grows.
struct ArenaSet {
  Arena weights, adapter, gradients, optimizer, saved, scratch;
  Arena pinned;  // host: what a plan keeps there of the model, then what waits there in a step
  std::vector<std::unique_ptr<MemoryBlock>> blocks;  // what they lie in; empty when dry
  uint64_t context_bytes = 0;                        // the back end's constant workspace
  std::unique_ptr<MemoryBlock> load_ring;            // page-locked, until the model is loaded; a card's only

  static ArenaSet Dry();
  // ResourceExhausted naming the arena if the device does not have it.
  static absl::StatusOr<ArenaSet> Reserve(Backend& backend, const v1::PlanBytes& bytes, uint64_t pinned_bytes = 0);
  v1::PlanBytes HighWater() const;  // of the device, with total
  uint64_t PinnedHighWater() const { return pinned.high_water(); }
  std::span<std::byte> LoadRing() const;
  v1::MemoryUse Use() const;  // planned = capacity, actual = high water; pinned_bytes apart
};

// Layouts for the two kinds of launch. Every phase of a run is one of them.
struct RunLimits {
  BatchLimits train;    // ForwardBackward
  BatchLimits forward;  // LogProbs: reference, KL, evaluation
};

struct SessionOptions {
  WeightQuantization quantization = WeightQuantization::kNone;
  int64_t decoded_layers = 0;      // ModelPlacement's; spare columns follow from the adapter
  bool embedding_on_host = false;  // in ArenaSet::pinned
  LoraConfig lora;
  v1::OptimizerSpec optimizer;
  DecoderOptions decoder;
  RunLimits limits;
};

// From a resolved spec; unknown target names are errors.
absl::StatusOr<LoraConfig> LoraConfigFromSpec(const v1::LoraSpec& spec);

class TrainSession {
 public:
  static absl::StatusOr<std::unique_ptr<TrainSession>> Create(const ModelFiles& files, const SessionOptions& options,
                                                              Ops& ops, ArenaSet& arenas,
                                                              const Model::LoadProgress& progress = nullptr);
  // Forward only, in scratch. At most limits.forward.
  void LogProbs(const PackedBatch& batch, AdapterMode mode, std::span<float> log_probs);
  // Adds to the gradients. At most limits.train.
  void ForwardBackward(const PackedBatch& batch, const Decoder::Coefficients& coefficients);
  // Rows that a launch computes, null rows included.
  int64_t LaunchRows(const PackedBatch& batch) const {
    return hone::LaunchRows(batch.tokens(), options_.decoder.row_multiple);
  }
  void ZeroGradients() { ops_.Fill(lora_.gradients, 0); }
  double GradientNorm() { return optimizer_->NormOf(lora_.gradients); }  // before clipping; changes nothing
  // Returns the gradient's norm before clipping.
  double OptimizerStep(int64_t step, double learning_rate);

  const Model& model() const { return *model_; }
  const LoraLayout& layout() const { return layout_; }
  const SessionOptions& options() const { return options_; }
  // Host copies of the adapter's values, gradients and optimiser states, flat as LoraLayout says.
  std::vector<float> Download(Tensor flat);
  // After the first step the adapter's values change through Upload and OptimizerStep alone, or AdapterChanged says so.
  void Upload(std::span<const float> host, Tensor flat);
  void SetRehearsing(bool on) { decoder_->SetRehearsing(on); }  // Decoder::SetRehearsing
  void AdapterChanged() { decoder_->SetAdapterVersion(++adapter_version_); }
  const Lora& lora() const { return lora_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }

 private:
  TrainSession(Ops& ops, ArenaSet& arenas, const SessionOptions& options, LoraLayout layout)
      : ops_(ops), arenas_(arenas), options_(options), layout_(std::move(layout)) {}

  Ops& ops_;
  ArenaSet& arenas_;
  SessionOptions options_;
  LoraLayout layout_;
  Lora lora_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  std::unique_ptr<Decoder> decoder_;
  int64_t adapter_version_ = 0;
};

}  // namespace hone
