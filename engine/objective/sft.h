// Supervised fine-tuning: loss = -(sum of trained tokens' log-probabilities) / (their number in the semantic batch).
#pragma once

#include <memory>

#include "engine/objective/objective.h"

namespace hone {

std::unique_ptr<Objective> MakeSft(const v1::JobSpec& resolved);

}  // namespace hone
