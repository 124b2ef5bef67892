// Cards that can be planned for without having one. Rates rank plans and predict time; they are data-sheet values
// unless a note in cards.cc says measured.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/plan/planner.h"

namespace hone {

// What a process takes of a card beside its arenas: context, cuBLASLt and the back end's workspace, by the driver,
// measured on an H100 (tests/bench/RESULTS.md).
inline constexpr uint64_t kCudaContextBytes = uint64_t{566} << 20;

absl::StatusOr<PlanTarget> TargetOfCard(std::string_view card, DType activation_dtype);

}  // namespace hone
