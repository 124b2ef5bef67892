#include "engine/plan/search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>

#include "engine/model/launch.h"
#include "engine/plan/levels.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int kLevels = std::size(kRecomputeLevels);
constexpr int64_t kHeadChunks[] = {128, 256, 512, 1024, 2048, 4096, 8192};
constexpr int64_t kMlpChunks[] = {0, 2048, 1024, 512, 256};  // 0: all rows at a time
constexpr uint32_t kSmallestLaunch = 256;
constexpr uint32_t kLargestLaunch = 32768;
constexpr double kNear = 1.03;  // "within 3% of the fastest"

bool KeepsGateUp(int level) { return kRecomputeLevels[level] <= Recompute::kActivation; }
bool Offloads(int level) { return kRecomputeLevels[level] != Recompute::kNone; }

// What layers can be: a level, and where what they keep waits.
struct LayerKind {
  int level = 0;
  bool host = false;
};
bool WideOnHost(const LayerKind& kind) { return kind.host && KeepsGateUp(kind.level); }
std::vector<LayerKind> LayerKinds(BackendKind backend) {
  std::vector<LayerKind> kinds;
  for (int level = 0; level < kLevels; ++level) {
    kinds.push_back({level, false});
    if (backend == BackendKind::kCuda && Offloads(level)) kinds.push_back({level, true});
  }
  return kinds;
}

// Few shapes of products where a card chooses an algorithm for each; more would cost null rows.
int64_t RowMultiple(BackendKind backend, int64_t tokens) {
  if (backend != BackendKind::kCuda) return 1;
  return tokens <= 512 ? 64 : 256;
}

// The launch whose size is nearest to the mean, and by how much the step's launches are more than it.
struct Sample {
  const PackedBatch* batch = nullptr;
  double factor = 0;
};
Sample SampleOf(const std::vector<LaunchBatch>& launches) {
  if (launches.empty()) return {};
  double rows = 0;
  for (const LaunchBatch& launch : launches) rows += static_cast<double>(launch.packed.tokens());
  const double mean = rows / static_cast<double>(launches.size());
  const auto nearest = std::min_element(launches.begin(), launches.end(), [&](const auto& a, const auto& b) {
    return std::abs(static_cast<double>(a.packed.tokens()) - mean) <
           std::abs(static_cast<double>(b.packed.tokens()) - mean);
  });
  return {&nearest->packed, rows / static_cast<double>(nearest->packed.tokens())};
}

// How a launch's rows are computed in pieces.
struct Pieces {
  int64_t mlp_chunk = 0;
  bool decode_apart = false;
};

}  // namespace

struct Search::Placement {
  bool embedding_on_host = false;
  int64_t decoded_layers = 0;
  uint64_t fixed = 0;   // weights, adapter, gradients, optimizer
  uint64_t pinned = 0;  // of the model
};

struct Search::Size {
  v1::Plan base;  // micro-batch, packing, limits, row multiple
  struct Variant {
    Pieces pieces;
    LaunchUse forward;
    std::array<std::array<LaunchUse, 2>, kLevels> train;  // by level, offload
  };
  std::vector<Variant> variants;
  struct HeadChunk {
    int64_t rows = 0;
    uint64_t scratch = 0;
    StepCost more;  // than the first, whole step
  };
  std::vector<HeadChunk> heads;
  std::array<StepCost, kLevels> decoded;  // of a step with all layers decoded, less one with none
  double train_factor = 0, forward_factor = 0;
  uint64_t wide_bytes = 0;  // of a buffer for gate and up
};

struct Search::Pick {
  const Size* size = nullptr;
  const Size::Variant* variant = nullptr;
  const Size::HeadChunk* head = nullptr;
  const Placement* placement = nullptr;
  LayerKind first, last;
  int64_t split = 0;  // so many of the layers that are trained are of the first kind
  uint64_t bytes = 0, pinned = 0;
  double seconds = std::numeric_limits<double>::infinity();
};

Search::Search(const PreparedRun& run, const PlanTarget& target, const RunLaunches& launches)
    : run_(run), target_(target), launches_(launches) {}

Search::~Search() = default;

