#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include "proto/base/status.h"

namespace hone::cuda {
namespace {

constexpr int kCandidates = 32;
constexpr int kFullyTimed = 2;             // numbers of rows that a product is timed for with every candidate
constexpr size_t kProposals = 3;           // of the library, for further ones
constexpr double kLargeFlops = 4e9;        // a product worth asking further than the library's own list
constexpr int kRounds = 3;                 // of timing, after the one that sorts out
constexpr double kWorthTiming = 1.12;      // times the fastest of that round
constexpr double kShortestTiming = 100;    // microseconds of work between two events
constexpr double kLongestTiming = 100000;  // per shape; a shape that took so long gets no further round

void Require(cublasStatus_t status, const char* what) {
  HONE_CHECK(status == CUBLAS_STATUS_SUCCESS, "Matmul: ", what, ": ", cublasLtGetStatusString(status));
}

void Require(cudaError_t error, const char* what) {
  HONE_CHECK(error == cudaSuccess, "Matmul: ", what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
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

std::string NameOf(const cublasLtMatmulAlgo_t& algorithm) {
  return StrCat("id", Config<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID), ",tile",
                Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID), ",stages",
                Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID), ",swizzle",
                Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING), ",custom",
                Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION), ",inner",
                Config<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID), ",cluster",
                Config<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID));
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

// Rows of a stand first: shapes that differ in them alone are neighbours (TakeNearest). Whether the addend is c itself
// does not count: a residual added in place and one added from elsewhere are to have the same bits.
TuningKey KeyOf(const Gemm::Product& p) {
  return {p.a.rows,
          p.a.cols,
          p.b.rows,
          p.b.cols,
          p.c.cols,
          PitchOf(p.a),
          PitchOf(p.b),
          PitchOf(p.c),
          PitchOf(p.addend),
          p.ta == Transpose::kYes,
          p.tb == Transpose::kYes,
          static_cast<int64_t>(p.a.dtype),
          static_cast<int64_t>(p.c.dtype),
          AlignmentOf(p.a),
          AlignmentOf(p.b),
          AlignmentOf(p.c),
          AlignmentOf(p.addend),
          p.beta == 0 ? 0 : 1};
}

bool SameButRows(const TuningKey& x, const TuningKey& y) { return std::equal(x.begin() + 1, x.end(), y.begin() + 1); }

cublasLtMatmulAlgo_t AlgorithmOf(const TunedAlgorithm& tuned) {
  cublasLtMatmulAlgo_t algorithm{};
  static_assert(sizeof(algorithm) == sizeof(tuned.bytes));
  std::memcpy(&algorithm, tuned.bytes.data(), tuned.bytes.size());
  return algorithm;
}

template <typename C>
void AddIfNew(std::vector<C>& candidates, const C& candidate) {
  const std::string name = NameOf(candidate.algorithm);
  for (const C& other : candidates) {
    if (NameOf(other.algorithm) == name) return;
  }
  candidates.push_back(candidate);
}

}  // namespace

Gemm::Gemm(cublasLtHandle_t handle, void* workspace, uint64_t workspace_bytes, const Options& options)
    : handle_(handle),
      workspace_(workspace),
      workspace_bytes_(workspace_bytes),
      cache_path_(options.cache_path),
      machine_(StrCat(options.machine, ", cuBLASLt ", uint64_t{cublasLtGetVersion()})) {
  if (!cache_path_.empty()) tuned_ = LoadTuning(cache_path_, machine_);
}

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Open(void* workspace, uint64_t workspace_bytes, const Options& options) {
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return FailedPrecondition("cuBLASLt does not start: ", cublasLtGetStatusString(status),
                              "; check that the driver is 580 or newer and that the card has free memory");
  }
  std::unique_ptr<Gemm> gemm(new Gemm(handle, workspace, workspace_bytes, options));
  if (cudaEventCreate(&gemm->begin_) != cudaSuccess || cudaEventCreate(&gemm->end_) != cudaSuccess) {
    return FailedPrecondition("CUDA gives no events: ", cudaGetErrorString(cudaGetLastError()));
  }
  return gemm;
}

Gemm::~Gemm() {
  if (begin_ != nullptr) cudaEventDestroy(begin_);
  if (end_ != nullptr) cudaEventDestroy(end_);
  cublasLtDestroy(handle_);
}

void Gemm::EndWarmUp() {
  warming_up_ = false;
  if (cache_path_.empty() || !unsaved_) return;
  unsaved_ = !SaveTuning(cache_path_, machine_, tuned_).ok();
}

std::vector<Gemm::Candidate> Gemm::Candidates(Plan& plan, const Product& p) const {
  Preference preference;
  preference.Set<uint64_t>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_NONE);
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(p.b));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(p.a));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(p.addend));
  preference.Set<uint32_t>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(p.c));
  cublasLtMatmulHeuristicResult_t results[kCandidates];
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, &plan.operation, &plan.a, &plan.b, &plan.c,
                                                               &plan.d, preference.get(), kCandidates, results, &found);
  std::vector<Candidate> candidates;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return candidates;
  Require(status, "heuristic");
  for (int i = 0; i < found; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS || !SumsInOnePiece(results[i].algo)) continue;
    candidates.push_back({results[i].algo, results[i].workspaceSize, 0});
  }
  return candidates;
}

