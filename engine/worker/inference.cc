#include "engine/worker/inference.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/dry/dry_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int64_t kGenerationBatch = 32;  // sequences at once, where memory allows

}  // namespace

absl::StatusOr<FlatAdapter> FlattenAdapter(const DecoderConfig& decoder, const LoraAdapter& adapter) {
  if (adapter.weights.empty()) return InvalidArgument("adapter: it has no LoRA matrix");
  FlatAdapter flat;
  std::set<int64_t> layers;
  std::set<LinearKind> kinds;
  int64_t r = 0;
  bool uniform = true;
  const LoraWeights& first = adapter.weights.front();
  for (const LoraWeights& w : adapter.weights) {
    r = std::max(r, w.r);
    layers.insert(w.layer);
    kinds.insert(w.kind);
    uniform &= w.r == first.r && w.scale == first.scale;
  }
  flat.config.r = r;
  flat.config.alpha = uniform ? first.scale * static_cast<double>(r) : static_cast<double>(r);
  flat.config.layers.assign(layers.begin(), layers.end());
  flat.config.targets.assign(kinds.begin(), kinds.end());
  HONE_ASSIGN_OR_RETURN(const LoraLayout layout, LoraLayout::Create(decoder, flat.config));
  flat.values.assign(layout.elements(), 0);
  for (const LoraMatrix& m : layout.matrices()) {
    for (const LoraWeights& w : adapter.weights) {
      if (w.layer != m.layer || w.kind != m.kind) continue;
      const auto scale = static_cast<float>(uniform ? 1.0 : w.scale);
      std::copy(w.a.begin(), w.a.end(), flat.values.begin() + m.a_offset);
      for (int64_t i = 0; i < m.out; ++i) {
        for (int64_t j = 0; j < w.r; ++j) flat.values[m.b_offset + i * m.r + j] = scale * w.b[i * w.r + j];
      }
    }
  }
  return flat;
}

absl::StatusOr<std::unique_ptr<InferenceSession>> InferenceSession::Open(Backend& backend, const ModelFiles& files,
                                                                         const LoraAdapter* adapter,
                                                                         WeightQuantization quantization) {
  std::unique_ptr<InferenceSession> session(new InferenceSession(backend));
  Ops& ops = backend.ops();
  FlatAdapter flat;
  int64_t elements = 0;
  if (adapter != nullptr) {
    HONE_ASSIGN_OR_RETURN(flat, FlattenAdapter(files.config(), *adapter));
    HONE_ASSIGN_OR_RETURN(session->layout_, LoraLayout::Create(files.config(), flat.config));
    elements = session->layout_.elements();
  }
  ArenaSet dry = ArenaSet::Dry();
  const auto dry_ops = MakeDryOps(ops.backend(), ops.activation_dtype());
  HONE_RETURN_IF_ERROR(Model::Load(files, quantization, *dry_ops, dry.weights).status());
  dry.adapter.AllocateTensor(DType::kF32, 1, elements);
  v1::PlanBytes bytes = dry.HighWater();
  HONE_ASSIGN_OR_RETURN(session->arenas_, ArenaSet::Reserve(backend, bytes));
  ModelPlacement placement;
  placement.quantization = quantization;
  HONE_ASSIGN_OR_RETURN(session->model_, Model::Load(files, placement, ops,
                                                     {.weights = &session->arenas_.weights,
                                                      .pinned = nullptr,
                                                      .staging = nullptr,
                                                      .ring = session->arenas_.LoadRing()}));
  session->arenas_.load_ring.reset();
  if (adapter != nullptr) {
    session->lora_.layout = &session->layout_;
    session->lora_.values = session->arenas_.adapter.AllocateTensor(DType::kF32, 1, elements);
    ops.Upload(flat.values.data(), session->lora_.values);
  }
  session->decoder_ = std::make_unique<Decoder>(ops, *session->model_, adapter != nullptr ? &session->lora_ : nullptr,
                                                DecoderOptions{});
  return session;
}

template <typename Work>
absl::StatusOr<uint64_t> InferenceSession::DryScratch(const Work& work) const {
  const auto dry_ops = MakeDryOps(backend_.ops().backend(), backend_.ops().activation_dtype());
  Decoder decoder(*dry_ops, *model_, lora_.layout != nullptr ? &lora_ : nullptr, DecoderOptions{});
  Arena scratch = Arena::Dry("scratch");
  work(decoder, scratch);
  return scratch.high_water();
}

absl::Status InferenceSession::EnsureScratch(uint64_t bytes) {
  if (bytes <= scratch_.capacity()) return absl::OkStatus();
  scratch_block_.reset();
  scratch_ = Arena("scratch", nullptr, 0);
  HONE_ASSIGN_OR_RETURN(scratch_block_, backend_.Reserve(bytes));
  scratch_ = Arena("scratch", scratch_block_->data(), bytes);
  return absl::OkStatus();
}

absl::Status InferenceSession::EnsureCache(const GenerationLimits& limits) {
  const int64_t rows = CacheRows(limits);
  if (rows <= cache_rows_) return absl::OkStatus();
  Arena dry = Arena::Dry("cache");
  Decoder::AllocateCache(backend_.ops(), config(), rows, dry);
  cache_block_.reset();
  cache_rows_ = 0;
  HONE_ASSIGN_OR_RETURN(cache_block_, backend_.Reserve(dry.high_water()));
  Arena arena("cache", cache_block_->data(), dry.high_water());
  cache_ = Decoder::AllocateCache(backend_.ops(), config(), rows, arena);
  cache_rows_ = rows;
  return absl::OkStatus();
}

