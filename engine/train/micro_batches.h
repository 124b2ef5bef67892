// From examples of a semantic batch to what the decoder launches: packed rows and the logit rows of each example.
// Training batches hold whole documents; forward-only batches compute a prompt that several completions share once.
#pragma once

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

struct LaunchBatch {
  PackedBatch packed;
  std::vector<LogitSlice> slices;
};

std::vector<LaunchBatch> MakeTrainBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                          PackingMode packing);
// packing false: one example a launch (its prompt not shared).
std::vector<LaunchBatch> MakeForwardBatches(std::span<const Example* const> examples, int32_t micro_batch_tokens,
                                            bool packing);

// The smallest limits that hold both.
BatchLimits Cover(const BatchLimits& limits, const PackedBatch& batch);

}  // namespace hone
