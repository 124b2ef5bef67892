// The softmax between attention's matrix products, tile by tile (online softmax, arXiv 1805.02867).
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vec.h"

namespace hone::isa::HONE_ISA {
namespace {

struct Range {
  int64_t begin, end;
};

// Which columns row i of the tile sees.
inline Range Seen(const ScoreTile& tile, int64_t i) {
  int64_t begin = tile.windowed ? tile.lo + i : 0;
  int64_t end = tile.causal ? tile.hi + i : tile.hi;
  begin = begin < 0 ? 0 : begin;
  end = end > tile.cols ? tile.cols : end;
  return {begin, end < begin ? begin : end};
}

inline VF Score(const ScoreTile& tile, VF raw) {
  const VF s = raw * tile.scale;
  return tile.softcap == 0 ? s : tile.softcap * Tanh(s / tile.softcap);
}

inline void Zero(float* p, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) p[c] = 0;
}

// Writes the scores over the raw products and returns the largest.
inline float ScoresAndMax(const ScoreTile& tile, float* row, Range seen) {
  VF best = Splat(-3.402823466e+38f);
  int64_t c = seen.begin;
  for (; c + kLanes <= seen.end; c += kLanes) {
    const VF s = Score(tile, Load(row + c));
    Store(row + c, s);
    best = Max(s, best);
  }
  if (c < seen.end) {
    const int64_t n = seen.end - c;
    const VF s = Score(tile, LoadPart(row + c, n));
    StorePart(row + c, s, n);
    for (int64_t i = 0; i < n; ++i) best[i] = s[i] > best[i] ? s[i] : best[i];
  }
  return MaxLane(best);
}

inline float ExpAndSum(float* row, Range seen, float top) {
  VF sum{};
  int64_t c = seen.begin;
  for (; c + kLanes <= seen.end; c += kLanes) {
    const VF p = Exp(Load(row + c) - top);
    Store(row + c, p);
    sum += p;
  }
  if (c < seen.end) {
    const int64_t n = seen.end - c;
    const VF p = Exp(LoadPart(row + c, n) - top);
    StorePart(row + c, p, n);
    for (int64_t i = 0; i < n; ++i) sum[i] += p[i];
  }
  return Sum(sum);
}

void SoftmaxTile(const ScoreTile& tile, bool first, float* row_max, float* row_sum, RowsF32 out, int64_t head_dim) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* row = tile.s + i * tile.pitch;
    const Range seen = Seen(tile, i);
    Zero(row, 0, seen.begin);
    Zero(row, seen.end, tile.cols);
    // A row that has seen nothing yet has sum 0 and, by convention, a maximum that is not read.
    const bool fresh = first || row_sum[i] == 0;
    if (seen.begin == seen.end) {
      if (first) row_sum[i] = row_max[i] = 0;
      continue;
    }
    const float tile_max = ScoresAndMax(tile, row, seen);
    const float top = fresh || tile_max > row_max[i] ? tile_max : row_max[i];
    const float sum = ExpAndSum(row, seen, top);
    if (fresh) {
      row_sum[i] = sum;
    } else {
      const float factor = Exp(Splat(row_max[i] - top))[0];
      row_sum[i] = row_sum[i] * factor + sum;
      float* o = out.data + i * out.pitch;
      for (int64_t c = 0; c < head_dim; ++c) o[c] *= factor;
    }
    row_max[i] = top;
  }
}

void SoftmaxFinish(int64_t rows, const float* row_max, const float* row_sum, RowsF32 out, int64_t head_dim,
                   RowsF32 lse) {
  for (int64_t i = 0; i < rows; ++i) {
    const float factor = 1.0f / row_sum[i];
    float* o = out.data + i * out.pitch;
    for (int64_t c = 0; c < head_dim; ++c) o[c] *= factor;
    lse.data[i * lse.pitch] = row_max[i] + __builtin_logf(row_sum[i]);
  }
}

void SoftmaxBackwardTile(const ScoreTile& tile, float* dp, RowsF32 lse, RowsF32 delta) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* p = tile.s + i * tile.pitch;
    float* ds = dp + i * tile.pitch;
    const Range seen = Seen(tile, i);
    Zero(p, 0, seen.begin);
    Zero(p, seen.end, tile.cols);
    Zero(ds, 0, seen.begin);
    Zero(ds, seen.end, tile.cols);
    const float row_lse = lse.data[i * lse.pitch], row_delta = delta.data[i * delta.pitch];
    const auto gradient = [&](VF raw, VF d, VF& probability) {
      const VF score = Score(tile, raw);
      probability = Exp(score - row_lse);
      VF g = probability * (d - row_delta) * tile.scale;
      if (tile.softcap != 0) {
        const VF ratio = score / tile.softcap;
        g *= 1.0f - ratio * ratio;
      }
      return g;
    };
    int64_t c = seen.begin;
    for (; c + kLanes <= seen.end; c += kLanes) {
      VF probability;
      Store(ds + c, gradient(Load(p + c), Load(ds + c), probability));
      Store(p + c, probability);
    }
    if (c < seen.end) {
      const int64_t n = seen.end - c;
      VF probability;
      StorePart(ds + c, gradient(LoadPart(p + c, n), LoadPart(ds + c, n), probability), n);
      StorePart(p + c, probability, n);
    }
  }
}

}  // namespace

void AddAttention(CpuKernels& kernels) {
  kernels.softmax_tile = SoftmaxTile;
  kernels.softmax_finish = SoftmaxFinish;
  kernels.softmax_backward_tile = SoftmaxBackwardTile;
}

}  // namespace hone::isa::HONE_ISA
