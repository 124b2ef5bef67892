#include "engine/train/session.h"

#include "engine/io/model_files.h"
#include "proto/base/status.h"

namespace hone {
namespace {

absl::StatusOr<Arena> ReserveArena(Backend& backend, const char* name, uint64_t bytes,
                                   std::vector<std::unique_ptr<MemoryBlock>>& blocks, bool pinned = false) {
  if (bytes == 0) return Arena(name, nullptr, 0);
  auto block = pinned ? backend.ReservePinned(bytes) : backend.Reserve(bytes);
  if (!block.ok() && pinned) {
    return ResourceExhausted("reserving ", bytes, " bytes of page-locked host memory: ", block.status().message(),
                             "; free host memory, or give the card more (memory.vram_budget)");
  }
  if (!block.ok()) {
    return ResourceExhausted("reserving ", bytes, " bytes for ", name, ": ", block.status().message(),
                             "; somebody else took memory since the plan was made, or memory.vram_budget is too large");
  }
  Arena arena(name, (*block)->data(), bytes);
  blocks.push_back(*std::move(block));
  return arena;
}

}  // namespace

ArenaSet ArenaSet::Dry() {
  return {Arena::Dry("weights"),
          Arena::Dry("adapter"),
          Arena::Dry("gradients"),
          Arena::Dry("optimizer"),
          Arena::Dry("saved"),
          Arena::Dry("scratch"),
          Arena::Dry("pinned"),
          {},
          0,
          nullptr};
}

absl::StatusOr<ArenaSet> ArenaSet::Reserve(Backend& backend, const v1::PlanBytes& bytes, uint64_t pinned_bytes) {
  std::vector<std::unique_ptr<MemoryBlock>> blocks;
  HONE_ASSIGN_OR_RETURN(Arena weights, ReserveArena(backend, "weights", bytes.weights(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena adapter, ReserveArena(backend, "adapter", bytes.adapter(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena gradients, ReserveArena(backend, "gradients", bytes.gradients(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena optimizer, ReserveArena(backend, "optimizer", bytes.optimizer(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena saved, ReserveArena(backend, "saved", bytes.saved(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena scratch, ReserveArena(backend, "scratch", bytes.scratch(), blocks));
  HONE_ASSIGN_OR_RETURN(Arena pinned, ReserveArena(backend, "pinned", pinned_bytes, blocks, true));
  std::unique_ptr<MemoryBlock> ring;
  if (backend.ops().backend() == BackendKind::kCuda) {
    // Without it loading is slower, not wrong.
    if (auto reserved = backend.ReservePinned(kLoadRingBytes); reserved.ok()) ring = *std::move(reserved);
  }
  return ArenaSet{weights, adapter, gradients,         optimizer,       saved,
                  scratch, pinned,  std::move(blocks), bytes.context(), std::move(ring)};
}

v1::PlanBytes ArenaSet::HighWater() const {
  v1::PlanBytes bytes;
  bytes.set_weights(weights.high_water());
  bytes.set_adapter(adapter.high_water());
  bytes.set_gradients(gradients.high_water());
  bytes.set_optimizer(optimizer.high_water());
  bytes.set_saved(saved.high_water());
  bytes.set_scratch(scratch.high_water());
  bytes.set_context(context_bytes);
  bytes.set_total(bytes.weights() + bytes.adapter() + bytes.gradients() + bytes.optimizer() + bytes.saved() +
                  bytes.scratch() + bytes.context());
  return bytes;
}

std::span<std::byte> ArenaSet::LoadRing() const {
  if (load_ring == nullptr) return {};
  return {static_cast<std::byte*>(load_ring->data()), load_ring->size()};
}

v1::MemoryUse ArenaSet::Use() const {
  v1::MemoryUse use;
  for (const Arena* arena : {&weights, &adapter, &gradients, &optimizer, &saved, &scratch}) {
    v1::ArenaUse* row = use.add_arenas();
    row->set_name(arena->name());
    row->set_planned_bytes(arena->capacity());
    row->set_actual_bytes(arena->high_water());
  }
  v1::ArenaUse* context = use.add_arenas();
  context->set_name("context");
  context->set_planned_bytes(context_bytes);
  context->set_actual_bytes(context_bytes);
  use.set_pinned_bytes(pinned.high_water());
  return use;
}

absl::StatusOr<LoraConfig> LoraConfigFromSpec(const v1::LoraSpec& spec) {
  LoraConfig config;
  config.r = spec.r();
  config.alpha = spec.lora_alpha();
  config.use_rslora = spec.use_rslora();
  config.layers.assign(spec.layers_to_transform().begin(), spec.layers_to_transform().end());
  for (const std::string& name : spec.target_modules()) {
    if (name == "all-linear") continue;  // empty: all
    bool known = false;
    for (int kind = 0; kind < kLinearKinds; ++kind) {
      if (LinearShortName(static_cast<LinearKind>(kind)) != name) continue;
      config.targets.push_back(static_cast<LinearKind>(kind));
      known = true;
    }
    if (!known) return InvalidArgument("adapter.lora.target_modules: '", name, "' is not a linear of this model");
  }
  return config;
}

absl::StatusOr<std::unique_ptr<TrainSession>> TrainSession::Create(const ModelFiles& files,
                                                                   const SessionOptions& options, Ops& ops,
                                                                   ArenaSet& arenas,
                                                                   const Model::LoadProgress& progress) {
  HONE_ASSIGN_OR_RETURN(LoraLayout layout, LoraLayout::Create(files.config(), options.lora));
  std::unique_ptr<TrainSession> session(new TrainSession(ops, arenas, options, std::move(layout)));
  session->lora_.layout = &session->layout_;
  ModelPlacement placement;
  placement.quantization = options.quantization;
  placement.decoded_layers = options.decoded_layers;
  placement.embedding_on_host = options.embedding_on_host;
  for (int64_t layer = 0; layer < files.config().num_layers; ++layer) {
    for (int group = 0; group < kGroupKinds; ++group) {
      placement.spare.push_back(SpareColumns(ops, &session->lora_, layer, static_cast<GroupKind>(group)));
    }
  }
  HONE_ASSIGN_OR_RETURN(session->model_,
                        Model::Load(files, placement, ops,
                                    {&arenas.weights, &arenas.pinned, &arenas.scratch, arenas.LoadRing()}, progress));
  arenas.load_ring.reset();
  const int64_t elements = session->layout_.elements();
  session->lora_.values = arenas.adapter.AllocateTensor(DType::kF32, 1, elements);
  session->lora_.gradients = arenas.gradients.AllocateTensor(DType::kF32, 1, elements);
  session->optimizer_ = std::make_unique<AdamWOptimizer>(ops, options.optimizer, elements, arenas.optimizer);
  session->decoder_ = std::make_unique<Decoder>(ops, *session->model_, &session->lora_, options.decoder);
  return session;
}

void TrainSession::LogProbs(const PackedBatch& batch, AdapterMode mode, std::span<float> log_probs) {
  decoder_->LogProbs(batch, options_.limits.forward, mode, arenas_.scratch, log_probs);
}

void TrainSession::ForwardBackward(const PackedBatch& batch, const Decoder::Coefficients& coefficients) {
  decoder_->ForwardBackward(batch, options_.limits.train, {&arenas_.saved, &arenas_.scratch, &arenas_.pinned},
                            coefficients);
}

double TrainSession::OptimizerStep(int64_t step, double learning_rate) {
  optimizer_->Step(lora_.values, lora_.gradients, step, learning_rate);
  decoder_->SetAdapterVersion(++adapter_version_);
  return optimizer_->GradientNorm();
}

std::vector<float> TrainSession::Download(Tensor flat) {
  std::vector<float> host(flat.elements());
  ops_.Download(flat, host.data());
  return host;
}

void TrainSession::Upload(std::span<const float> host, Tensor flat) {
  HONE_CHECK(static_cast<int64_t>(host.size()) == flat.elements());
  ops_.Upload(host.data(), flat);
  decoder_->SetAdapterVersion(++adapter_version_);
}

}  // namespace hone
