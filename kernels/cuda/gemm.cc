#include "kernels/cuda/gemm.h"

#include "proto/base/status.h"

namespace hone::cuda {
namespace {

constexpr int kCandidates = 16;

void Require(cublasStatus_t status, const char* what) {
  HONE_CHECK(status == CUBLAS_STATUS_SUCCESS, "Matmul: ", what, ": ", cublasLtGetStatusString(status));
}

cudaDataType_t TypeOf(DType dtype) { return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

// The largest power of two, at most 256, that every row of t starts on: what an algorithm may assume.
uint32_t AlignmentOf(Tensor t) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(t.data) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// A single row may carry any pitch, also one below its width; cuBLASLt insists.
int64_t PitchOf(Tensor t) { return t.rows <= 1 && t.pitch < t.cols ? t.cols : t.pitch; }

// A row-major [rows, cols] matrix is the column-major [cols, rows] one with the same pitch.
void InitLayout(cublasLtMatrixLayoutOpaque_t& layout, Tensor t) {
  Require(cublasLtMatrixLayoutInit(&layout, TypeOf(t.dtype), static_cast<uint64_t>(t.cols),
                                   static_cast<uint64_t>(t.rows), PitchOf(t)),
          "layout");
}

template <typename T>
T Config(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  size_t written = 0;
  Require(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value), &written), "algorithm");
  return value;
}

bool SumsInOnePiece(const cublasLtMatmulAlgo_t& algorithm) {
  return Config<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1 &&
         Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) == CUBLASLT_REDUCTION_SCHEME_NONE;
}

class Preference {
 public:
  Preference() { Require(cublasLtMatmulPreferenceCreate(&preference_), "preference"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  template <typename T>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    Require(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)), "preference");
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Open(void* workspace, uint64_t workspace_bytes) {
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return FailedPrecondition("cuBLASLt does not start: ", cublasLtGetStatusString(status),
                              "; check that the driver is 580 or newer and that the card has free memory");
  }
  return std::unique_ptr<Gemm>(new Gemm(handle, workspace, workspace_bytes));
}

Gemm::~Gemm() { cublasLtDestroy(handle_); }

Gemm::Plan Gemm::MakePlan(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) const {
  Plan plan;
  Require(cublasLtMatmulDescInit(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  // c^T = op(b)^T op(a)^T in column-major terms: the operands change places and keep their transposition.
  const cublasOperation_t op_b = tb == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_a = ta == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  Require(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof(op_b)),
          "transpose");
  Require(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof(op_a)),
          "transpose");
  InitLayout(plan.a, b);
  InitLayout(plan.b, a);
  InitLayout(plan.c, c);

  Preference preference;
  preference.Set<uint64_t>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_NONE);
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(b));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(a));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(c));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(c));
  cublasLtMatmulHeuristicResult_t results[kCandidates];
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, &plan.operation, &plan.a, &plan.b, &plan.c,
                                                               &plan.c, preference.get(), kCandidates, results, &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return plan;
  Require(status, "heuristic");
  for (int i = 0; i < found; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS || !SumsInOnePiece(results[i].algo)) continue;
    plan.supported = true;
    plan.algorithm = results[i].algo;
    plan.workspace_bytes = results[i].workspaceSize;
    break;
  }
  return plan;
}

bool Gemm::Run(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta, cudaStream_t stream) {
  const Key key = {a.rows,
                   a.cols,
                   b.rows,
                   b.cols,
                   PitchOf(a),
                   PitchOf(b),
                   PitchOf(c),
                   ta == Transpose::kYes,
                   tb == Transpose::kYes,
                   static_cast<int64_t>(a.dtype),
                   static_cast<int64_t>(c.dtype),
                   AlignmentOf(a),
                   AlignmentOf(b),
                   AlignmentOf(c)};
  auto found = plans_.find(key);
  if (found == plans_.end()) found = plans_.emplace(key, MakePlan(a, ta, b, tb, c)).first;
  Plan& plan = found->second;
  if (!plan.supported) return false;
  Require(cublasLtMatmul(handle_, &plan.operation, &alpha, b.data, &plan.a, a.data, &plan.b, &beta, c.data, &plan.c,
                         c.data, &plan.c, &plan.algorithm, workspace_, plan.workspace_bytes, stream),
          "launch");
  return true;
}

}  // namespace hone::cuda
