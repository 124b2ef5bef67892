#include "engine/model/launch.h"

#include <algorithm>
#include <vector>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr int64_t kLogitMultiple = 64;
constexpr int64_t kAlignElements = kArenaAlignment / sizeof(int32_t);  // each list begins like an allocation

int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// The lists of a batch one behind the other, for one upload.
struct Lists {
  std::vector<int32_t> host;
  int64_t Append(const int32_t* values, int64_t count, int64_t padded) {
    const auto begin = static_cast<int64_t>(host.size());
    host.insert(host.end(), values, values + count);
    host.resize(begin + RoundUp(padded, kAlignElements), 0);
    return begin;
  }
};

}  // namespace

int64_t LaunchRows(int64_t tokens, int64_t row_multiple) { return RoundUp(tokens, std::max<int64_t>(1, row_multiple)); }

int64_t LogitMultiple(int64_t row_multiple) { return row_multiple > 1 ? kLogitMultiple : 1; }

Launch MakeLaunch(Ops& ops, const PackedBatch& batch, const BatchLimits& limits, int64_t row_multiple, Tensor inv_freq,
                  Arena& arena) {
  Launch launch;
  launch.tokens = batch.tokens();
  launch.rows = LaunchRows(launch.tokens, row_multiple);
  launch.capacity = LaunchRows(limits.tokens, row_multiple);
  const int64_t backward_tokens = limits.backward_tokens > 0 ? limits.backward_tokens : limits.tokens;
  launch.backward_capacity = std::min(launch.capacity, LaunchRows(backward_tokens, row_multiple));
  launch.logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  launch.gradient_logits = launch.logit_rows - batch.tail_logits;
  launch.logit_capacity = RoundUp(limits.logit_rows, LogitMultiple(row_multiple));
  const auto segments = static_cast<int64_t>(batch.segments.size());
  HONE_CHECK(launch.tokens > 0 && launch.tokens <= limits.tokens, launch.tokens, " tokens for ", limits.tokens);
  HONE_CHECK(launch.logit_rows <= limits.logit_rows, launch.logit_rows, " logit rows for ", limits.logit_rows);
  HONE_CHECK(segments <= limits.segments, segments, " segments for ", limits.segments);
  HONE_CHECK(batch.tail_rows >= 0 && batch.tail_rows < launch.tokens && launch.gradient_logits >= 0);

  Lists lists;
  const int64_t ids = lists.Append(batch.ids.data(), launch.tokens, launch.rows);
  const int64_t positions = lists.Append(batch.positions.data(), launch.tokens, launch.rows);
  const int64_t segment_list =
      lists.Append(reinterpret_cast<const int32_t*>(batch.segments.data()), 6 * segments, 6 * segments);
  const int64_t row_ids = lists.Append(batch.logit_rows.data(), launch.logit_rows, launch.logit_capacity);
  const int64_t targets = lists.Append(batch.targets.data(), launch.logit_rows, launch.logit_capacity);
  const int64_t most = 2 * RoundUp(launch.capacity, kAlignElements) + RoundUp(6 * limits.segments, kAlignElements) +
                       2 * RoundUp(launch.logit_capacity, kAlignElements);
  Tensor device = arena.AllocateTensor(DType::kI32, 1, most);
  device.cols = device.pitch = static_cast<int64_t>(lists.host.size());
  ops.Upload(lists.host.data(), device);
  auto list = [&](int64_t begin, int64_t count) {
    Tensor view = device.Cols(begin, count);
    view.pitch = count;
    return view;
  };
  launch.ids = list(ids, launch.rows);
  launch.row_ids = list(row_ids, launch.logit_capacity);
  launch.targets = list(targets, launch.logit_capacity);
  launch.segments.host = batch.segments;
  launch.segments.device = list(segment_list, 6 * segments);
  launch.segments.device.rows = segments;
  launch.segments.device.cols = launch.segments.device.pitch = 6;
  launch.cos = launch.Buffer(arena, DType::kF32, inv_freq.cols);
  launch.sin = launch.Buffer(arena, DType::kF32, inv_freq.cols);
  ops.RopeTable(list(positions, launch.rows), inv_freq, 1, launch.cos, launch.sin);
  return launch;
}

Launch BackwardPart(const Launch& launch, const PackedBatch& batch, int64_t row_multiple) {
  Launch part = launch;
  part.capacity = launch.backward_capacity;
  HONE_CHECK(launch.tokens - batch.tail_rows <= part.capacity, launch.tokens - batch.tail_rows, " rows for ",
             part.capacity);
  if (batch.tail_rows == 0) return part;
  part.tokens = launch.tokens - batch.tail_rows;
  part.rows = std::min(launch.rows, LaunchRows(part.tokens, row_multiple));
  part.ids = launch.ids.Cols(0, part.rows);
  part.cos = launch.cos.Rows(0, part.rows);
  part.sin = launch.sin.Rows(0, part.rows);
  size_t count = 0;
  while (count < batch.segments.size() && batch.segments[count].q0 < part.tokens) ++count;
  for (size_t i = 0; i < batch.segments.size(); ++i) {
    const Segment& s = batch.segments[i];
    const int64_t end = std::max(
        {int64_t{s.q0} + s.q_len, int64_t{s.kv0} + s.kv_len, s.prefix_len > 0 ? int64_t{s.prefix0} + s.prefix_len : 0});
    HONE_CHECK(i < count ? end <= part.tokens : s.q0 >= part.tokens, "segment ", i, " mixes forward-only rows in");
  }
  part.segments.host = part.segments.host.first(count);
  part.segments.device = part.segments.device.Rows(0, static_cast<int64_t>(count));
  return part;
}

}  // namespace hone
