// A model, and maybe an adapter, ready to score and to generate: what the worker's verbs and the export's comparison
// use. Memory is laid out by a dry run for the limits asked for; a larger request lays scratch out anew (training never
// does).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/io/model_files.h"
#include "engine/io/peft.h"
#include "engine/model/decoder.h"
#include "engine/model/generate.h"
#include "engine/train/session.h"
#include "kernels/backend.h"

namespace hone {

class InferenceSession {
 public:
  // adapter may be null. The backend and files outlive the session.
  static absl::StatusOr<std::unique_ptr<InferenceSession>> Open(
      Backend& backend, const ModelFiles& files, const LoraAdapter* adapter,
      WeightQuantization quantization = WeightQuantization::kNone);
  // log p of each token after the first, given those before it.
  absl::StatusOr<std::vector<float>> Score(const std::vector<int32_t>& ids, AdapterMode mode = AdapterMode::kOn);
  // Raw logits of every position, [ids, vocab] row after row.
  absl::StatusOr<std::vector<float>> Logits(const std::vector<int32_t>& ids, AdapterMode mode = AdapterMode::kOn);
  absl::StatusOr<std::vector<FinishReason>> Run(std::span<const GenerationRequest> requests, AdapterMode mode,
                                                const OnToken& on_token);
  const DecoderConfig& config() const { return model_->config(); }
  bool has_adapter() const { return lora_.layout != nullptr; }

 private:
  explicit InferenceSession(Backend& backend) : backend_(backend) {}
  absl::Status CheckIds(std::span<const int32_t> ids, const std::string& what) const;
  absl::Status EnsureScratch(uint64_t bytes);
  absl::Status EnsureCache(const GenerationLimits& limits);
  absl::Status EnsureGeneration(const GenerationLimits& limits, AdapterMode mode);
  template <typename Work>
  absl::StatusOr<uint64_t> DryScratch(const Work& work) const;

  Backend& backend_;
  ArenaSet arenas_ = ArenaSet::Dry();
  std::unique_ptr<Model> model_;
  LoraLayout layout_;
  Lora lora_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<MemoryBlock> scratch_block_, cache_block_;
  Arena scratch_ = Arena("scratch", nullptr, 0);
  KvCache cache_;
  int64_t cache_rows_ = 0;
};

// Adapters as one flat vector for the decoder. Where ranks or scales differ they are padded to the largest rank and
// scales go into B.
struct FlatAdapter {
  LoraConfig config;
  std::vector<float> values;  // as LoraLayout::Create(decoder, config) lays them out
};
absl::StatusOr<FlatAdapter> FlattenAdapter(const DecoderConfig& decoder, const LoraAdapter& adapter);

}  // namespace hone
