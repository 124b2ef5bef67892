#include "engine/train/warm_up.h"

#include <algorithm>
#include <map>
#include <vector>

#include "engine/model/launch.h"
#include "engine/plan/launches.h"

namespace hone {
namespace {

constexpr int64_t kSteps = 16;     // whose launches are looked at
constexpr size_t kMostSizes = 16;  // of launches that are run

// A longer launch runs the same kernels, and its products take what was found for the nearest number of rows; attention
// over it would cost as much as a step.
constexpr int64_t kMostRows = 16384;

// As large as the limits, up to kMostRows.
PackedBatch Largest(BatchLimits limits, int64_t vocabulary) {
  limits.tokens = std::min(limits.tokens, kMostRows);
  limits.logit_rows = std::min(limits.logit_rows, limits.tokens);
  PackedBatch batch = LargestBatch(limits);
  // Values as a run's, not zeros: a card's power limit ranks the candidates of a product differently on those.
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    batch.ids[i] = static_cast<int32_t>(static_cast<int64_t>(i) * 7919 % vocabulary);
  }
  return batch;
}

// Of launches that compute equally many rows the one with most wanted rows.
using BySize = std::map<int64_t, PackedBatch, std::greater<>>;
void Collect(const std::vector<LaunchBatch>& launches, int64_t row_multiple, BySize& sizes) {
  for (const LaunchBatch& launch : launches) {
    const int64_t rows = LaunchRows(launch.packed.tokens(), row_multiple);
    if (rows > kMostRows) continue;
    PackedBatch& kept = sizes[rows];
    if (kept.logit_rows.size() < launch.packed.logit_rows.size() || kept.tokens() == 0) kept = launch.packed;
    if (sizes.size() > kMostSizes) sizes.erase(std::prev(sizes.end()));
  }
}

}  // namespace

void WarmUp(const PreparedRun& run, const v1::Plan& plan, TrainSession& session, Backend& backend) {
  Ops& ops = backend.ops();
  const RunLimits& limits = session.options().limits;
  const int64_t row_multiple = session.options().decoder.row_multiple;
  const int64_t vocabulary = run.files->config().vocab_size;
  BySize train, forward;
  BatchOrder order = run.Order();
  DataCursor cursor;
  for (int64_t step = 0; step < std::min(run.steps, kSteps); ++step) {
    const StepLaunches launches = LaunchesOf(run, plan, order.Next(&cursor));
    Collect(launches.train, row_multiple, train);
    Collect(launches.mismatched, row_multiple, forward);
  }
  auto add = [&](BySize& sizes, PackedBatch batch) {
    sizes.insert_or_assign(LaunchRows(batch.tokens(), row_multiple), std::move(batch));
  };
  add(train, Largest(limits.train, vocabulary));
  if (limits.forward.tokens > 0) add(forward, Largest(limits.forward, vocabulary));
  auto reset = [&] {
    ops.Fill(session.lora().values, 0);
    session.ZeroGradients();
    session.optimizer().Reset();
  };
  reset();  // of what memory held before
  backend.BeginWarmUp();
  session.SetRehearsing(true);
  std::vector<float> log_probs;
  for (const auto& [rows, batch] : train) {
    session.ForwardBackward(batch, [](std::span<const float>, std::span<float> coefficients) {
      for (size_t i = 0; i < coefficients.size(); ++i) coefficients[i] = i % 2 == 0 ? 1e-2f : -1e-2f;
    });
  }
  for (const auto& [rows, batch] : forward) {
    log_probs.resize(batch.targets.size());
    for (const AdapterMode mode : {AdapterMode::kOn, AdapterMode::kOff}) session.LogProbs(batch, mode, log_probs);
  }
  session.SetRehearsing(false);
  session.OptimizerStep(0, 0);
  ops.Synchronize();
  backend.EndWarmUp();
  reset();
}

}  // namespace hone