// The library proposes eight algorithms for a shape, and among those that it proposes for other large shapes of the
// same kind there is at times a faster one: up to 7% (dX of down at 8192 tokens on an H100).
void Gemm::AddFromLargeShapes(std::vector<Candidate>& candidates, Plan& plan, const Product& p) {
  const std::array<int, 4> kind = {p.ta == Transpose::kYes, p.tb == Transpose::kYes, static_cast<int>(p.a.dtype),
                                   static_cast<int>(p.c.dtype)};
  auto found = large_shapes_.find(kind);
  if (found == large_shapes_.end()) {
    found = large_shapes_.emplace(kind, std::vector<Candidate>()).first;
    for (const int64_t m : {2048, 8192}) {
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{4096, 4096}, {6144, 4096}, {28672, 4096}, {4096, 28672}}) {
        const auto tensor = [](DType dtype, int64_t rows, int64_t cols) {
          return Tensor{nullptr, dtype, rows, cols, cols + 64};
        };
        Product other = p;
        other.a = kind[0] != 0 ? tensor(p.a.dtype, k, m) : tensor(p.a.dtype, m, k);
        other.b = kind[1] != 0 ? tensor(p.a.dtype, n, k) : tensor(p.a.dtype, k, n);
        other.c = other.addend = tensor(p.c.dtype, m, n);
        Plan large;
        Describe(large, other);
        for (const Candidate& c : Candidates(large, other)) AddIfNew(found->second, c);
      }
    }
  }
  for (const Candidate& known : found->second) {
    Candidate candidate;
    if (Fits(plan, known.algorithm, candidate)) AddIfNew(candidates, candidate);
  }
}

// The algorithm with the workspace that it needs for this plan; false where it does not fit.
bool Gemm::Fits(Plan& plan, const cublasLtMatmulAlgo_t& algorithm, Candidate& candidate) const {
  candidate.algorithm = algorithm;
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle_, &plan.operation, &plan.a, &plan.b, &plan.c, &plan.d,
                                                        &candidate.algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > workspace_bytes_) return false;
  candidate.workspace_bytes = result.workspaceSize;
  return SumsInOnePiece(candidate.algorithm);
}

bool Gemm::TakeTuned(Plan& plan, const TunedAlgorithm& tuned) const {
  if (!Fits(plan, AlgorithmOf(tuned), plan.chosen)) return false;
  plan.chosen.microseconds = tuned.microseconds;
  plan.supported = true;
  return true;
}

// Where enough other numbers of rows of the same product were timed, what was fastest for one of them and the library's
// first proposals are enough: a run may have a dozen sizes of launches. False: too few were timed.
bool Gemm::Shortlist(std::vector<Candidate>& candidates, Plan& plan, const TuningKey& key) const {
  std::vector<Candidate> found;
  int others = 0;
  for (const auto& [other, tuned] : tuned_) {
    if (!SameButRows(other, key)) continue;
    ++others;
    Candidate candidate;
    if (Fits(plan, AlgorithmOf(tuned), candidate)) AddIfNew(found, candidate);
  }
  if (others < kFullyTimed) return false;
  if (candidates.size() > kProposals) candidates.resize(kProposals);
  for (const Candidate& candidate : found) AddIfNew(candidates, candidate);
  return true;
}

// What was found for the same product with the next larger number of rows, or else the next smaller one.
bool Gemm::TakeNearest(Plan& plan, const TuningKey& key) const {
  if (key[9] != 0) return false;  // a is transposed: its rows are what the product sums over
  const TunedAlgorithm* nearest = nullptr;
  for (const auto& [other, tuned] : tuned_) {  // ascending in rows
    if (!SameButRows(other, key)) continue;
    nearest = &tuned;
    if (other[0] >= key[0]) break;
  }
  return nearest != nullptr && TakeTuned(plan, *nearest);
}

cublasStatus_t Gemm::Enqueue(Plan& plan, const Candidate& candidate, const Product& p, cudaStream_t stream) const {
  return cublasLtMatmul(handle_, &plan.operation, &p.alpha, p.b.data, &plan.a, p.a.data, &plan.b, &p.beta,
                        p.addend.data, &plan.c, p.c.data, &plan.d, &candidate.algorithm, workspace_,
                        candidate.workspace_bytes, stream);
}

// Microseconds of one product; infinity if the candidate does not run.
double Gemm::Time(Plan& plan, const Candidate& candidate, const Product& p, int repeats, cudaStream_t stream) const {
  Require(cudaEventRecord(begin_, stream), "event");
  for (int i = 0; i < repeats; ++i) {
    if (Enqueue(plan, candidate, p, stream) != CUBLAS_STATUS_SUCCESS) return std::numeric_limits<double>::infinity();
  }
  Require(cudaEventRecord(end_, stream), "event");
  Require(cudaEventSynchronize(end_), "a candidate failed");
  float milliseconds = 0;
  Require(cudaEventElapsedTime(&milliseconds, begin_, end_), "event");
  return 1000.0 * milliseconds / repeats;
}

