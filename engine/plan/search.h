// Finds the plan among {recomputation per layer, offload, placement of embedding and layers, micro-batch tokens, head
// and gated-unit chunks}. A few launches of each micro-batch size are run dry; memory and time of all other choices
// follow, since both are sums over layers (saved, time) or maxima over phases (scratch). What is chosen is then
// confirmed by a dry run of the real step (planner.cc); estimates only rank.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/plan/dry_step.h"
#include "engine/plan/launches.h"
#include "engine/plan/planner.h"

namespace hone {

struct Found {
  v1::Plan plan;  // choices, limits; bytes.total and seconds are estimates
  uint64_t bytes = 0;
  double step_seconds = 0;
  int64_t considered = 0, fitting = 0;
};

class Search {
 public:
  static absl::StatusOr<std::unique_ptr<Search>> Create(const PreparedRun& run, const PlanTarget& target,
                                                        const RunLaunches& launches);
  ~Search();
  // The policy's best of what takes at most `budget` bytes by estimate; nullopt: nothing does. kNoBudget: all.
  static constexpr uint64_t kNoBudget = ~uint64_t{0};
  std::optional<Found> Best(uint64_t budget, v1::MemoryPolicy policy) const;

 private:
  struct Placement;  // of weights
  struct Size;       // one micro-batch size, measured
  struct Pick;
  Search(const PreparedRun& run, const PlanTarget& target, const RunLaunches& launches);

  absl::Status MeasurePlacements(const SessionOptions& options);
  Size Measure(uint32_t micro_batch_tokens) const;
  template <typename Visit>
  void ForEach(const Size& size, const Visit& visit) const;
  template <typename Visit>
  void ForEachPlacement(Pick pick, const Visit& visit) const;
  Found Describe(const Pick& pick) const;

  const PreparedRun& run_;
  const PlanTarget& target_;
  const RunLaunches& launches_;
  int64_t layers_ = 0, first_ = 0;
  std::unique_ptr<DryStep> dry_, decoded_;  // no layer decoded, all of them
  std::vector<Placement> placements_;
  StepCost optimizer_;
  std::vector<Size> sizes_;
};

}  // namespace hone
