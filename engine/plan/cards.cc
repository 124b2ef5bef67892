#include "engine/plan/cards.h"

#include <string>

#include "proto/base/status.h"

namespace hone {
namespace {

struct Card {
  std::string_view name;
  uint64_t mebibytes;  // what the driver gives in all
  double gemm_flops;   // bf16, fp32 accumulation
  double bytes_per_second;
};

constexpr Card kCards[] = {
    {"rtx3090", 24576, 71e12, 936e9},
    {"rtx4090", 24564, 165e12, 1008e9},
    {"h100", 81559, 786e12, 3004e9},   // rates measured
    {"h200", 143771, 790e12, 4273e9},  // rates measured
};

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
      target.gemm_flops = row.gemm_flops;
      target.bytes_per_second = row.bytes_per_second;
      return target;
    }
    known += StrCat(known.empty() ? "" : ", ", row.name);
  }
  return InvalidArgument("--device: '", card, "' is not cpu, cuda or a known card (", known, ")");
}

}  // namespace hone
