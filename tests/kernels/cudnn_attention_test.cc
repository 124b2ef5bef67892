// Attention through cuDNN on a card that has it: against the plain kernel, bit-equality over packings and cuts, memory,
// start-up and speed. A plain program, because it must run on bare GPU machines. Exit 77 where cuDNN is not offered.
#include "kernels/cuda/cudnn_attention.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cudnn_budget.h"
#include "kernels/cuda/attention.h"
#include "proto/base/status.h"

#if __has_include(<cudnn_graph.h>)
#include <cudnn_graph.h>
namespace {
namespace c = hone::cuda::cudnn;
// Ours beside NVIDIA's.
constexpr int kConstants[][2] = {
    {c::kFloat, CUDNN_DATA_FLOAT}, {c::kInt32, CUDNN_DATA_INT32}, {c::kBFloat16, CUDNN_DATA_BFLOAT16},
    {c::kInt64, CUDNN_DATA_INT64}, {c::kBoolean, CUDNN_DATA_BOOLEAN}, {c::kTypeHandle, CUDNN_TYPE_HANDLE},
    {c::kTypeDataType, CUDNN_TYPE_DATA_TYPE}, {c::kTypeBoolean, CUDNN_TYPE_BOOLEAN},
    {c::kTypeInt64, CUDNN_TYPE_INT64}, {c::kTypeFloat, CUDNN_TYPE_FLOAT}, {c::kTypeVoidPointer, CUDNN_TYPE_VOID_PTR},
    {c::kTypeHeuristicMode, CUDNN_TYPE_HEUR_MODE}, {c::kTypeNumericalNote, CUDNN_TYPE_NUMERICAL_NOTE},
    {c::kTypePointwiseMode, CUDNN_TYPE_POINTWISE_MODE}, {c::kTypeDescriptor, CUDNN_TYPE_BACKEND_DESCRIPTOR},
    {c::kTypeReductionOperator, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE}, {c::kTypeBehaviorNote, CUDNN_TYPE_BEHAVIOR_NOTE}, {c::kTypeChar, CUDNN_TYPE_CHAR},
    {c::kPlanJson, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION},
    {c::kPointwise, CUDNN_BACKEND_POINTWISE_DESCRIPTOR}, {c::kEngine, CUDNN_BACKEND_ENGINE_DESCRIPTOR},
    {c::kEngineConfig, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR},
    {c::kEngineHeuristic, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR},
    {c::kExecutionPlan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR},
    {c::kOperationPointwise, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR},
    {c::kOperationGraph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR},
    {c::kVariantPack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR}, {c::kTensor, CUDNN_BACKEND_TENSOR_DESCRIPTOR},
    {c::kMatmul, CUDNN_BACKEND_MATMUL_DESCRIPTOR}, {c::kOperationMatmul, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR},
    {c::kReduction, CUDNN_BACKEND_REDUCTION_DESCRIPTOR},
    {c::kOperationReduction, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR},
    {c::kOperationReshape, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR},
    {c::kPointwiseMode, CUDNN_ATTR_POINTWISE_MODE}, {c::kPointwisePrecision, CUDNN_ATTR_POINTWISE_MATH_PREC},
    {c::kPointwiseAxis, CUDNN_ATTR_POINTWISE_AXIS}, {c::kHeuristicMode, CUDNN_ATTR_ENGINEHEUR_MODE},
    {c::kHeuristicGraph, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH},
    {c::kHeuristicResults, CUDNN_ATTR_ENGINEHEUR_RESULTS}, {c::kConfigEngine, CUDNN_ATTR_ENGINECFG_ENGINE},
    {c::kPlanHandle, CUDNN_ATTR_EXECUTION_PLAN_HANDLE}, {c::kPlanConfig, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG},
    {c::kPlanWorkspaceSize, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE},
    {c::kOperationPointwiseDescriptor, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR},
    {c::kOperationPointwiseX, CUDNN_ATTR_OPERATION_POINTWISE_XDESC},
    {c::kOperationPointwiseB, CUDNN_ATTR_OPERATION_POINTWISE_BDESC},
    {c::kOperationPointwiseY, CUDNN_ATTR_OPERATION_POINTWISE_YDESC},
    {c::kOperationPointwiseT, CUDNN_ATTR_OPERATION_POINTWISE_TDESC},
    {c::kGraphHandle, CUDNN_ATTR_OPERATIONGRAPH_HANDLE}, {c::kGraphOperations, CUDNN_ATTR_OPERATIONGRAPH_OPS},
    {c::kTensorAlignment, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT}, {c::kTensorDataType, CUDNN_ATTR_TENSOR_DATA_TYPE},
    {c::kTensorDimensions, CUDNN_ATTR_TENSOR_DIMENSIONS}, {c::kTensorStrides, CUDNN_ATTR_TENSOR_STRIDES},
    {c::kTensorUniqueId, CUDNN_ATTR_TENSOR_UNIQUE_ID}, {c::kTensorIsVirtual, CUDNN_ATTR_TENSOR_IS_VIRTUAL},
    {c::kTensorIsByValue, CUDNN_ATTR_TENSOR_IS_BY_VALUE},
    {c::kTensorRaggedOffset, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC},
    {c::kPackUniqueIds, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS},
    {c::kPackPointers, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS}, {c::kPackWorkspace, CUDNN_ATTR_VARIANT_PACK_WORKSPACE},
    {c::kEngineIndex, CUDNN_ATTR_ENGINE_GLOBAL_INDEX}, {c::kEngineNumericalNote, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE},
    {c::kEngineBehaviorNote, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE}, {c::kMatmulPrecision, CUDNN_ATTR_MATMUL_COMP_TYPE},
    {c::kOperationMatmulA, CUDNN_ATTR_OPERATION_MATMUL_ADESC},
    {c::kOperationMatmulB, CUDNN_ATTR_OPERATION_MATMUL_BDESC},
    {c::kOperationMatmulC, CUDNN_ATTR_OPERATION_MATMUL_CDESC},
    {c::kOperationMatmulDescriptor, CUDNN_ATTR_OPERATION_MATMUL_DESC},
    {c::kOperationMatmulM, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC},
    {c::kOperationMatmulN, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC},
    {c::kOperationMatmulK, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC},
    {c::kReductionOperator, CUDNN_ATTR_REDUCTION_OPERATOR}, {c::kReductionPrecision, CUDNN_ATTR_REDUCTION_COMP_TYPE},
    {c::kReductionDeterministic, CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC},
    {c::kOperationReductionX, CUDNN_ATTR_OPERATION_REDUCTION_XDESC},
    {c::kOperationReductionY, CUDNN_ATTR_OPERATION_REDUCTION_YDESC},
    {c::kOperationReductionDescriptor, CUDNN_ATTR_OPERATION_REDUCTION_DESC},
    {c::kOperationReshapeX, CUDNN_ATTR_OPERATION_RESHAPE_XDESC},
    {c::kOperationReshapeY, CUDNN_ATTR_OPERATION_RESHAPE_YDESC}, {c::kAdd, CUDNN_POINTWISE_ADD},
    {c::kMul, CUDNN_POINTWISE_MUL}, {c::kDiv, CUDNN_POINTWISE_DIV}, {c::kSub, CUDNN_POINTWISE_SUB},
    {c::kExp, CUDNN_POINTWISE_EXP}, {c::kLog, CUDNN_POINTWISE_LOG}, {c::kGreaterOrEqual, CUDNN_POINTWISE_CMP_GE},
    {c::kLess, CUDNN_POINTWISE_CMP_LT}, {c::kAnd, CUDNN_POINTWISE_LOGICAL_AND},
    {c::kGenIndex, CUDNN_POINTWISE_GEN_INDEX}, {c::kSelect, CUDNN_POINTWISE_BINARY_SELECT},
    {c::kReduceAdd, CUDNN_REDUCE_TENSOR_ADD}, {c::kReduceMax, CUDNN_REDUCE_TENSOR_MAX},
    {c::kHeuristicModeA, CUDNN_HEUR_MODE_A}, {c::kNoteNondeterministic, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC},
    {c::kNoteRuntimeCompilation, CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION},
};
constexpr bool Agree() {
  for (const auto& pair : kConstants) {
    if (pair[0] != pair[1]) return false;
  }
  return true;
}
static_assert(Agree());
}  // namespace
#endif

