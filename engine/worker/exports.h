// What an export must show before it is called done: its logits against those of base + adapter, on texts of the
// model's own tokenizer. Writing the files is engine/io's.
#pragma once

#include <vector>

#include "engine/io/model_files.h"

namespace hone {

// A few short token sequences, the same for the same model.
std::vector<std::vector<int32_t>> ProbeSequences(const ModelFiles& files);

}  // namespace hone
