// Matrix products by cuBLASLt: row-major views, fp32 sums, no TF32, no split of k, so that a row of the result depends
// on its own row and the other operand alone. The algorithm is cuBLASLt's first choice that keeps to this, found once
// per shape and remembered (timing the candidates is left to a later change). Not here: shape checks, and the shapes it
// declines.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace hone::cuda {

class Gemm {
 public:
  // `workspace`: device memory of `workspace_bytes`, aligned to 256, alive as long as this.
  static absl::StatusOr<std::unique_ptr<Gemm>> Open(void* workspace, uint64_t workspace_bytes);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // False: cuBLASLt has no algorithm for this shape, pitch or alignment, and nothing was enqueued. Throws
  // InvariantError if it fails otherwise.
  bool Run(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta, cudaStream_t stream);

 private:
  using Key = std::array<int64_t, 14>;
  struct Plan {
    bool supported = false;
    cublasLtMatmulDescOpaque_t operation{};
    cublasLtMatrixLayoutOpaque_t a{}, b{}, c{};
    cublasLtMatmulAlgo_t algorithm{};
    uint64_t workspace_bytes = 0;
  };

  Gemm(cublasLtHandle_t handle, void* workspace, uint64_t workspace_bytes)
      : handle_(handle), workspace_(workspace), workspace_bytes_(workspace_bytes) {}
  Plan MakePlan(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) const;

  cublasLtHandle_t handle_;
  void* workspace_;
  uint64_t workspace_bytes_;
  std::map<Key, Plan> plans_;
};

}  // namespace hone::cuda
