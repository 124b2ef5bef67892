// A model's shape with NF4 weights made of noise, at the speed of memory: for benches of the step, where no value
// matters but all must be ordinary numbers. The linears are stored as double-quantised NF4 (random codes, a scale near
// 0.05), so that nothing is quantised at load; embedding and head are bf16, norms are 1. Not here: `random:`, whose
// weights depend on their names alone and which the loader quantises (engine/io/random_model.cc).
#pragma once

#include <memory>

#include "engine/io/model_files.h"

namespace hone {

// `shape`: an opened model, whose configuration is taken over.
std::unique_ptr<ModelFiles> MakeNoiseModel(std::unique_ptr<ModelFiles> shape);

}  // namespace hone
