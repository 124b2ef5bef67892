// DryOps: the back end that computes nothing and counts. The plan is the real step run on it, with dry arenas.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace hone {

// What a product takes at best, so that products too small to fill a card, or bound by reading their operands, and
// attention over short documents are told apart. Zero rates: they cost nothing.
struct DryRates {
  double gemm_flops = 0;  // per second, of a large product
  double copy_bytes = 0;  // per second, read plus written
  // Tiles of 128 x 128 outputs at which a product runs at half of gemm_flops: a card's processors work on many at once.
  double half_rate_tiles = 0;
  double attention_forward_flops = 0;  // per second, of long documents
  double attention_backward_flops = 0;
  double half_rate_length = 0;  // tokens of a document over which attention runs at half of these
};

struct DryCounts {
  double gemm_flops = 0;                // 2 m n k
  double gemm_seconds = 0;              // at DryRates
  double attention_flops = 0;           // 4 D per visible (query, key, head) forward, 10 D backward
  double attention_backward_flops = 0;  // of these
  double attention_seconds = 0;         // at DryRates
  double bytes = 0;                     // element-wise, decode, copies: bytes read plus written
  double decode_bytes = 0;              // of these: stored weights to what products read
  double head_bytes = 0;                // of these: log-probabilities and their unit gradients from logits
  double optimizer_bytes = 0;           // of these: norms and updates
  double transfer_bytes = 0;            // between device and pinned host memory
  int64_t launches = 0;
};

class DryOps : public Ops {
 public:
  virtual const DryCounts& counts() const = 0;
  virtual void ResetCounts() = 0;
};

// Imitates a back end's choices (activation dtype, adapter columns). Download gives zeros.
std::unique_ptr<DryOps> MakeDryOps(BackendKind imitated, DType activation_dtype, const DryRates& rates = {});

}  // namespace hone
