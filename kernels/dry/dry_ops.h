// DryOps: the back end that computes nothing and counts. The plan is the real step run on it, with dry arenas.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace hone {

struct DryCounts {
  double gemm_flops = 0;       // 2 m n k
  double attention_flops = 0;  // 4 D per visible (query, key, head) forward, 10 D backward
  double bytes = 0;            // element-wise, decode, copies: bytes read plus written
  double transfer_bytes = 0;   // between device and pinned host memory
  int64_t launches = 0;
};

class DryOps : public Ops {
 public:
  virtual const DryCounts& counts() const = 0;
  virtual void ResetCounts() = 0;
};

// Imitates a back end's choices (activation dtype, adapter columns). Download gives zeros.
std::unique_ptr<DryOps> MakeDryOps(BackendKind imitated, DType activation_dtype);

}  // namespace hone