absl::Status Search::MeasurePlacements(const SessionOptions& options) {
  auto fixed_bytes = [](const DryStep& step) {
    const v1::PlanBytes& b = step.fixed();
    return b.weights() + b.adapter() + b.gradients() + b.optimizer();
  };
  auto create = [&](const SessionOptions& placed) {
    return DryStep::Create(*run_.files, placed, target_.backend, target_.activation_dtype, target_.rates);
  };
  HONE_ASSIGN_OR_RETURN(dry_, create(options));
  first_ = dry_->first_trained_layer();
  optimizer_ = dry_->OptimizerStep();
  placements_.push_back({false, 0, fixed_bytes(*dry_), 0});
  if (target_.backend != BackendKind::kCuda) return absl::OkStatus();
  SessionOptions decoded = options;
  decoded.decoded_layers = layers_;
  HONE_ASSIGN_OR_RETURN(decoded_, create(decoded));
  const double more = (static_cast<double>(fixed_bytes(*decoded_)) - static_cast<double>(placements_[0].fixed)) /
                      static_cast<double>(layers_);
  constexpr int64_t kParts = 8;
  for (int64_t part = 1; part <= kParts; ++part) {
    const int64_t count = layers_ * part / kParts;
    if (count == placements_.back().decoded_layers) continue;
    const double bytes = static_cast<double>(placements_[0].fixed) + more * static_cast<double>(count);
    placements_.push_back({false, count, static_cast<uint64_t>(bytes), 0});
  }
  if (run_.files->config().tie_word_embeddings) return absl::OkStatus();
  SessionOptions on_host = options;
  on_host.embedding_on_host = true;
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<DryStep> host, create(on_host));
  placements_.push_back({true, 0, fixed_bytes(*host), host->pinned_weights()});
  return absl::OkStatus();
}

Search::Size Search::Measure(uint32_t micro_batch_tokens) const {
  Size size;
  v1::Plan& base = size.base;
  base.set_micro_batch_tokens(micro_batch_tokens);
  base.set_packing(run_.spec.memory().packing() != v1::PACKING_OFF);
  const RunLimits limits = launches_.Limits(base, false);
  ToProto(limits.train, base.mutable_train_limits());
  ToProto(limits.forward, base.mutable_forward_limits());
  base.set_row_multiple(static_cast<uint32_t>(RowMultiple(target_.backend, limits.train.tokens)));

  size.wide_bytes =
      static_cast<uint64_t>(LaunchRows(limits.train.tokens, base.row_multiple()) * 2 *
                            run_.files->config().intermediate_size * BlockBytes(target_.activation_dtype));

  const StepLaunches step = launches_.FirstStep(base);
  const Sample train = SampleOf(step.train);
  // The forward passes' memory needs a launch even where a step has none.
  const std::vector<LaunchBatch> reference =
      step.mismatched.empty() && limits.forward.tokens > 0 ? launches_.Reference(base) : std::vector<LaunchBatch>();
  Sample forward = SampleOf(step.mismatched);
  size.train_factor = train.factor;
  size.forward_factor = forward.factor;
  if (forward.batch == nullptr && !reference.empty()) forward.batch = SampleOf(reference).batch;
  if (forward.batch != nullptr) {  // and a step's share of the run's reference passes
    size.forward_factor += static_cast<double>(launches_.reference_tokens()) / static_cast<double>(run_.steps) /
                           static_cast<double>(forward.batch->tokens());
  }
  if (forward.batch == nullptr) forward.batch = train.batch;

  auto options = [&](int level, bool offload, const Pieces& pieces, int64_t head) {
    DecoderOptions out;
    out.recompute.assign(layers_, kRecomputeLevels[level]);
    out.on_host.assign(layers_, offload);
    out.head_chunk_rows = head;
    out.mlp_chunk_rows = pieces.mlp_chunk;
    out.decode_apart = pieces.decode_apart;
    out.row_multiple = base.row_multiple();
    return out;
  };
  auto run_train = [&](DryStep& dry, const DecoderOptions& o) { return dry.Train(o, limits.train, *train.batch); };

  const bool cuda = target_.backend == BackendKind::kCuda;
  const int64_t most_rows = std::max(limits.train.tokens, limits.forward.tokens);
  for (const bool apart : {false, true}) {
    if (apart && !cuda) continue;
    for (const int64_t chunk : kMlpChunks) {
      if (chunk >= most_rows) continue;
      Size::Variant variant;
      variant.pieces = {chunk, apart};
      for (int level = 0; level < kLevels; ++level) {
        for (const bool offload : {false, true}) {
          LaunchUse& use = variant.train[level][offload];
          if (offload && (!cuda || !Offloads(level))) {
            use = variant.train[level][0];
          } else if (chunk != 0 && KeepsGateUp(level)) {
            use = size.variants[size.variants.size() - 1].train[level][offload];
          } else {
            use = run_train(*dry_, options(level, offload, variant.pieces, kHeadChunks[0]));
          }
        }
      }
      if (limits.forward.tokens > 0) {
        BatchLimits covering = limits.forward;
        if (size.forward_factor == 0 && reference.empty()) covering = Cover(covering, *forward.batch);
        variant.forward = dry_->Forward(options(0, false, variant.pieces, kHeadChunks[0]), covering, *forward.batch);
      }
      size.variants.push_back(std::move(variant));
    }
  }
  for (const int64_t rows : kHeadChunks) {
    if (!size.heads.empty() && size.heads.back().rows >= std::max(limits.train.logit_rows, limits.forward.logit_rows)) {
      break;
    }
    const LaunchUse use = run_train(*dry_, options(0, false, {}, rows));
    Size::HeadChunk head{rows, use.scratch, use.cost};
    if (limits.forward.tokens > 0 && size.forward_factor > 0) {
      const LaunchUse f = dry_->Forward(options(0, false, {}, rows), limits.forward, *forward.batch);
      head.scratch = std::max(head.scratch, f.scratch);
      head.more = size.train_factor * head.more + size.forward_factor * f.cost;
    } else {
      head.more *= size.train_factor;
    }
    size.heads.push_back(head);
  }
  const StepCost smallest = size.heads[0].more;
  for (Size::HeadChunk& head : size.heads) head.more += -1.0 * smallest;
  for (int level = 0; level < kLevels && decoded_ != nullptr; ++level) {
    const LaunchUse use = run_train(*decoded_, options(level, false, {}, kHeadChunks[0]));
    size.decoded[level] = size.train_factor * (use.cost + -1.0 * size.variants[0].train[level][0].cost);
  }
  return size;
}

