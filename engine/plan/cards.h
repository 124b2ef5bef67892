// Cards that can be planned for without having one. Rates rank plans and predict time; they are data-sheet values
// unless a note in cards.cc says measured.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/plan/planner.h"

namespace hone {

// What a process takes of a card beside its arenas, by the driver: 558 MiB once opened on an H100 (context, cuBLASLt,
// the back end's workspace), and up to 16 MiB more when its kernels have run, 33 where it had opened the card before
// (tests/bench/RESULTS.md); rounded up, since a plan must never be under.
inline constexpr uint64_t kCudaOpenedBytes = uint64_t{558} << 20;
inline constexpr uint64_t kCudaGrowthBytes = uint64_t{40} << 20;
inline constexpr uint64_t kCudaContextBytes = kCudaOpenedBytes + kCudaGrowthBytes;

// For a card by the driver's name where nothing could be measured; one that is not in the table counts as the first.
Rates TableRates(std::string_view driver_name, DType activation_dtype);

absl::StatusOr<PlanTarget> TargetOfCard(std::string_view card, DType activation_dtype);

}  // namespace hone
