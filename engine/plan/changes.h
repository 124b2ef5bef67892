// What would make a plan fit that does not: the smallest changes of the spec, each tried dry on its own.
#pragma once

#include "engine/plan/dry_run.h"

namespace hone {

// Fills plan.changes; `plan` is the smallest one found.
void AddChanges(const PreparedRun& run, const PlanTarget& target, v1::Plan& plan);

std::string Mebibytes(uint64_t bytes);  // rounded up

}  // namespace hone