namespace hone::cuda {
namespace {

int failures = 0;
constexpr char kCache[] = "cudnn_plans";  // in the folder where the test runs

void Check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

void Cuda(cudaError_t e) { HONE_CHECK(e == cudaSuccess, cudaGetErrorString(e)); }

double FreeMiB() {
  size_t free_bytes = 0, total = 0;
  Cuda(cudaMemGetInfo(&free_bytes, &total));
  return static_cast<double>(free_bytes) / (1 << 20);
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint16_t Bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float Float(uint16_t h) {
  const uint32_t u = uint32_t{h} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

struct Model {
  int64_t heads = 32, kv_heads = 8, dim = 128;
};

struct Results {
  std::vector<uint16_t> out, dq, dk, dv;
  std::vector<float> lse;
};

// One packed batch laid out as a block lays it out: q|k|v in one buffer, its gradient in another.
class Batch {
 public:
  Batch(Model m, std::vector<int> lengths, int64_t rows, int64_t first_row = 0, bool fill = true)
      : m_(m), lengths_(std::move(lengths)), rows_(rows) {
    qkv_pitch_ = (m.heads + 2 * m.kv_heads) * m.dim + 64;
    out_pitch_ = m.heads * m.dim + 64;
    qkv_ = New(rows * qkv_pitch_ * 2), d_qkv_ = New(rows * qkv_pitch_ * 2);
    out_ = New(rows * out_pitch_ * 2), d_out_ = New(rows * out_pitch_ * 2);
    lse_ = New(rows * m.heads * 4), delta_ = New(rows * m.heads * 4);
    if (fill) {
      Fill(qkv_, rows * qkv_pitch_, first_row * qkv_pitch_, 1);
      Fill(d_out_, rows * out_pitch_, first_row * out_pitch_, 2);
    }
    int32_t at = 0;
    for (int n : lengths_) {
      if (n >= 0) host_.push_back({at, n, at, n, 0, 0});
      at += std::abs(n);
    }
    used_ = at;
    segments_.host = host_;
    segments_.device = {New(static_cast<int64_t>(host_.size() * sizeof(Segment))), DType::kI32,
                        static_cast<int64_t>(host_.size()), 6, 6};
    Cuda(cudaMemcpy(segments_.device.data, host_.data(), host_.size() * sizeof(Segment), cudaMemcpyHostToDevice));
    shape_ = {.heads = m.heads, .kv_heads = m.kv_heads, .head_dim = m.dim,
              .scale = 1 / std::sqrt(static_cast<float>(m.dim))};
  }
  ~Batch() {
    for (void* p : owned_) cudaFree(p);
  }
  Batch(const Batch&) = delete;

  Tensor Qkv(void* base, int64_t col, int64_t cols) const {
    return Tensor{base, DType::kBF16, rows_, qkv_pitch_, qkv_pitch_}.Cols(col, cols);
  }
  Tensor q() const { return Qkv(qkv_, 0, nq()); }
  Tensor k() const { return Qkv(qkv_, nq(), nk()); }
  Tensor v() const { return Qkv(qkv_, nq() + nk(), nk()); }
  Tensor dq() const { return Qkv(d_qkv_, 0, nq()); }
  Tensor dk() const { return Qkv(d_qkv_, nq(), nk()); }
  Tensor dv() const { return Qkv(d_qkv_, nq() + nk(), nk()); }
  Tensor out() const { return {out_, DType::kBF16, rows_, nq(), out_pitch_}; }
  Tensor d_out() const { return {d_out_, DType::kBF16, rows_, nq(), out_pitch_}; }
  Tensor lse() const { return {lse_, DType::kF32, rows_, m_.heads, m_.heads}; }
  Tensor delta() const { return {delta_, DType::kF32, rows_, m_.heads, m_.heads}; }
  int64_t nq() const { return m_.heads * m_.dim; }
  int64_t nk() const { return m_.kv_heads * m_.dim; }
  const Segments& segments() const { return segments_; }
  const AttentionShape& shape() const { return shape_; }
  int64_t rows() const { return rows_; }
  int64_t used() const { return used_; }
  const std::vector<int>& lengths() const { return lengths_; }

  void Poison() {
    Cuda(cudaMemset(out_, 0x7f, static_cast<size_t>(rows_ * out_pitch_ * 2)));
    Cuda(cudaMemset(d_qkv_, 0x7f, static_cast<size_t>(rows_ * qkv_pitch_ * 2)));
    Cuda(cudaMemset(lse_, 0x7f, static_cast<size_t>(rows_ * m_.heads * 4)));
  }
  Results Get() const {
    Results r;
    r.out = Download(out()), r.dq = Download(dq()), r.dk = Download(dk()), r.dv = Download(dv());
    r.lse.resize(static_cast<size_t>(rows_ * m_.heads));
    Cuda(cudaMemcpy(r.lse.data(), lse_, r.lse.size() * 4, cudaMemcpyDeviceToHost));
    return r;
  }
  std::vector<uint16_t> Download(Tensor t) const {
    std::vector<uint16_t> x(static_cast<size_t>(t.rows * t.cols));
    Cuda(cudaMemcpy2D(x.data(), static_cast<size_t>(t.cols * 2), t.data, static_cast<size_t>(t.pitch * 2),
                      static_cast<size_t>(t.cols * 2), static_cast<size_t>(t.rows), cudaMemcpyDeviceToHost));
    return x;
  }
  // Rows of `from` as this batch's document `to_row` on.
  void CopyRows(const Batch& from, int64_t from_row, int64_t to_row, int64_t count) {
    const auto copy = [&](void* to, const void* source, int64_t pitch) {
      Cuda(cudaMemcpy(static_cast<char*>(to) + to_row * pitch * 2, static_cast<const char*>(source) + from_row * pitch * 2,
                      static_cast<size_t>(count * pitch * 2), cudaMemcpyDeviceToDevice));
    };
    copy(qkv_, from.qkv_, qkv_pitch_);
    copy(d_out_, from.d_out_, out_pitch_);
  }

 private:
  void* New(int64_t bytes) {
    void* p = nullptr;
    Cuda(cudaMalloc(&p, static_cast<size_t>(bytes)));
    owned_.push_back(p);
    return p;
  }
  static void Fill(void* to, int64_t count, int64_t skip, uint64_t seed) {
    std::vector<uint16_t> x(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      uint64_t z = (static_cast<uint64_t>(skip + i) + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
      z ^= z >> 31;
      float sum = 0;  // of four uniforms: near normal, variance 1
      for (int j = 0; j < 4; ++j) sum += static_cast<float>((z >> (16 * j)) & 0xffff) / 65536.0f - 0.5f;
      x[static_cast<size_t>(i)] = Bf16(sum * 1.7320508f);
    }
    Cuda(cudaMemcpy(to, x.data(), x.size() * 2, cudaMemcpyHostToDevice));
  }

  Model m_;
  std::vector<int> lengths_;
  int64_t rows_, used_ = 0, qkv_pitch_, out_pitch_;
  void *qkv_, *d_qkv_, *out_, *d_out_, *lse_, *delta_;
  std::vector<Segment> host_;
  Segments segments_;
  AttentionShape shape_;
  std::vector<void*> owned_;
};

struct Space {
  void* data = nullptr;
  uint64_t bytes = 0;
};

absl::Status Both(CudnnAttention& a, Batch& b, Space w, bool forward = true, bool backward = true) {
  if (forward) {
    HONE_RETURN_IF_ERROR(a.Forward(b.q(), b.k(), b.v(), b.segments(), b.shape(), b.out(), b.lse(), w.data, w.bytes, 0));
  }
  if (backward) {
    HONE_RETURN_IF_ERROR(a.Backward(b.d_out(), b.q(), b.k(), b.v(), b.out(), b.lse(), b.segments(), b.shape(), b.dq(),
                                    b.dk(), b.dv(), w.data, w.bytes, 0));
  }
  return absl::OkStatus();
}

bool Ok(const absl::Status& s, const std::string& what) {
  Check(s.ok(), StrCat(what, ": ", s.message()));
  const cudaError_t e = cudaDeviceSynchronize();
  Check(e == cudaSuccess, StrCat(what, ": ", cudaGetErrorString(e)));
  return s.ok() && e == cudaSuccess;
}

// Relative error over the rows of documents.
double Error(const std::vector<uint16_t>& got, const std::vector<uint16_t>& want, int64_t cols, const Batch& batch) {
  double d = 0, n = 0;
  for (const Segment& s : batch.segments().host) {
    for (int64_t i = s.q0 * cols; i < (s.q0 + s.q_len) * cols; ++i) {
      const double w = Float(want[static_cast<size_t>(i)]), g = Float(got[static_cast<size_t>(i)]);
      d += (g - w) * (g - w), n += w * w;
    }
  }
  return std::sqrt(d / n);
}

// Both directions against the plain kernel, and what must not have been touched.
void Compare(CudnnAttention& a, Batch& b, Space w, const std::string& name) {
  b.Poison();
  if (!Ok(Both(a, b, w), name)) return;
  const Results got = b.Get();
  PlainAttention(b.q(), b.k(), b.v(), b.segments(), b.shape(), b.out(), b.lse(), 0);
  PlainAttentionBackward(b.d_out(), b.q(), b.k(), b.v(), b.out(), b.lse(), b.segments(), b.shape(), b.delta(), b.dq(), b.dk(),
                    b.dv(), 0);
  if (!Ok(absl::OkStatus(), name + " plain")) return;
  const Results want = b.Get();
  const int64_t nq = b.nq(), nk = b.nk(), used = b.used(), heads = b.shape().heads;
  double lse = 0;
  for (int64_t i = 0; i < used * heads; ++i) {
    lse = std::max(lse, static_cast<double>(std::fabs(got.lse[static_cast<size_t>(i)] - want.lse[static_cast<size_t>(i)])));
  }
  const double out = Error(got.out, want.out, nq, b), dq = Error(got.dq, want.dq, nq, b),
               dk = Error(got.dk, want.dk, nk, b), dv = Error(got.dv, want.dv, nk, b);
  int64_t touched = 0, not_zero = 0;
  for (int64_t i = used * nq; i < b.rows() * nq; ++i) touched += got.out[static_cast<size_t>(i)] != 0x7f7f;
  for (int64_t i = used * nq; i < b.rows() * nq; ++i) not_zero += got.dq[static_cast<size_t>(i)] != 0;
  for (int64_t i = used * nk; i < b.rows() * nk; ++i) {
    not_zero += (got.dk[static_cast<size_t>(i)] != 0) + (got.dv[static_cast<size_t>(i)] != 0);
  }
  const bool good = lse < 1e-3 && out < 8e-3 && dq < 1.2e-2 && dk < 1.2e-2 && dv < 1.2e-2 && touched == 0 && not_zero == 0;
  std::printf("%-34s against plain: out %.2e lse (abs) %.1e dq %.2e dk %.2e dv %.2e, stray %ld %ld%s\n", name.c_str(), out,
              lse, dq, dk, dv, static_cast<long>(touched), static_cast<long>(not_zero), good ? "" : "  <-- FAILED");
  failures += !good;
}

double Time(const std::function<void()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 14; ++i) {
    cudaEventRecord(begin);
    run();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 2) times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double HostMicroseconds(const std::function<void()>& run) {
  Cuda(cudaDeviceSynchronize());
  double best = 1e9;
  for (int i = 0; i < 8; ++i) {
    const double start = Now();
    run();
    best = std::min(best, (Now() - start) * 1e6);
    Cuda(cudaDeviceSynchronize());
  }
  return best;
}

void Speed(CudnnAttention& a, Batch& b, Space w, const std::string& name, uint64_t budget) {
  const double start = Now();
  if (!Ok(Both(a, b, w), name)) return;
  const double first = Now() - start;
  const double f = Time([&] { (void)Both(a, b, w, true, false); }), g = Time([&] { (void)Both(a, b, w, false, true); });
  const double host_f = HostMicroseconds([&] { (void)Both(a, b, w, true, false); }),
               host_b = HostMicroseconds([&] { (void)Both(a, b, w, false, true); });
  double flops = 0;
  for (double n : b.lengths()) flops += 4.0 * b.shape().head_dim * static_cast<double>(b.shape().heads) * n * n / 2;
  const auto calls = CudnnCalls(b.segments().host, b.shape().heads, b.shape().kv_heads, budget);
  std::printf("%-34s %2zu calls: forward %7.3f ms %4.0f TF, backward %7.3f ms %4.0f TF, both %4.0f TF; host %3.0f + %3.0f us, first %4.0f ms, workspace %.0f MiB\n",
              name.c_str(), calls.size(), f, flops / f / 1e9, g, 2.5 * flops / g / 1e9, 3.5 * flops / (f + g) / 1e9, host_f,
              host_b, first * 1e3, static_cast<double>(a.WorkspaceBytes(b.segments(), b.shape(), b.rows())) / (1 << 20));
  std::fflush(stdout);
}

void PrintPlans(CudnnAttention& a, Model m) {
  std::printf("plan: what cuDNN reports beside the formula, MiB\n");
  for (bool backward : {false, true}) {
    for (auto [batch, length, kv] : {std::array<int64_t, 3>{1, 256, 8}, {64, 256, 8}, {8, 384, 8}, {4, 768, 8}, {2, 1024, 8}, {8, 1024, 8},
                                     {4, 2048, 8}, {1, 8192, 8}, {1, 8192, 2}, {1, 8192, 1}, {1, 16384, 1}}) {
      CudnnAttention::PlanKey key{.backward = backward, .batch = batch, .length = length, .kv_heads = kv,
                                  .group = m.heads / m.kv_heads, .head_dim = m.dim};
      const int64_t p = (m.heads + 2 * m.kv_heads) * m.dim + 64, o = m.heads * m.dim + 64;
      key.pitches = {p, p, o, o, m.heads, p, p, kv * key.group * m.dim};
      if (!backward) key.pitches[3] = key.pitches[5] = key.pitches[6] = key.pitches[7] = 0;
      const double start = Now();
      auto plan = a.PlanFor(key);
      if (!plan.ok()) {
        Check(false, StrCat(backward ? "backward" : "forward", " batch ", batch, " length ", length, " kv ", kv, " d ", m.dim, ": ",
                            plan.status().message()));
        continue;
      }
      const uint64_t formula = CudnnBackwardBytes(batch, kv * key.group, length);
      std::printf("  %s batch %2ld length %5ld kv heads %ld d %3ld: %10.4f (formula %9.2f) engine %ld of %ld, run-time compilation %d, %.1f ms to build\n",
                  backward ? "backward" : "forward ", static_cast<long>(batch), static_cast<long>(length), static_cast<long>(kv),
                  static_cast<long>(m.dim), static_cast<double>((*plan)->workspace_bytes()) / (1 << 20),
                  static_cast<double>(formula) / (1 << 20), static_cast<long>((*plan)->engine()), static_cast<long>((*plan)->configs()), (*plan)->compiles_at_run_time(),
                  (Now() - start) * 1e3);
      Check((*plan)->workspace_bytes() <= formula, "the formula is under what cuDNN reports");
    }
  }
  std::fflush(stdout);
}

std::vector<int> Lognormal(int64_t total) {
  std::mt19937 rng(1);
  std::lognormal_distribution<float> d(std::log(512.f) - 0.18f, 0.6f);
  std::vector<int> lengths;
  for (int64_t sum = 0; sum < total;) {
    int n = std::max(16, std::min<int>(2048, static_cast<int>(d(rng))));
    n = static_cast<int>(std::min<int64_t>(n, total - sum));
    lengths.push_back(n);
    sum += n;
  }
  return lengths;
}

// One document's results, alone and in company.
void Invariance(CudnnAttention& a, CudnnAttention& narrow, Model m, Space w, int length) {
  Batch alone(m, {length}, length);
  const auto run = [&](CudnnAttention& which, std::vector<int> lengths, size_t mine, const char* name) {
    int64_t total = 0, at = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      if (i == mine) at = total;
      total += lengths[i];
    }
    Batch b(m, lengths, total, 5000);
    b.CopyRows(alone, 0, at, length);
    b.Poison(), alone.Poison();
    if (!Ok(Both(a, alone, w), "alone") || !Ok(Both(which, b, w), name)) return;
    const Results x = alone.Get(), y = b.Get();
    Results again;
    if (Ok(Both(which, b, w), name)) again = b.Get();
    int64_t differ[5] = {}, repeat = 0;
    for (int64_t i = 0; i < length * alone.nq(); ++i) {
      const size_t p = static_cast<size_t>(i), r = static_cast<size_t>(at * alone.nq() + i);
      differ[0] += x.out[p] != y.out[r], differ[1] += x.dq[p] != y.dq[r];
    }
    for (int64_t i = 0; i < length * alone.nk(); ++i) {
      const size_t p = static_cast<size_t>(i), r = static_cast<size_t>(at * alone.nk() + i);
      differ[2] += x.dk[p] != y.dk[r], differ[3] += x.dv[p] != y.dv[r];
    }
    for (int64_t i = 0; i < length * m.heads; ++i) {
      differ[4] += x.lse[static_cast<size_t>(i)] != y.lse[static_cast<size_t>(at * m.heads + i)];
    }
    for (size_t i = 0; i < y.dq.size(); ++i) repeat += y.dq[i] != again.dq[i];
    for (size_t i = 0; i < y.dk.size(); ++i) repeat += (y.dk[i] != again.dk[i]) + (y.dv[i] != again.dv[i]);
    const bool same = differ[0] + differ[1] + differ[2] + differ[3] + differ[4] + repeat == 0;
    std::printf("%-44s %d tokens alone and so: out %ld dq %ld dk %ld dv %ld lse %ld differ; run twice %ld%s\n", name, length,
                static_cast<long>(differ[0]), static_cast<long>(differ[1]), static_cast<long>(differ[2]),
                static_cast<long>(differ[3]), static_cast<long>(differ[4]), static_cast<long>(repeat), same ? "" : "  <-- FAILED");
    failures += !same;
  };
  run(a, {length, 900}, 0, "[A, B]");
  run(a, {900, length}, 1, "[B, A]");
  run(a, {length - 30, length - 60, length, length - 2, 130, 17}, 2, "six documents, four of the class");
  run(narrow, {length - 30, length - 60, length, length - 2, 130, 17}, 2, "the same under a small workspace");
  std::fflush(stdout);
}

bool Loaded(const char* part) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(part) != std::string::npos) return true;
  }
  return false;
}

// "32,8,128,300,-50,17": heads, kv heads, head_dim, lengths (negative: a gap).
int RunOne(const std::string& text) {
  std::vector<int> n;
  for (size_t at = 0; at < text.size(); at = text.find(',', at) == std::string::npos ? text.size() : text.find(',', at) + 1) {
    n.push_back(std::atoi(text.c_str() + at));
  }
  auto a = CudnnAttention::Open(uint64_t{4400} << 20, kCache);
  HONE_CHECK(a.ok(), a.status().message());
  Space w{nullptr, uint64_t{5} << 30};
  Cuda(cudaMalloc(&w.data, w.bytes));
  const std::vector<int> lengths(n.begin() + 3, n.end());
  int64_t rows = 0;
  for (int l : lengths) rows += std::abs(l);
  Batch b({n[0], n[1], n[2]}, lengths, rows + 64);
  b.Poison();
  if (!Ok(Both(**a, b, w, true, false), text + " forward")) return 1;
  if (!Ok(Both(**a, b, w, false, true), text + " backward")) return 1;
  Compare(**a, b, w, text);
  return failures;
}

int Run() {
  if (cudaFree(nullptr) != cudaSuccess) {
    std::printf("skipped: no card\n");
    return 77;
  }
  constexpr uint64_t kBudget = uint64_t{4400} << 20, kNarrow = uint64_t{40} << 20;
  const double free_before = FreeMiB(), start = Now();
  auto opened = CudnnAttention::Open(kBudget, kCache);
  if (!opened.ok()) {
    std::printf("skipped: %s\n", std::string(ToStd(opened.status().message())).c_str());
    return 77;
  }
  CudnnAttention& a = **opened;
  std::printf("cuDNN %ld opened in %.0f ms, %.0f MiB of the card\n", static_cast<long>(a.version()), (Now() - start) * 1e3,
              free_before - FreeMiB());
  Space w{nullptr, uint64_t{5} << 30};
  Cuda(cudaMalloc(&w.data, w.bytes));
  const Model llama;
  {
    const double before = FreeMiB(), t = Now();
    Batch b(llama, {300}, 512);
    const double batch = before - FreeMiB();
    if (!Ok(Both(a, b, w), "first")) return 1;
    std::printf("first forward and backward: %.0f ms, %.0f MiB more of the card; nvrtc loaded %d\n", (Now() - t) * 1e3,
                before - FreeMiB() - batch, Loaded("nvrtc"));
  }
  const double before = FreeMiB();
  PrintPlans(a, llama);
  std::printf("those plans: %.0f MiB more of the card; nvrtc loaded %d\n", before - FreeMiB(), Loaded("nvrtc"));

  for (const Model m : {Model{32, 8, 128}, Model{14, 2, 64}, Model{9, 3, 64}, Model{32, 32, 96}, Model{16, 16, 128}}) {
    Batch b(m, {300, 1, 17, 256, 257, 700, 128}, 1792);
    Check(a.Supports(b.q(), b.k(), b.v(), b.segments(), b.shape()), "supported");
    Compare(a, b, w, StrCat("heads ", m.heads, "/", m.kv_heads, " d ", m.dim));
  }
  {
    Batch b(llama, {300, 1, 17, 256, 257, 700, 128}, 1792);
    a.set_float_full(true);
    Compare(a, b, w, "variant: full heads in fp32");
    a.set_float_full(false);
  }
  auto narrow = CudnnAttention::Open(kNarrow, kCache);
  if (!Ok(narrow.status(), "second handle")) return 1;
  for (int length : {200, 700, 1500}) Invariance(a, **narrow, llama, w, length);

  const auto lognormal = Lognormal(8192);
  struct Named {
    const char* name;
    std::vector<int> lengths;
  };
  for (const Named& n : {Named{"4 x 2048", std::vector<int>(4, 2048)}, Named{"2 x 4096", {4096, 4096}}, Named{"1 x 8192", {8192}},
                         Named{"8 x 1024", std::vector<int>(8, 1024)}, Named{"lognormal", lognormal}, Named{"16 x 512", std::vector<int>(16, 512)}}) {
    Batch b(llama, n.lengths, 8192);
    Speed(a, b, w, n.name, kBudget);
    auto smaller = CudnnAttention::Open(uint64_t{640} << 20, kCache);
    if (smaller.ok()) Speed(**smaller, b, w, StrCat(n.name, ", 640 MiB"), uint64_t{640} << 20);
    if (n.lengths.size() == 4 || n.lengths.size() > 20) Compare(a, b, w, n.name);
  }
  {
    Batch b(llama, {100}, 256);
    for (int64_t least : {1, 4, 16, 64}) {
      a.set_least_batch(least);
      if (!Ok(Both(a, b, w), "empty documents")) break;
      const double f = Time([&] { (void)Both(a, b, w, true, false); }), g = Time([&] { (void)Both(a, b, w, false, true); });
      std::printf("one document of 100 tokens in a batch of %ld: forward %.1f us, backward %.1f us\n", static_cast<long>(least),
                  f * 1e3, g * 1e3);
    }
    a.set_least_batch(1);
  }
  {
    Batch b(llama, {300, 1, 17, 256, 257, 700, 128}, 1792);
    b.Poison();
    if (Ok(Both(a, b, w), "made here")) {
      const Results made = b.Get();
      auto again = CudnnAttention::Open(kBudget, kCache);
      b.Poison();
      const double t = Now();
      if (Ok(again.status(), "opened again") && Ok(Both(**again, b, w), "loaded")) {
        const double first = (Now() - t) * 1e3;
        const Results loaded = b.Get();
        const bool same = made.out == loaded.out && made.dq == loaded.dq && made.dk == loaded.dk && made.dv == loaded.dv &&
                          made.lse == loaded.lse;
        std::printf("plans loaded from disk: %ld made anew, first run %.0f ms, results %s\n",
                    static_cast<long>((*again)->compiled()), first, same ? "bit-equal" : "differ  <-- FAILED");
        failures += !same;
        Check((*again)->compiled() == 0, "plans were to be loaded");
      }
    }
  }
  std::printf("plans made anew %ld\n", static_cast<long>(a.compiled()));
  std::printf("at the end %.0f MiB of the card beside the test's own; nvrtc loaded %d\n",
              free_before - FreeMiB() - static_cast<double>(w.bytes >> 20), Loaded("nvrtc"));
  std::printf(failures == 0 ? "PASSED\n" : "FAILED: %d\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hone::cuda

int main(int argc, char** argv) {
  try {
    return argc > 1 ? hone::cuda::RunOne(argv[1]) : hone::cuda::Run();
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
}