absl::Status InferenceSession::CheckIds(std::span<const int32_t> ids, const std::string& what) const {
  if (ids.empty()) return InvalidArgument(what, ": give at least one token");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config().vocab_size) {
      return InvalidArgument(what, "[", i, "]: ", ids[i], " is not a token; the vocabulary has ", config().vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> InferenceSession::Logits(const std::vector<int32_t>& ids, AdapterMode mode) {
  HONE_RETURN_IF_ERROR(CheckIds(ids, "ids"));
  const auto count = static_cast<int64_t>(ids.size());
  PackedBatch batch;
  AppendDocument(batch, ids.data(), count);
  std::vector<int32_t> rows(count);
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = static_cast<int32_t>(i);
    batch.logit_rows.push_back(rows[i]);
    batch.targets.push_back(0);
  }
  GenerationLimits cache;
  cache.batch = 1;
  cache.context = count;
  HONE_RETURN_IF_ERROR(EnsureCache(cache));
  const BatchLimits limits{count, count, 1};
  std::vector<float> logits;
  HONE_ASSIGN_OR_RETURN(const uint64_t bytes, DryScratch([&](Decoder& decoder, Arena& scratch) {
                          std::vector<float> unused;
                          decoder.Logits(batch, limits, rows, cache_, mode, scratch, unused);
                        }));
  HONE_RETURN_IF_ERROR(EnsureScratch(bytes));
  decoder_->Logits(batch, limits, rows, cache_, mode, scratch_, logits);
  return logits;
}

absl::StatusOr<std::vector<float>> InferenceSession::Score(const std::vector<int32_t>& ids, AdapterMode mode) {
  HONE_RETURN_IF_ERROR(CheckIds(ids, "ids"));
  const auto count = static_cast<int64_t>(ids.size());
  PackedBatch batch;
  AppendDocument(batch, ids.data(), count);
  for (int64_t i = 0; i + 1 < count; ++i) {
    batch.logit_rows.push_back(static_cast<int32_t>(i));
    batch.targets.push_back(ids[i + 1]);
  }
  std::vector<float> log_probs(batch.targets.size());
  if (log_probs.empty()) return log_probs;
  const BatchLimits limits{count, count - 1, 1};
  HONE_ASSIGN_OR_RETURN(const uint64_t bytes, DryScratch([&](Decoder& decoder, Arena& scratch) {
                          std::vector<float> unused(log_probs.size());
                          decoder.LogProbs(batch, limits, mode, scratch, unused);
                        }));
  HONE_RETURN_IF_ERROR(EnsureScratch(bytes));
  decoder_->LogProbs(batch, limits, mode, scratch_, log_probs);
  return log_probs;
}

// Memory for so many sequences at once.
absl::Status InferenceSession::EnsureGeneration(const GenerationLimits& limits, AdapterMode mode) {
  HONE_RETURN_IF_ERROR(EnsureCache(limits));
  HONE_ASSIGN_OR_RETURN(const uint64_t bytes, DryScratch([&](Decoder& decoder, Arena& scratch) {
                          PackedBatch batch;
                          const int32_t id = 0;
                          AppendDocument(batch, &id, 1);
                          batch.logit_rows.push_back(0);
                          batch.targets.push_back(0);
                          std::vector<float> logits;
                          const std::vector<int32_t> rows = {0};
                          decoder.Logits(batch, LaunchLimits(limits), rows, cache_, mode, scratch, logits);
                        }));
  return EnsureScratch(bytes);
}

absl::StatusOr<std::vector<FinishReason>> InferenceSession::Run(std::span<const GenerationRequest> requests,
                                                                AdapterMode mode, const OnToken& on_token) {
  if (requests.empty()) return std::vector<FinishReason>{};
  GenerationLimits limits;
  limits.batch = std::min<int64_t>(kGenerationBatch, static_cast<int64_t>(requests.size()));
  for (size_t r = 0; r < requests.size(); ++r) {
    const GenerationRequest& request = requests[r];
    const auto context = static_cast<int64_t>(request.prompt.size()) + request.sampling.max_new_tokens;
    if (context > config().max_position) {
      return InvalidArgument("request ", r, ": ", request.prompt.size(), " prompt tokens and max_new_tokens ",
                             request.sampling.max_new_tokens, " exceed the model's context of ", config().max_position);
    }
    HONE_RETURN_IF_ERROR(CheckIds(request.prompt, StrCat("request ", r, ": prompt")));
    limits.context = std::max(limits.context, context);
  }
  absl::Status memory = EnsureGeneration(limits, mode);
  while (absl::IsResourceExhausted(memory) && limits.batch > 1) {  // fewer at once, then
    limits.batch /= 2;
    memory = EnsureGeneration(limits, mode);
  }
  HONE_RETURN_IF_ERROR(memory);
  return Generate(*decoder_, cache_, limits, mode, config().eos_token_ids, requests, scratch_, on_token);
}

}  // namespace hone
