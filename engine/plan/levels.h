// Recomputation per layer as a plan writes it: "none", or runs of layers as "none:20,full host:12". " host": what these
// layers keep waits on the host. " apart" behind it all: weights are decoded for each use
// (DecoderOptions::decode_apart).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder_options.h"

namespace hone {

inline constexpr Recompute kRecomputeLevels[] = {Recompute::kNone, Recompute::kActivation, Recompute::kMlp,
                                                 Recompute::kBlock, Recompute::kFull};
std::string_view RecomputeName(Recompute level);

struct RecomputePlan {
  std::vector<Recompute> levels;  // by layer
  std::vector<bool> on_host;      // by layer
  bool decode_apart = false;
};
std::string RecomputeText(const RecomputePlan& plan);
// InvalidArgument where the text names an unknown level or another number of layers.
absl::StatusOr<RecomputePlan> ParseRecompute(std::string_view text, int64_t layers);

}  // namespace hone
