// Matrix products by cuBLASLt: row-major views, fp32 sums, no TF32, no split of k, so that a row of the result depends
// on its own row and the other operand alone. During a warm-up every new shape times the library's candidates that keep
// to this and remembers the fastest, also on disk (tuning_cache.h); outside it a new shape takes what was found for the
// nearest number of rows, or the library's first choice. Not here: shape checks, and the shapes it declines.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/tuning_cache.h"
#include "kernels/ops.h"

namespace hone::cuda {

class Gemm {
 public:
  // c <- alpha op(a) op(b) + beta addend; addend is c itself or, elsewhere in memory, of its shape and dtype.
  struct Product {
    Tensor a, b, c, addend;
    Transpose ta = Transpose::kNo, tb = Transpose::kNo;
    float alpha = 1, beta = 0;
  };
  struct Options {
    std::string cache_path;  // empty: nothing is kept
    std::string machine;     // card and driver, one line; the library's version is added
  };
  struct Tuning {
    int timed_shapes = 0, cached_shapes = 0;
    double seconds = 0;
  };

  // `workspace`: device memory of `workspace_bytes`, aligned to 256, alive as long as this.
  static absl::StatusOr<std::unique_ptr<Gemm>> Open(void* workspace, uint64_t workspace_bytes, const Options& options);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // Between the two, Run may do a product several times over and waits for it.
  void BeginWarmUp() { warming_up_ = true; }
  void EndWarmUp();  // writes the cache; one that cannot be written costs the next start its timing, no more

  // False: cuBLASLt has no algorithm for this shape, pitch or alignment, and nothing was enqueued. Throws
  // InvariantError if it fails otherwise.
  bool Run(const Product& product, cudaStream_t stream);

  const Tuning& tuning() const { return tuning_; }
  // One line a shape: its sizes, the algorithm in use and what it took.
  std::string DescribeTuning() const;

 private:
  struct Candidate {
    cublasLtMatmulAlgo_t algorithm{};
    uint64_t workspace_bytes = 0;
    double microseconds = 0;
  };
  struct Plan {
    bool supported = false, settled = false;  // settled: timed, or found in the cache
    cublasLtMatmulDescOpaque_t operation{};
    cublasLtMatrixLayoutOpaque_t a{}, b{}, c{}, d{};
    Candidate chosen;
  };

  Gemm(cublasLtHandle_t handle, void* workspace, uint64_t workspace_bytes, const Options& options);
  Plan MakePlan(const TuningKey& key, const Product& p, cudaStream_t stream);
  static void Describe(Plan& plan, const Product& p);
  std::vector<Candidate> Candidates(Plan& plan, const Product& p) const;
  void AddFromLargeShapes(std::vector<Candidate>& candidates, Plan& plan, const Product& p);
  bool Fits(Plan& plan, const cublasLtMatmulAlgo_t& algorithm, Candidate& candidate) const;
  bool Shortlist(std::vector<Candidate>& candidates, Plan& plan, const TuningKey& key) const;
  bool TakeTuned(Plan& plan, const TunedAlgorithm& tuned) const;
  bool TakeNearest(Plan& plan, const TuningKey& key) const;
  cublasStatus_t Enqueue(Plan& plan, const Candidate& candidate, const Product& p, cudaStream_t stream) const;
  Candidate Fastest(Plan& plan, std::vector<Candidate> candidates, const Product& p, cudaStream_t stream);
  double Time(Plan& plan, const Candidate& candidate, const Product& p, int repeats, cudaStream_t stream) const;

  cublasLtHandle_t handle_;
  void* workspace_;
  uint64_t workspace_bytes_;
  std::string cache_path_, machine_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  bool warming_up_ = false, unsaved_ = false;
  std::map<TuningKey, Plan> plans_;
  TuningTable tuned_;
  std::map<std::array<int, 4>, std::vector<Candidate>> large_shapes_;  // their candidates, by transposes and dtypes
  Tuning tuning_;
};

}  // namespace hone::cuda
