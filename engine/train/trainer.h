// One run from its first step, or its last checkpoint, to its exports' inputs: order of passes, checkpoints, events.
// Everything is laid out in the plan's arenas before the first step, and nothing is allocated on the device afterwards.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/train/prepare.h"
#include "engine/train/session.h"
#include "hone/v1/plan.pb.h"
#include "hone/v1/worker.pb.h"
#include "kernels/backend.h"

namespace hone {

enum class TrainControl : uint8_t { kContinue, kCheckpoint, kStop /* after a checkpoint */ };

// Where a run tells how it goes, and is told what to do; asked once a step.
class TrainEvents {
 public:
  virtual ~TrainEvents() = default;
  virtual void Emit(const v1::FromWorker& event) = 0;
  virtual TrainControl Poll() = 0;
};

struct TrainRequest {
  const PreparedRun* run = nullptr;
  v1::Plan plan;
  std::string output_dir;           // checkpoints/, steps.jsonl, adapter/
  std::string reference_cache_dir;  // empty: <output_dir>/reference
  int64_t save_gradients = 0;       // gradients of the first N steps, and the initial adapter, are written
  // Tests alone: may overwrite the gradients of the run's batch (0 is the first) before they are used.
  std::function<void(int64_t batch, std::span<float> gradients)> overwrite_gradients_for_tests;
};

struct TrainOutcome {
  bool stopped = false;      // by TrainControl::kStop; a checkpoint of last_step is there
  int64_t last_step = 0;     // steps done
  double train_seconds = 0;  // in steps, this process
  double reference_seconds = 0;
  uint64_t tokens = 0;  // policy tokens trained on in this process
  v1::StepRecord last_record;
  std::optional<v1::EvalRecord> last_eval;
  v1::MemoryUse memory;
};

// Resumes from the newest valid checkpoint in output_dir if there is one. Writes adapter/ (PEFT) when all steps are
// done.
absl::StatusOr<TrainOutcome> Train(const TrainRequest& request, Backend& backend, TrainEvents& events);

}  // namespace hone
