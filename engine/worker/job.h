// The whole of a job as functions: validate, plan, train with its exports, export alone. The verbs and the daemon's
// channel share them. Not here: command lines (verbs.h) and the channel (serve.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/train/prepare.h"
#include "engine/train/trainer.h"
#include "engine/worker/device.h"
#include "hone/v1/plan.pb.h"
#include "hone/v1/spec.pb.h"
#include "hone/v1/worker.pb.h"
#include "nlohmann/json.hpp"

namespace hone {

// Paths of the spec made absolute, "~" expanded; the device chosen and written into the resolved spec. plan_device is
// PlanJob's `device`: a card that is planned for need not be here.
absl::StatusOr<PreparedRun> PrepareJob(v1::JobSpec spec, const DeviceChoice& overrides,
                                       const std::string& plan_device = "");

// The data report (CONTRACT `validate`).
nlohmann::ordered_json JobReport(const PreparedRun& run);

struct PlanJobOptions {
  std::string device;         // empty (the spec's), "cpu", "cuda" or a card of engine/plan/cards.h
  uint64_t budget_bytes = 0;  // of host memory, for plans on the CPU; 0: what is free
  int threads = 0;
  std::string cache_folder;        // MachineCacheFolder(); rates are measured once and kept there
  uint64_t card_budget_bytes = 0;  // of the card's memory, for plans on it; 0: what is free
};
absl::StatusOr<v1::Plan> PlanJob(const PreparedRun& run, const PlanJobOptions& options);

// Tests alone: `honed-worker ... --inject-fault JOBNAME:STEP` breaks the device (Backend::BreakForTests) in that step
// of the job of that name. The daemon never gives it: a test's worker program is a script that does.
struct InjectedFault {
  std::string job;
  int64_t step = 0;  // 1 is the first
};
absl::StatusOr<std::optional<InjectedFault>> ParseInjectedFault(const std::string& flag);  // empty: none

struct TrainJobOptions {
  std::string output_dir;
  std::optional<v1::Plan> plan;     // else that of output_dir, else a new one, which is emitted
  std::string reference_cache_dir;  // empty: in output_dir
  int64_t save_gradients = 0;
  uint64_t budget_bytes = 0;  // 0: what is free
  int threads = 0;
  std::optional<InjectedFault> fault;
};

struct TrainJobResult {
  bool stopped = false;
  int64_t last_step = 0;
  nlohmann::ordered_json result;  // also in output_dir/result.json
  std::vector<v1::Artifact> artifacts;
};

// Trains, or resumes output_dir if its resolved spec is equal (else refuses), then exports. One process at a time per
// folder.
absl::StatusOr<TrainJobResult> TrainJob(const PreparedRun& run, const TrainJobOptions& options, TrainEvents& events);

// One export with its receipt: files, sha256, and the largest difference of logits between base + adapter and what was
// written.
absl::StatusOr<nlohmann::ordered_json> ExportJob(const ModelFiles& files, const std::string& adapter_dir,
                                                 const std::string& format, const std::string& output, Backend& backend,
                                                 std::optional<WeightQuantization> quantization = std::nullopt);

}  // namespace hone