// Each candidate once to load it, once to sort out the slow ones; then the others in turns, so that a change of the
// card's clock meets all of them, and the least time of each counts.
Gemm::Candidate Gemm::Fastest(Plan& plan, std::vector<Candidate> candidates, const Product& p, cudaStream_t stream) {
  for (const Candidate& c : candidates) Enqueue(plan, c, p, stream);
  double fastest = std::numeric_limits<double>::infinity(), spent = 0;
  for (Candidate& c : candidates) {
    c.microseconds = Time(plan, c, p, 1, stream);
    fastest = std::min(fastest, c.microseconds);
    spent += c.microseconds;
  }
  std::erase_if(candidates, [&](const Candidate& c) { return c.microseconds > kWorthTiming * fastest; });
  HONE_CHECK(!candidates.empty(), "Matmul: no candidate runs");
  const int repeats = static_cast<int>(std::clamp(kShortestTiming / fastest, 1.0, 8.0));
  for (int round = 0; round < kRounds && candidates.size() > 1 && spent < kLongestTiming; ++round) {
    for (Candidate& c : candidates) {
      const double microseconds = Time(plan, c, p, repeats, stream);
      c.microseconds = round == 0 ? microseconds : std::min(c.microseconds, microseconds);
      spent += microseconds * repeats;
    }
  }
  return *std::min_element(candidates.begin(), candidates.end(),
                           [](const Candidate& x, const Candidate& y) { return x.microseconds < y.microseconds; });
}

void Gemm::Describe(Plan& plan, const Product& p) {
  Require(cublasLtMatmulDescInit(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  // c^T = op(b)^T op(a)^T in column-major terms: the operands change places and keep their transposition.
  const cublasOperation_t op_b = p.tb == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_a = p.ta == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  Require(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof(op_b)),
          "transpose");
  Require(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof(op_a)),
          "transpose");
  InitLayout(plan.a, p.b);
  InitLayout(plan.b, p.a);
  InitLayout(plan.c, p.addend);
  InitLayout(plan.d, p.c);
}

Gemm::Plan Gemm::MakePlan(const TuningKey& key, const Product& p, cudaStream_t stream) {
  Plan plan;
  Describe(plan, p);
  const auto cached = tuned_.find(key);
  if (cached != tuned_.end() && TakeTuned(plan, cached->second)) {
    ++tuning_.cached_shapes;
    plan.settled = true;
    return plan;
  }
  if (!warming_up_ && TakeNearest(plan, key)) return plan;
  std::vector<Candidate> candidates = Candidates(plan, p);
  if (candidates.empty()) return plan;
  plan.supported = true;
  plan.chosen = candidates[0];
  if (!warming_up_) return plan;
  const auto begin = std::chrono::steady_clock::now();
  const double k = static_cast<double>(p.ta == Transpose::kYes ? p.a.rows : p.a.cols);
  const bool large = 2.0 * static_cast<double>(p.c.elements()) * k > kLargeFlops;
  if (!Shortlist(candidates, plan, key) && large) AddFromLargeShapes(candidates, plan, p);
  plan.chosen = Fastest(plan, std::move(candidates), p, stream);
  plan.settled = true;
  TunedAlgorithm& tuned = tuned_[key];
  std::memcpy(tuned.bytes.data(), &plan.chosen.algorithm, tuned.bytes.size());
  tuned.workspace_bytes = plan.chosen.workspace_bytes;
  tuned.microseconds = plan.chosen.microseconds;
  tuned.description = NameOf(plan.chosen.algorithm);
  unsaved_ = true;
  ++tuning_.timed_shapes;
  tuning_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return plan;
}

bool Gemm::Run(const Product& p, cudaStream_t stream) {
  const TuningKey key = KeyOf(p);
  auto found = plans_.find(key);
  if (found == plans_.end() || (warming_up_ && found->second.supported && !found->second.settled)) {
    found = plans_.insert_or_assign(key, MakePlan(key, p, stream)).first;
  }
  Plan& plan = found->second;
  if (!plan.supported) return false;
  Require(Enqueue(plan, plan.chosen, p, stream), "launch");
  return true;
}

std::string Gemm::DescribeTuning() const {
  std::string text;
  for (const auto& [key, plan] : plans_) {
    if (!plan.supported) continue;
    text +=
        StrCat(key[9] != 0 ? key[1] : key[0], " x ", key[9] != 0 ? key[0] : key[1], " -> ", key[4],
               key[9] != 0 ? " t" : " n", key[10] != 0 ? "t" : "n", key[17] != 0 ? " +" : "", ": ",
               plan.settled ? "" : "untimed, ", plan.chosen.microseconds, " us, ", NameOf(plan.chosen.algorithm), "\n");
  }
  return text;
}

}  // namespace hone::cuda