template <typename Visit>
void Search::ForEach(const Size& size, const Visit& visit) const {
  const int64_t trained = layers_ - first_;
  const std::vector<LayerKind> kinds = LayerKinds(target_.backend);
  Pick pick;
  pick.size = &size;
  for (const Size::Variant& variant : size.variants) {
    pick.variant = &variant;
    for (size_t a = 0; a < kinds.size(); ++a) {
      for (size_t b = a; b < kinds.size(); ++b) {
        pick.first = kinds[a];
        pick.last = kinds[b];
        if (variant.pieces.mlp_chunk != 0 && KeepsGateUp(pick.last.level) && size.base.forward_limits().tokens() == 0) {
          continue;
        }
        // Uniform plans are those with a == b; a split leaves both kinds at least one layer.
        for (int64_t split = a == b ? trained : 1; split <= (a == b ? trained : trained - 1); ++split) {
          pick.split = split;
          ForEachPlacement(pick, visit);
        }
      }
    }
  }
}

template <typename Visit>
void Search::ForEachPlacement(Pick pick, const Visit& visit) const {
  const Size& size = *pick.size;
  const Size::Variant& variant = *pick.variant;
  const LaunchUse& first = variant.train[pick.first.level][pick.first.host];
  const LaunchUse& last = variant.train[pick.last.level][pick.last.host];
  const double share = static_cast<double>(pick.split) / static_cast<double>(layers_ - first_);
  // Buffers that layers on the host share do not shrink with their number.
  const auto first_saved = static_cast<double>(first.saved), last_saved = static_cast<double>(last.saved);
  const double saved = pick.first.host && pick.last.host ? std::max(first_saved, last_saved)
                                                         : (pick.first.host ? 1 : share) * first_saved +
                                                               (pick.last.host ? 1 : 1 - share) * last_saved;
  // Gate and up of layers far enough apart pass through one buffer, not two (KeptLayers).
  const double wide_share = (WideOnHost(pick.first) ? share : 0) + (WideOnHost(pick.last) ? 1 - share : 0);
  const double one_buffer = wide_share > 0 && wide_share <= 1.0 / 3 ? static_cast<double>(size.wide_bytes) : 0;
  const double pinned = share * static_cast<double>(first.pinned) + (1 - share) * static_cast<double>(last.pinned);
  const uint64_t scratch = std::max({first.scratch, last.scratch, variant.forward.scratch});
  StepCost launches = size.train_factor * (share * first.cost + (1 - share) * last.cost) +
                      size.forward_factor * variant.forward.cost + optimizer_;
  // Nothing leaves before the first layer on the host has run, nor once the last one runs.
  const auto layers = static_cast<double>(layers_ - first_);
  const double on_host = layers * ((pick.first.host ? share : 0) + (pick.last.host ? 1 - share : 0));
  const double window = on_host > 0 ? std::max(0.0, 1 - 1 / on_host - 1 / layers) : 1;
  launches.beside_out *= window;
  launches.beside_back *= window;
  const StepCost decoded = share * size.decoded[pick.first.level] + (1 - share) * size.decoded[pick.last.level];
  for (const Placement& placement : placements_) {
    if (placement.decoded_layers > 0 && variant.pieces.decode_apart) continue;
    pick.placement = &placement;
    pick.pinned = static_cast<uint64_t>(pinned) + placement.pinned;
    if (target_.pinned_limit > 0 && pick.pinned > target_.pinned_limit) continue;
    StepCost cost = launches;
    if (placement.decoded_layers > 0) {
      cost += static_cast<double>(placement.decoded_layers) / static_cast<double>(layers_) * decoded;
    }
    const uint64_t beside = placement.fixed + static_cast<uint64_t>(saved - one_buffer) + target_.context_bytes;
    for (const Size::HeadChunk& head : size.heads) {
      pick.head = &head;
      pick.bytes = beside + std::max(scratch, head.scratch);
      pick.seconds = (cost + head.more).seconds();
      visit(pick);
    }
  }
}

