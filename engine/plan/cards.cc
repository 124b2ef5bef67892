#include "engine/plan/cards.h"

#include <string>

#include "proto/base/status.h"

namespace hone {
namespace {

// half_rate_tiles scales with the number of processors: 80 on an H100's 132 from measured products of 256 and 1,024
// rows. Attention's rates are shares of the products' as measured on an H100 where no better is known.
struct Card {
  std::string_view name;
  uint64_t mebibytes;  // what the driver gives in all
  double gemm_flops;   // bf16, fp32 accumulation
  double copy_bytes;   // per second
  double link_bytes;   // pinned host memory, one direction
  double half_rate_tiles;
};

constexpr Card kCards[] = {
    {"rtx3090", 24576, 71e12, 936e9, 24e9, 50},    // data sheet
    {"rtx4090", 24564, 165e12, 1008e9, 24e9, 78},  // data sheet
    {"h100", 81559, 786e12, 3004e9, 54e9, 80},     // measured
    {"h200", 143771, 790e12, 4273e9, 54.5e9, 80},  // measured
};
constexpr double kForwardShare = 0.65, kBackwardShare = 0.5;
constexpr double kLaunchSeconds = 2.5e-6;

}  // namespace

absl::StatusOr<PlanTarget> TargetOfCard(std::string_view card, DType activation_dtype) {
  std::string known;
  for (const Card& row : kCards) {
    if (row.name == card) {
      PlanTarget target;
      target.name = std::string(card);
      target.backend = BackendKind::kCuda;
      target.activation_dtype = activation_dtype;
      target.free_bytes = row.mebibytes << 20;
      target.context_bytes = kCudaContextBytes;
      target.rates.gemm_flops = row.gemm_flops;
      target.rates.attention_forward_flops = kForwardShare * row.gemm_flops;
      target.rates.attention_backward_flops = kBackwardShare * row.gemm_flops;
      target.rates.copy_bytes = row.copy_bytes;
      target.rates.link_bytes = row.link_bytes;
      target.rates.half_rate_tiles = row.half_rate_tiles;
      target.rates.half_rate_length = kHalfRateLength;
      target.rates.launch_seconds = kLaunchSeconds;
      return target;
    }
    known += StrCat(known.empty() ? "" : ", ", row.name);
  }
  return InvalidArgument("--device: '", card, "' is not cpu, cuda or a known card (", known, ")");
}

}  // namespace hone
