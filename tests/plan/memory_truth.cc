// Whether a plan tells the truth and an admitted job cannot fail for memory: each spec is planned, started, then the
// rest of the card is filled with another allocation, then its steps run. What the driver counts for the process, less
// the filling, is held against the plan: never over it, and under it by at most 1% or 64 MiB.
//   memory_truth SPEC.yaml...
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/plan/planner.h"
#include "engine/train/trainer.h"
#include "engine/worker/job.h"
#include "kernels/backend.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMebi = 1 << 20;

// Fills the card when training begins.
class Filling : public TrainEvents {
 public:
  explicit Filling(Backend& backend) : backend_(backend) {}
  void Emit(const v1::FromWorker& event) override {
    if (event.has_warning()) std::fprintf(stderr, "warning: %s\n", event.warning().c_str());
    if (event.has_memory() && started_bytes_ == 0) started_bytes_ = event.memory().process_bytes();
    if (event.has_memory()) last_bytes_ = event.memory().process_bytes(), pinned_bytes_ = event.memory().pinned_bytes();
    if (event.has_progress()) {
      const v1::Phase phase = event.progress().phase();
      if (phase != phase_) Say(v1::Phase_Name(phase));
      phase_ = phase;
      if (phase == v1::PHASE_WARMING) loaded_ = Clock::now();
      if (phase == v1::PHASE_TRAINING) {
        warm_ = Clock::now();
        Fill();
      }
    }
    if (event.has_step()) {
      last_step_ = event.step();
      Say(StrCat("step ", event.step().step()));
    }
  }
  TrainControl Poll() override { return TrainControl::kContinue; }

  uint64_t started_bytes() const { return started_bytes_; }
  uint64_t last_bytes() const { return last_bytes_; }
  uint64_t filled_bytes() const { return filled_bytes_; }
  uint64_t pinned_bytes() const { return pinned_bytes_; }
  const v1::StepRecord& last_step() const { return last_step_; }

  double load_seconds() const { return std::chrono::duration<double>(loaded_ - begin_).count(); }
  double warm_seconds() const { return std::chrono::duration<double>(warm_ - loaded_).count(); }

 private:
  void Say(const std::string& what) const {
    std::fprintf(stderr, "%.2f s: %s\n", std::chrono::duration<double>(Clock::now() - begin_).count(), what.c_str());
  }

  void Fill() {
    for (uint64_t bytes = backend_.FreeBytes(); bytes >= 2 * kMebi; bytes -= bytes / 16 + kMebi) {
      auto block = backend_.Reserve(bytes);
      if (!block.ok()) continue;
      filled_bytes_ += bytes;
      blocks_.push_back(*std::move(block));
      bytes = backend_.FreeBytes();
      if (bytes < 2 * kMebi) break;
    }
  }

  Backend& backend_;
  std::vector<std::unique_ptr<MemoryBlock>> blocks_;
  Clock::time_point begin_ = Clock::now(), loaded_ = begin_, warm_ = begin_;
  uint64_t started_bytes_ = 0, last_bytes_ = 0, filled_bytes_ = 0, pinned_bytes_ = 0;
  v1::Phase phase_ = v1::PHASE_UNSPECIFIED;
  v1::StepRecord last_step_;
};

absl::StatusOr<bool> Try(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  HONE_ASSIGN_OR_RETURN(const v1::JobSpec spec, SpecFromYaml(text, path));
  HONE_ASSIGN_OR_RETURN(const PreparedRun run, PrepareJob(spec, {v1::DEVICE_CUDA, v1::PRECISION_AUTO, 0, ""}));
  PlanJobOptions options;
  options.cache_folder = MachineCacheFolder();
  HONE_ASSIGN_OR_RETURN(const v1::Plan plan, PlanJob(run, options));
  if (!plan.fits()) return FailedPrecondition(path, ": ", plan.reason());
  const DeviceChoice device{run.spec.run().device(), run.spec.run().precision(), 0, options.cache_folder};
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, OpenBackend(device));
  const uint64_t opened = backend->ProcessBytes();
  std::printf("free by the driver beforehand %.0f MiB, what the card gives now %.0f\n",
              static_cast<double>(plan.budget_bytes()) / kMebi,
              static_cast<double>(backend->FreeBytes() + opened) / kMebi);
  TrainRequest request;
  request.run = &run;
  request.plan = plan;
  request.output_dir = path + ".out";
  std::filesystem::remove_all(request.output_dir);
  Filling events(*backend);
  HONE_RETURN_IF_ERROR(Train(request, *backend, events).status());
  const uint64_t planned = plan.bytes().total(), held = events.last_bytes() - events.filled_bytes();
  const double over = (static_cast<double>(planned) - static_cast<double>(held)) / kMebi;
  const bool holds = held <= planned && over <= std::max(64.0, 0.01 * static_cast<double>(planned) / kMebi);
  const v1::PlanBytes& b = plan.bytes();
  std::printf("%-28s plan %7.0f MiB, driver %7.0f (started %7.0f), plan - driver %6.1f MiB %s\n",
              std::filesystem::path(path).stem().c_str(), static_cast<double>(planned) / kMebi,
              static_cast<double>(held) / kMebi, static_cast<double>(events.started_bytes()) / kMebi, over,
              holds ? "ok" : "WRONG");
  std::printf(
      "    weights %.0f adapter %.0f gradients %.0f optimizer %.0f saved %.0f scratch %.0f context %.0f (opened %.0f) "
      "pinned %.0f; filled %.0f\n    %s, micro-batch %u, head %u, mlp %u, offload %d, embedding on host %d, "
      "decoded %u; step %.1f ms planned %.1f ms; loss %.4f; load %.1f s, warm-up %.1f s\n",
      static_cast<double>(b.weights()) / kMebi, static_cast<double>(b.adapter()) / kMebi,
      static_cast<double>(b.gradients()) / kMebi, static_cast<double>(b.optimizer()) / kMebi,
      static_cast<double>(b.saved()) / kMebi, static_cast<double>(b.scratch()) / kMebi,
      static_cast<double>(b.context()) / kMebi, static_cast<double>(opened) / kMebi,
      static_cast<double>(events.pinned_bytes()) / kMebi, static_cast<double>(events.filled_bytes()) / kMebi,
      plan.recompute().c_str(), plan.micro_batch_tokens(), plan.head_chunk_rows(), plan.mlp_chunk_rows(),
      plan.offload_inputs(), plan.embedding_on_host(), plan.decoded_layers(), events.last_step().seconds() * 1e3,
      static_cast<double>(events.last_step().tokens()) / plan.tokens_per_second() * 1e3, events.last_step().loss(),
      events.load_seconds(), events.warm_seconds());
  std::fflush(stdout);
  return holds;
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  int wrong = 0;
  for (int i = 1; i < argc; ++i) {
    try {
      const auto holds = hone::Try(argv[i]);
      if (!holds.ok()) std::printf("%s: %s\n", argv[i], std::string(holds.status().message()).c_str());
      wrong += holds.ok() && *holds ? 0 : 1;
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", argv[i], error.what());
      return 2;
    }
  }
  return wrong == 0 ? 0 : 1;
}
