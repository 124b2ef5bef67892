#include <algorithm>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/gemm.h"

namespace hone {
namespace {

// Keys of a segment in the order of their positions: prefix, then its own.
struct KeySpan {
  int64_t row0;  // first row of k and v
  int64_t length;
  int64_t position;  // of its first key
  bool causal;
};

struct QueryBlock {
  int64_t first, rows;  // queries within the segment
};

RowsF32 At(RowsF32 rows, int64_t row, int64_t col) { return {rows.data + row * rows.pitch + col, rows.pitch}; }

double SegmentCost(const Segment& s) {
  return static_cast<double>(s.q_len) * (s.prefix_len + s.kv_len - 0.5 * s.q_len) + 64.0 * s.q_len;
}

// Tiles that the block of queries sees: f(tile, first row of k and v). tile.s is set, its contents not.
template <typename F>
void ForTiles(const Segment& s, const AttentionShape& shape, QueryBlock block, float* scores, F&& f) {
  const KeySpan spans[2] = {{s.prefix0, s.prefix_len, 0, false}, {s.kv0, s.kv_len, s.prefix_len, true}};
  const int64_t query_position = int64_t{s.prefix_len} + s.kv_len - s.q_len + block.first;  // of the block's row 0
  const int64_t last_position = query_position + block.rows - 1;
  const int64_t first_seen = shape.window > 0 ? std::max<int64_t>(0, query_position - shape.window + 1) : 0;
  for (const KeySpan& span : spans) {
    const int64_t begin = std::clamp<int64_t>(first_seen - span.position, 0, span.length);
    const int64_t end = span.causal ? std::min(span.length, last_position + 1 - span.position) : span.length;
    for (int64_t j = begin; j < end; j += kTileCols) {
      const int64_t position = span.position + j;
      ScoreTile tile{scores,      kTilePitch,  block.rows,   std::min(kTileCols, end - j), 0, 0, shape.window > 0,
                     span.causal, shape.scale, shape.softcap};
      tile.lo = query_position - shape.window + 1 - position;
      tile.hi = span.causal ? query_position + 1 - position : tile.cols;
      f(tile, span.row0 + j);
    }
  }
}

void ForwardBlock(const CpuKernels& kernels, const AttentionCall& call, const Segment& s, int64_t head,
                  QueryBlock block, float* scratch) {
  const int64_t d = call.shape.head_dim;
  const int64_t kv_col = head / (call.shape.heads / call.shape.kv_heads) * d;
  const RowsF32 q = At(call.q, s.q0 + block.first, head * d);
  const RowsF32 out = At(call.out, s.q0 + block.first, head * d);
  float* row_max = scratch + 2 * kTileRows * kTilePitch;
  float* row_sum = row_max + kTileRows;
  bool first = true;
  ForTiles(s, call.shape, block, scratch, [&](const ScoreTile& tile, int64_t row) {
    const RowsF32 k = At(call.k, row, kv_col), v = At(call.v, row, kv_col);
    Sgemm({false, true, tile.rows, tile.cols, d}, 1, q.data, q.pitch, k.data, k.pitch, 0, tile.s, tile.pitch);
    kernels.softmax_tile(tile, first, row_max, row_sum, out, d);
    Sgemm({false, false, tile.rows, d, tile.cols}, 1, tile.s, tile.pitch, v.data, v.pitch, first ? 0 : 1, out.data,
          out.pitch);
    first = false;
  });
  kernels.softmax_finish(block.rows, row_max, row_sum, out, d, At(call.lse, s.q0 + block.first, head));
}

void BackwardBlock(const CpuKernels& kernels, const AttentionCall& call, const AttentionGradients& g, const Segment& s,
                   int64_t head, QueryBlock block, float* scratch) {
  const int64_t d = call.shape.head_dim;
  const int64_t kv_col = head / (call.shape.heads / call.shape.kv_heads) * d;
  const int64_t row0 = s.q0 + block.first;
  const RowsF32 q = At(call.q, row0, head * d), d_out = At(g.d_out, row0, head * d), dq = At(g.dq, row0, head * d);
  const RowsF32 delta = At(g.delta, row0, head), lse = At(call.lse, row0, head);
  kernels.row_dots(d_out, At(call.out, row0, head * d), d, delta, 0, block.rows);
  float* dp = scratch + kTileRows * kTilePitch;
  ForTiles(s, call.shape, block, scratch, [&](const ScoreTile& tile, int64_t row) {
    const RowsF32 k = At(call.k, row, kv_col), v = At(call.v, row, kv_col);
    const RowsF32 dk = At(g.dk, row, kv_col), dv = At(g.dv, row, kv_col);
    const int64_t m = tile.rows, n = tile.cols, ld = tile.pitch;
    Sgemm({false, true, m, n, d}, 1, q.data, q.pitch, k.data, k.pitch, 0, tile.s, ld);
    Sgemm({false, true, m, n, d}, 1, d_out.data, d_out.pitch, v.data, v.pitch, 0, dp, ld);
    kernels.softmax_backward_tile(tile, dp, lse, delta);
    Sgemm({true, false, n, d, m}, 1, tile.s, ld, d_out.data, d_out.pitch, 1, dv.data, dv.pitch);
    Sgemm({true, false, n, d, m}, 1, dp, ld, q.data, q.pitch, 1, dk.data, dk.pitch);
    Sgemm({false, false, m, d, n}, 1, dp, ld, k.data, k.pitch, 1, dq.data, dq.pitch);
  });
}

template <typename F>
void ForQueryBlocks(const Segment& s, F&& f) {
  for (int64_t first = 0; first < s.q_len; first += kTileRows) {
    f(QueryBlock{first, std::min<int64_t>(kTileRows, s.q_len - first)});
  }
}

// Tasks in one fixed order, each with a cost; a part owns those whose middle lies in its share of the total.
class Share {
 public:
  Share(double total, int part, int parts)
      : begin_(total * part / parts), end_(total * (part + 1) / parts), last_(part + 1 == parts) {}
  bool Take(double cost) {
    const double middle = done_ + cost / 2;
    done_ += cost;
    return middle >= begin_ && (middle < end_ || last_);
  }

