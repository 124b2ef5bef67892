#include "engine/objective/objective.h"

#include "engine/objective/kto.h"
#include "engine/objective/sft.h"
#include "proto/base/status.h"

namespace hone {
namespace {

struct Row {
  v1::ObjectiveSpec::KindCase kind;
  std::unique_ptr<Objective> (*make)(const v1::JobSpec&);
};

constexpr Row kObjectives[] = {
    {v1::ObjectiveSpec::kSft, MakeSft},
    {v1::ObjectiveSpec::kKto, MakeKto},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Objective>> MakeObjective(const v1::JobSpec& resolved) {
  for (const Row& row : kObjectives) {
    if (row.kind == resolved.objective().kind_case()) return row.make(resolved);
  }
  return InvalidArgument("objective: none is chosen; give sft or kto");
}

}  // namespace hone
