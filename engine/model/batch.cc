#include "engine/model/batch.h"

#include <algorithm>
#include <vector>

#include "proto/base/status.h"

namespace hone {

int32_t AppendDocument(PackedBatch& batch, const int32_t* ids, int64_t count) {
  return AppendCompletion(batch, ids, count, 0, 0);
}

int32_t AppendCompletion(PackedBatch& batch, const int32_t* ids, int64_t count, int32_t prefix0, int32_t prefix_len) {
  HONE_CHECK(count > 0);
  const auto row = static_cast<int32_t>(batch.tokens());
  const auto length = static_cast<int32_t>(count);
  batch.ids.insert(batch.ids.end(), ids, ids + count);
  for (int32_t i = 0; i < length; ++i) batch.positions.push_back(prefix_len + i);
  batch.segments.push_back({row, length, row, length, prefix0, prefix_len});
  return row;
}

PackedBatch LargestBatch(const BatchLimits& limits) {
  PackedBatch batch;
  const std::vector<int32_t> ids(limits.tokens, 0);
  const int64_t backward = limits.backward_tokens > 0 ? std::min(limits.backward_tokens, limits.tokens) : limits.tokens;
  AppendDocument(batch, ids.data(), backward);
  if (backward < limits.tokens) AppendDocument(batch, ids.data(), limits.tokens - backward);
  batch.tail_rows = limits.tokens - backward;
  for (int64_t i = 0; i < limits.logit_rows; ++i) {
    batch.logit_rows.push_back(static_cast<int32_t>(std::min(i, limits.tokens - 1)));
    batch.targets.push_back(0);
  }
  batch.tail_logits = std::max<int64_t>(0, limits.logit_rows - backward);
  return batch;
}

}  // namespace hone