 private:
  double begin_, end_;
  bool last_;
  double done_ = 0;
};

struct KeyRange {
  int64_t begin, end;
};

KeyRange KeysOf(const Segment& s) {
  KeyRange range{s.kv0, int64_t{s.kv0} + s.kv_len};
  if (s.prefix_len > 0) {
    range.begin = std::min<int64_t>(range.begin, s.prefix0);
    range.end = std::max<int64_t>(range.end, int64_t{s.prefix0} + s.prefix_len);
  }
  return range;
}

// The end of the run of segments that starts at `begin` and shares no key or value row with any segment after it. Rows
// of dk and dv then belong to one task. Looks at every later segment: quadratic in a batch's documents, which are few.
size_t IndependentRun(std::span<const Segment> segments, size_t begin) {
  int64_t limit = KeysOf(segments[begin]).end;
  size_t end = begin + 1;
  for (size_t i = end; i < segments.size(); ++i) {
    const KeyRange keys = KeysOf(segments[i]);
    if (keys.begin < limit) {
      end = i + 1;
      for (size_t j = begin; j <= i; ++j) limit = std::max(limit, KeysOf(segments[j]).end);
    }
  }
  return end;
}

}  // namespace

void AttentionPart(const CpuKernels& kernels, const AttentionCall& call, int part, int parts, float* scratch) {
  double total = 0;
  for (const Segment& s : call.segments) total += SegmentCost(s) * static_cast<double>(call.shape.heads);
  Share share(total, part, parts);
  for (const Segment& s : call.segments) {
    if (s.q_len == 0) continue;
    // Later blocks of a segment see more keys; the split by equal cost per row is near enough within one head.
    for (int64_t head = 0; head < call.shape.heads; ++head) {
      ForQueryBlocks(s, [&](QueryBlock block) {
        if (share.Take(SegmentCost(s) * static_cast<double>(block.rows) / s.q_len)) {
          ForwardBlock(kernels, call, s, head, block, scratch);
        }
      });
    }
  }
}

void AttentionBackwardPart(const CpuKernels& kernels, const AttentionCall& call, const AttentionGradients& gradients,
                           int part, int parts, float* scratch) {
  const int64_t group = call.shape.heads / call.shape.kv_heads;
  double total = 0;
  for (const Segment& s : call.segments) total += SegmentCost(s) * static_cast<double>(call.shape.kv_heads);
  Share share(total, part, parts);
  for (size_t begin = 0; begin < call.segments.size();) {
    const size_t end = IndependentRun(call.segments, begin);
    double cost = 0;
    for (size_t i = begin; i < end; ++i) cost += SegmentCost(call.segments[i]);
    for (int64_t kv_head = 0; kv_head < call.shape.kv_heads; ++kv_head) {
      if (!share.Take(cost)) continue;
      for (size_t i = begin; i < end; ++i) {
        const Segment& s = call.segments[i];
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
          ForQueryBlocks(s,
                         [&](QueryBlock block) { BackwardBlock(kernels, call, gradients, s, head, block, scratch); });
        }
      }
    }
    begin = end;
  }
}

}  // namespace hone
