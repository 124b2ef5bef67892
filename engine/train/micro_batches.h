// From examples of a semantic batch to what the decoder launches: packed rows and the logit rows of each example. What
// several examples begin with (a system prompt, a question) is computed once a launch: its rows are the prefix of their
// segments, and in the backward pass their gradients add up there, so nothing changes but the order of additions.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/data/examples.h"
#include "engine/data/packing.h"
#include "engine/model/batch.h"

namespace hone {

// The trained tokens of one example: logit rows [first, first + count) of its batch, in token order.
struct LogitSlice {
  uint32_t example = 0;  // index into the given examples
  int32_t first = 0, count = 0;
};

// Of a launch's log-probabilities, in double.
double SumOf(const LogitSlice& slice, std::span<const float> log_probs);

struct LaunchBatch {
  PackedBatch packed;
  std::vector<LogitSlice> slices;
  std::vector<LogitSlice> mismatched;  // forward-only, of a coupled step: behind all slices
  int64_t example_tokens =
      0;  // of the examples, each counted whole; more than packed.tokens() where a beginning is shared
};

std::vector<LaunchBatch> MakeTrainBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                          PackingMode packing);
// A whole preference step in one launch, if it fits: the examples' rows with a backward pass, and behind them,
// forward-only, mismatched[i] for each example: its completion alone where the example has its prompt (KTO's KL pairs
// do). So their log-probabilities need no pass of their own, and are known when the coefficients are asked for.
std::optional<LaunchBatch> MakeCoupledBatch(std::span<const Example* const> examples,
                                            std::span<const Example* const> mismatched, int32_t micro_batch_tokens);
// packing false: one example a launch (its prompt not shared).
std::vector<LaunchBatch> MakeForwardBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                            bool packing);

// The smallest limits that hold both.
BatchLimits Cover(const BatchLimits& limits, const PackedBatch& batch);

}  // namespace hone