Found Search::Describe(const Pick& pick) const {
  Found found;
  found.plan = pick.size->base;
  found.bytes = pick.bytes;
  found.step_seconds = pick.seconds;
  RecomputePlan recompute;
  recompute.decode_apart = pick.variant->pieces.decode_apart;
  auto add = [&](int64_t count, const LayerKind& kind) {
    recompute.levels.insert(recompute.levels.end(), count, kRecomputeLevels[kind.level]);
    recompute.on_host.insert(recompute.on_host.end(), count, kind.host);
  };
  add(first_, pick.last);
  const int64_t trained = layers_ - first_;
  if (!pick.first.host && !pick.last.host) {
    add(pick.split, pick.first);
    add(trained - pick.split, pick.last);
  } else {
    // Evenly among each other: transfers of one kind run beside the other.
    for (int64_t i = 0; i < trained; ++i) {
      add(1, (i + 1) * pick.split / trained > i * pick.split / trained ? pick.first : pick.last);
    }
  }
  const bool any_host = pick.first.host || pick.last.host;
  found.plan.set_recompute(RecomputeText(recompute));
  found.plan.set_offload_inputs(any_host);
  found.plan.set_embedding_on_host(pick.placement->embedding_on_host);
  found.plan.set_decoded_layers(static_cast<uint32_t>(pick.placement->decoded_layers));
  found.plan.set_mlp_chunk_rows(static_cast<uint32_t>(pick.variant->pieces.mlp_chunk));
  found.plan.set_head_chunk_rows(static_cast<uint32_t>(pick.head->rows));
  return found;
}

std::optional<Found> Search::Best(uint64_t budget, v1::MemoryPolicy policy) const {
  int64_t considered = 0, fitting = 0;
  Pick fastest;
  for (const Size& size : sizes_) {
    ForEach(size, [&](const Pick& pick) {
      ++considered;
      if (pick.bytes > budget) return;
      ++fitting;
      if (pick.seconds < fastest.seconds || (pick.seconds == fastest.seconds && pick.bytes < fastest.bytes)) {
        fastest = pick;
      }
    });
  }
  if (fitting == 0) return std::nullopt;
  Pick best = fastest;
  if (policy != v1::MEMORY_POLICY_FASTEST) {
    const double slowest =
        policy == v1::MEMORY_POLICY_SMALLEST ? std::numeric_limits<double>::infinity() : fastest.seconds * kNear;
    for (const Size& size : sizes_) {
      ForEach(size, [&](const Pick& pick) {
        if (pick.bytes > budget || pick.seconds > slowest) return;
        if (pick.bytes < best.bytes || (pick.bytes == best.bytes && pick.seconds < best.seconds)) best = pick;
      });
    }
  }
  Found found = Describe(best);
  found.considered = considered;
  found.fitting = fitting;
  return found;
}

absl::StatusOr<std::unique_ptr<Search>> Search::Create(const PreparedRun& run, const PlanTarget& target,
                                                       const RunLaunches& launches) {
  std::unique_ptr<Search> search(new Search(run, target, launches));
  search->layers_ = run.files->config().num_layers;
  v1::Plan none;
  none.set_recompute("none");
  HONE_ASSIGN_OR_RETURN(const SessionOptions options, OptionsFromPlan(run, none));
  HONE_RETURN_IF_ERROR(search->MeasurePlacements(options));

  std::set<uint32_t> sizes;
  if (run.spec.memory().has_micro_batch_tokens()) {
    sizes.insert(run.spec.memory().micro_batch_tokens());
  } else {
    // No launch is smaller than the longest example, and more than a step's tokens is of no use.
    const auto longest = static_cast<uint32_t>(run.data.train.longest());
    const uint32_t least = std::max(kSmallestLaunch, longest);
    const auto most = static_cast<uint32_t>(std::max<int64_t>(least, launches.step_tokens()));
    for (uint32_t size = kSmallestLaunch; size < kLargestLaunch; size *= 2) {
      if (size > least && size < most) sizes.insert(size);
    }
    sizes.insert(least);
    if (2 * least < most) sizes.insert(2 * least);
    if (most <= std::max(kLargestLaunch, least)) sizes.insert(most);
    if (run.spec.memory().packing() == v1::PACKING_OFF) sizes = {least};
  }
  for (const uint32_t size : sizes) search->sizes_.push_back(search->Measure(size));
  return search;
}

}  // namespace hone
