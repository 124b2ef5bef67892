// Cards that can be planned for without having one. Rates rank plans and predict time; they are data-sheet values
// unless a note in cards.cc says measured.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/plan/planner.h"

namespace hone {

absl::StatusOr<PlanTarget> TargetOfCard(std::string_view card, DType activation_dtype);

}  // namespace hone
