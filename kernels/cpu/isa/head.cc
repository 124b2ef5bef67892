// log p(target) of a row of logits, and its gradient. Three passes over a row that stays in the second-level cache.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vec.h"

namespace hone::isa::HONE_ISA {
namespace {

constexpr float kLowest = -3.402823466e+38f;

struct Transform {
  float scale, softcap;
  VF operator()(VF raw) const {
    const VF z = raw * scale;
    return softcap == 0 ? z : softcap * Tanh(z / softcap);
  }
};

template <bool kPlain>  // plain: no scale, no softcap
void Row(float* row, int64_t n, int32_t target, const Transform& transform, bool unit_gradient, float* log_prob) {
  const auto value = [&](VF raw) { return kPlain ? raw : transform(raw); };
  const int64_t whole = n / kLanes * kLanes, rest = n - whole;
  VF best = Splat(kLowest), best2 = best;
  int64_t c = 0;
  for (; c + 2 * kLanes <= n; c += 2 * kLanes) {
    best = Max(value(Load(row + c)), best);
    best2 = Max(value(Load(row + c + kLanes)), best2);
  }
  if (c < whole) best = Max(value(Load(row + c)), best);
  if (rest > 0) {
    const VF v = value(LoadPart(row + whole, rest));
    for (int64_t i = 0; i < rest; ++i) best[i] = v[i] > best[i] ? v[i] : best[i];
  }
  const float top = MaxLane(Max(best, best2));
  const float chosen = value(Splat(row[target]))[0];

  // The exponentials are kept in place when the gradient follows and the raw logit is not needed again. They are added
  // in runs: a lane that took a whole vocabulary one by one would lose digits.
  constexpr int64_t kRun = 64 * kLanes;
  VF sum{};
  for (c = 0; c < whole;) {
    const int64_t end = c + kRun < whole ? c + kRun : whole;
    VF run{};
    for (; c < end; c += kLanes) {
      const VF e = Exp(value(Load(row + c)) - top);
      if (kPlain && unit_gradient) Store(row + c, e);
      run += e;
    }
    sum += run;
  }
  if (rest > 0) {
    const VF e = Exp(value(LoadPart(row + whole, rest)) - top);
    if (kPlain && unit_gradient) StorePart(row + whole, e, rest);
    for (int64_t i = 0; i < rest; ++i) sum[i] += e[i];
  }
  const float total = Sum(sum);
  *log_prob = chosen - top - __builtin_logf(total);
  if (!unit_gradient) return;

  const float factor = -1.0f / total;
  if (kPlain) {
    for (c = 0; c < n; ++c) row[c] *= factor;
    row[target] += 1.0f;
    return;
  }
  const auto gradient = [&](VF raw, VF onehot) {
    const VF z = transform(raw);
    const VF d = onehot + Exp(z - top) * factor;
    const VF ratio = transform.softcap == 0 ? VF{} : z / transform.softcap;
    return d * (transform.scale * (1.0f - ratio * ratio));
  };
  VF at_target{};
  at_target[0] = 1.0f;
  const float target_gradient = gradient(Splat(row[target]), at_target)[0];
  for (c = 0; c < whole; c += kLanes) Store(row + c, gradient(Load(row + c), VF{}));
  if (rest > 0) StorePart(row + whole, gradient(LoadPart(row + whole, rest), VF{}), rest);
  row[target] = target_gradient;
}

void LogProb(RowsF32 logits, int64_t vocabulary, const int32_t* targets, float scale, float softcap, bool unit_gradient,
             float* log_probs, int64_t begin, int64_t end) {
  const Transform transform{scale, softcap};
  for (int64_t r = begin; r < end; ++r) {
    float* row = logits.data + r * logits.pitch;
    if (scale == 1 && softcap == 0) {
      Row<true>(row, vocabulary, targets[r], transform, unit_gradient, log_probs + r);
    } else {
      Row<false>(row, vocabulary, targets[r], transform, unit_gradient, log_probs + r);
    }
  }
}

}  // namespace

void AddHead(CpuKernels& kernels) { kernels.log_prob = LogProb; }

}  // namespace hone::isa::HONE_ISA
