// The decoder's end: final norm, logits by chunks of rows, log-probabilities and their gradients. All logits never
// exist together. Not here: what the log-probabilities are for (objectives give one coefficient per token).
#pragma once

#include <span>

#include "engine/model/launch.h"
#include "engine/model/model.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

namespace hone {

class Head {
 public:
  Head(Ops& ops, const Model& model, int64_t chunk_rows, int64_t row_multiple)
      : ops_(ops), model_(model), chunk_rows_(chunk_rows), multiple_(LogitMultiple(row_multiple)) {}

  struct State {
    Tensor log_probs;  // fp32 [1, m]
    Tensor rstd;       // fp32 [m, 1]    of the rows that have a gradient
    Tensor d_normed;   // act [m, H]     their unit gradient with respect to the normed row
  };

  // Log-probabilities of the launch's logit rows of x act [T, H]; with `gradient` also the unit gradients of the first
  // launch.gradient_logits of them. State lies in `scratch` beyond this call.
  State Forward(const Launch& launch, Tensor x, bool gradient, Arena& scratch);
  // dx act [T', H] <- sum over logit rows of factors[i] * d log_prob[i] / dx, zero in all other rows. factors: one per
  // row that has a gradient.
  void Backward(const Launch& launch, Tensor x, const State& state, std::span<const float> factors, Tensor dx,
                Arena& scratch);

  // logits fp32 [m, V] before the transform, of the launch's logit rows.
  Tensor Logits(const Launch& launch, Tensor x, Arena& scratch);

  const LogitTransform& transform() const { return transform_; }

 private:
  Tensor Weight(Arena& scratch);  // act [V, H]
  int64_t hidden_size() const { return model_.config().hidden_size; }

  Ops& ops_;
  const Model& model_;
  int64_t chunk_rows_;
  int64_t multiple_;
  LogitTransform transform_;
};

}  // namespace hone
