#include "engine/model/batch.h"

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

}  // namespace hone
