#include "engine/plan/cards.h"

#include <cctype>
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
// Without tensor cores products run at about an eighth (H100: a twelfth, RTX 3090: a half).
constexpr double kFp32Share = 0.125;

Rates RatesOfRow(const Card& row, DType activation_dtype) {
  Rates rates;
  rates.gemm_flops = activation_dtype == DType::kF32 ? kFp32Share * row.gemm_flops : row.gemm_flops;
  rates.attention_forward_flops = kForwardShare * rates.gemm_flops;
  rates.attention_backward_flops = kBackwardShare * rates.gemm_flops;
  rates.copy_bytes = row.copy_bytes;
  rates.link_bytes = row.link_bytes;
  rates.half_rate_tiles = row.half_rate_tiles;
  rates.half_rate_length = kHalfRateLength;
  rates.launch_seconds = kLaunchSeconds;
  return rates;
}

// "NVIDIA GeForce RTX 3090" holds "rtx3090".
std::string Squeezed(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) out += static_cast<char>(std::tolower(c));
  }
  return out;
}

}  // namespace

Rates TableRates(std::string_view driver_name, DType activation_dtype) {
  const std::string name = Squeezed(driver_name);
  for (const Card& row : kCards) {
    if (name.find(row.name) != std::string::npos) return RatesOfRow(row, activation_dtype);
  }
  return RatesOfRow(kCards[0], activation_dtype);
}

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
      target.rates = RatesOfRow(row, activation_dtype);
      return target;
    }
    known += StrCat(known.empty() ? "" : ", ", row.name);
  }
  return InvalidArgument("--device: '", card, "' is not cpu, cuda or a known card (", known, ")");
}

}  // namespace hone
