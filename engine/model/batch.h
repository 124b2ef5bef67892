// What one launch of the decoder works on: documents packed row after row, no padding. Made by the data room's packer
// and by generation; limits are what a plan sized the arenas for.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace hone {

// All counts are upper bounds. Buffers are laid out for the limits and used in part, so that a plan made at the limits
// is exact.
struct BatchLimits {
  int64_t tokens = 0;      // packed rows
  int64_t logit_rows = 0;  // rows whose next token is asked for
  int64_t segments = 0;
  int64_t backward_tokens = 0;  // rows of a launch that are not forward-only (PackedBatch::tail_rows); 0: as tokens
};

struct PackedBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<Segment> segments;
  // For each wanted log-probability: the packed row that predicts, and the token predicted. Rows ascend within a
  // document; forward-only ones may name one row several times (completions of a shared prompt).
  std::vector<int32_t> logit_rows;
  std::vector<int32_t> targets;
  // The last rows, and the last wanted log-probabilities, that are forward-only where the launch has a backward pass
  // (KTO's mismatched completions behind their prompts). Their segments come last, and no other row looks at them. What
  // is forward-only may name a row again.
  int64_t tail_rows = 0;
  int64_t tail_logits = 0;

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

// Appends one document on its own positions 0, 1, ...; returns its first row.
int32_t AppendDocument(PackedBatch& batch, const int32_t* ids, int64_t count);
// One as large as `limits`, of token 0; every logit row that is not forward-only is a row of its own where there are as
// many.
PackedBatch LargestBatch(const BatchLimits& limits);
// Appends a completion that sees the rows [prefix0, prefix0 + prefix_len) before its own.
int32_t AppendCompletion(PackedBatch& batch, const int32_t* ids, int64_t count, int32_t prefix0, int32_t prefix_len);

}  // namespace hone
