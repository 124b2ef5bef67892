#include "kernels/cuda/cudnn_attention.h"

#include <cmath>
#include <utility>

#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone::cuda {
namespace {

// Pitches and offset arrays, in this order everywhere.
enum Array : size_t { kQ, kKv, kOut, kDOut, kLse, kDq, kDkv, kFull };

enum Id : int64_t {
  kIdQ = 1,
  kIdK,
  kIdV,
  kIdOut,
  kIdLse,
  kIdDOut,
  kIdDq,
  kIdDk,
  kIdDv,
  kIdLengths,
  kIdScale,
  kIdOne,
  kIdMinusInfinity,
  kIdMinusInfinity2,
  kIdSoftmaxSum,
  kIdFullDk,
  kIdFullDv,
  kIdOffsets = 32,  // + Array
};

using Node = CudnnGraph::Node;
using Shape = CudnnGraph::Shape;

// The graph of FlashAttention as cuDNN recognises it: written operation by operation, fused into one kernel (forward)
// or three (backward). Scores and what has their shape are virtual.
class GraphMaker {
 public:
  GraphMaker(const CudnnLibrary& library, const CudnnAttention::PlanKey& key)
      : key_(key), heads_(key.kv_heads * key.group), graph_(library) {
    lengths_ = graph_.Input(kIdLengths, cudnn::kInt32, {{key.batch, 1, 1, 1}, {1, 1, 1, 1}});
    for (size_t i = 0; i < offsets_.size(); ++i) {
      const bool used = key.backward ? i != kFull || key.group > 1 : i == kQ || i == kKv || i == kOut || i == kLse;
      if (!used) continue;
      offsets_[i] = graph_.Input(kIdOffsets + static_cast<int64_t>(i), cudnn::kInt64,
                                 {{key.batch + 1, 1, 1, 1}, {1, 1, 1, 1}});
    }
    scale_ = graph_.HostValue(kIdScale);
    scores_ = {{key.batch, heads_, key.length, key.length},
               {heads_ * key.length * key.length, key.length * key.length, key.length, 1}};
    rows_ = {{key.batch, heads_, key.length, 1}, {heads_ * key.length, key.length, 1, 1}};
    q_ = Heads(kIdQ, heads_, kQ);
    k_ = HeadsTransposed(kIdK, kKv);
    out_ = Heads(kIdOut, heads_, kOut);
    lse_ = Rows(kIdLse);
  }

  absl::StatusOr<std::unique_ptr<CudnnPlan>> Forward() {
    const Node v = Heads(kIdV, key_.kv_heads, kKv);
    const Node s = Masked(Op(cudnn::kMul, Product(q_, k_), scale_));
    const Node max = graph_.Reduce(cudnn::kReduceMax, s, graph_.Virtual(cudnn::kFloat, rows_));
    const Node e = Op(cudnn::kExp, Op(cudnn::kSub, s, max));
    const Node sum = graph_.Reduce(cudnn::kReduceAdd, e, graph_.Virtual(cudnn::kFloat, rows_));
    const Node log_sum = graph_.Pointwise(cudnn::kLog, cudnn::kFloat, sum, nullptr, graph_.Virtual(cudnn::kFloat, rows_));
    graph_.Pointwise(cudnn::kAdd, cudnn::kFloat, max, log_sum, lse_);
    const Node p = graph_.Pointwise(cudnn::kDiv, cudnn::kFloat, e, sum, graph_.Virtual(cudnn::kBFloat16, scores_));
    graph_.Matmul(p, v, out_, lengths_, nullptr, lengths_);
    return graph_.Build();
  }

  absl::StatusOr<std::unique_ptr<CudnnPlan>> Backward() {
    const Node v = HeadsTransposed(kIdV, kKv);
    const Node d_out = Heads(kIdDOut, heads_, kDOut);
    const Node sums = SoftmaxSums(d_out);
    Node s = Op(cudnn::kMul, Product(q_, k_), scale_);
    const Node p = Op(cudnn::kExp, Masked(Op(cudnn::kSub, s, lse_)));
    FullHeads(Transposed(p), d_out, kIdFullDv, kIdDv);
    Node dp = Product(d_out, v);
    dp = Op(cudnn::kMul, Op(cudnn::kMul, Op(cudnn::kSub, dp, sums), p), scale_);
    FullHeads(Transposed(dp), q_, kIdFullDk, kIdDk);
    const Node k = graph_.Reshape(k_, graph_.Virtual(cudnn::kFloat, HeadsShape(key_.kv_heads, key_.pitches[kKv]),
                                                     offsets_[kKv]));
    graph_.Matmul(dp, k, Heads(kIdDq, heads_, kDq), lengths_, nullptr, lengths_);
    return graph_.Build();
  }

 private:
  Shape HeadsShape(int64_t heads, int64_t pitch) const {
    return {{key_.batch, heads, key_.length, key_.head_dim}, {key_.length * pitch, key_.head_dim, pitch, 1}};
  }
  Node Heads(int64_t id, int64_t heads, Array array) {
    return graph_.Input(id, cudnn::kBFloat16, HeadsShape(heads, key_.pitches[array]), offsets_[array]);
  }
  Node HeadsTransposed(int64_t id, Array array) {
    const int64_t pitch = key_.pitches[array];
    return graph_.Input(id, cudnn::kBFloat16,
                        {{key_.batch, key_.kv_heads, key_.head_dim, key_.length},
                         {key_.length * pitch, key_.head_dim, 1, pitch}},
                        offsets_[array]);
  }
  Node Rows(int64_t id) {
    const int64_t pitch = key_.pitches[kLse];
    return graph_.Input(id, cudnn::kFloat, {{key_.batch, heads_, key_.length, 1}, {key_.length * pitch, 1, pitch, 1}},
                        offsets_[kLse]);
  }
  Node Op(cudnn::PointwiseMode mode, Node x, Node b = nullptr) {
    return graph_.Pointwise(mode, cudnn::kFloat, x, b, graph_.Virtual(cudnn::kFloat, scores_));
  }
  Node Product(Node a, Node b) {
    return graph_.Matmul(a, b, graph_.Virtual(cudnn::kFloat, scores_), lengths_, lengths_, nullptr);
  }
  Node Index(Node x, int64_t axis, cudnn::DataType type) {
    return graph_.Pointwise(cudnn::kGenIndex, type, x, nullptr, graph_.Virtual(type, scores_), nullptr, axis);
  }
  Node Compare(cudnn::PointwiseMode mode, Node x, Node b) {
    return graph_.Pointwise(mode, cudnn::kBoolean, x, b, graph_.Virtual(cudnn::kBoolean, scores_));
  }
  Node Select(Node x, int64_t other, Node predicate) {
    return graph_.Pointwise(cudnn::kSelect, cudnn::kFloat, x, graph_.HostValue(other),
                            graph_.Virtual(cudnn::kFloat, scores_), predicate);
  }
  // -infinity outside the document and above the diagonal.
  Node Masked(Node s) {
    const Node row = Index(s, 2, cudnn::kInt32), col = Index(s, 3, cudnn::kInt32);
    const Node inside = Compare(cudnn::kAnd, Compare(cudnn::kLess, row, lengths_), Compare(cudnn::kLess, col, lengths_));
    const Node padded = Select(s, kIdMinusInfinity, inside);
    const Node row2 = Index(padded, 2, cudnn::kFloat), col2 = Index(padded, 3, cudnn::kFloat);
    return Select(padded, kIdMinusInfinity2, Compare(cudnn::kGreaterOrEqual, row2, col2));
  }
  // d_out . out by row: what softmax's backward subtracts.
  Node SoftmaxSums(Node d_out) {
    const Shape dense = {{key_.batch, heads_, key_.length, key_.head_dim},
                         {heads_ * key_.length * key_.head_dim, key_.length * key_.head_dim, heads_ * key_.head_dim, 1}};
    const Node product =
        graph_.Pointwise(cudnn::kMul, cudnn::kFloat, d_out, out_, graph_.Virtual(cudnn::kFloat, dense));
    const Node sum = graph_.Reduce(cudnn::kReduceAdd, product, graph_.Virtual(cudnn::kFloat, rows_));
    return graph_.Pointwise(cudnn::kMul, cudnn::kFloat, sum, graph_.HostValue(kIdOne), Rows(kIdSoftmaxSum));
  }
  Node Transposed(Node x) {
    const Shape t = {{key_.batch, heads_, key_.length, key_.length},
                     {heads_ * key_.length * key_.length, key_.length * key_.length, 1, key_.length}};
    return graph_.Reshape(x, graph_.Virtual(cudnn::kBFloat16, t));
  }
  // One product per query head, then the sum over the heads that share a key-value head.
  void FullHeads(Node scores_t, Node rows, int64_t full_id, int64_t id) {
    const Node d = Heads(id, key_.kv_heads, kDkv);
    if (key_.group == 1) {
      graph_.Matmul(scores_t, rows, d, lengths_, nullptr, lengths_);
      return;
    }
    const Node full = graph_.Input(full_id, key_.float_full ? cudnn::kFloat : cudnn::kBFloat16,
                                   HeadsShape(heads_, key_.pitches[kFull]), offsets_[kFull]);
    graph_.Matmul(scores_t, rows, full, lengths_, nullptr, lengths_);
    graph_.Reduce(cudnn::kReduceAdd, full, d);
  }

  const CudnnAttention::PlanKey key_;
  const int64_t heads_;
  CudnnGraph graph_;
  std::array<Node, 8> offsets_{};
  Shape scores_{}, rows_{};
  Node lengths_ = nullptr, scale_ = nullptr, q_ = nullptr, k_ = nullptr, out_ = nullptr, lse_ = nullptr;
};

bool Aligned(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.pitch % 8 == 0; }

// Hands out parts of the caller's workspace.
class Workspace {
 public:
  Workspace(void* base, uint64_t bytes, uint64_t used) : base_(static_cast<char*>(base)), bytes_(bytes), used_(used) {}
  void* Take(uint64_t bytes) {
    void* at = base_ + used_;
    used_ += CudnnAligned(bytes);
    HONE_CHECK(used_ <= bytes_, "attention's workspace of ", bytes_, " bytes is too small: ", used_);
    return at;
  }

 private:
  char* base_;
  uint64_t bytes_, used_;
};

void* At(Tensor t, int64_t column) { return static_cast<char*>(t.data) + column * BlockBytes(t.dtype); }

struct HostValues {
  float scale, one = 1, minus_infinity = -INFINITY;
};

// The bindings that both directions share; `head`: the first query head, `kv_head` its key-value head.
std::vector<CudnnPlan::Binding> Bindings(const CudnnCall& call, char* workspace, HostValues& values, bool backward,
                                         bool full) {
  std::vector<CudnnPlan::Binding> b;
  b.reserve(24);
  char* offsets = workspace + call.offsets_at;
  const int64_t stride = (call.batch + 2) / 2 * 2 * 8;
  for (int64_t i = 0; i < kCudnnOffsetArrays; ++i) {
    const bool used = backward ? i != kFull || full : i == kQ || i == kKv || i == kOut || i == kLse;
    if (used) b.push_back({kIdOffsets + i, offsets + i * stride});
  }
  b.push_back({kIdLengths, offsets + kCudnnOffsetArrays * stride});
  b.push_back({kIdScale, &values.scale});
  b.push_back({kIdMinusInfinity, &values.minus_infinity});
  b.push_back({kIdMinusInfinity2, &values.minus_infinity});
  if (backward) b.push_back({kIdOne, &values.one});
  return b;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudnnAttention>> CudnnAttention::Open(uint64_t cudnn_bytes, std::string_view cache) {
  int device = 0, major = 0, minor = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return FailedPrecondition("cuDNN attention: no device");
  }
  if (major != 9 || minor != 0) {
    return FailedPrecondition("cuDNN attention is used on compute capability 9.0; this card has ", major, ".", minor);
  }
  HONE_ASSIGN_OR_RETURN(auto library, CudnnLibrary::Open());
  std::string folder;
  if (!cache.empty()) {
    folder = StrCat(cache, "/cudnn-", library->version(), "-sm", major, minor, "-", processors);
    if (!MakeDirectories(folder).ok()) folder.clear();  // plans are then made anew
  }
  return std::unique_ptr<CudnnAttention>(new CudnnAttention(std::move(library), cudnn_bytes, std::move(folder)));
}

bool CudnnAttention::Supports(Tensor q, Tensor k, Tensor v, const Segments& segments,
                              const AttentionShape& shape) const {
  if (q.dtype != DType::kBF16 || shape.softcap != 0 || shape.window != 0) return false;
  if (shape.head_dim != 64 && shape.head_dim != 96 && shape.head_dim != 128) return false;
  if (q.rows != k.rows || k.pitch != v.pitch || !Aligned(q) || !Aligned(k) || !Aligned(v)) return false;
  int64_t row = 0, longest = 0;
  for (const Segment& s : segments.host) {
    if (s.prefix_len != 0 || s.kv_len != s.q_len || s.kv0 != s.q0 || s.q0 != row) return false;
    row += s.q_len;
    longest = std::max<int64_t>(longest, s.q_len);
  }
  return row > 0 && CudnnCallShapeFor(shape.heads, shape.kv_heads, CudnnLengthClass(longest), cudnn_bytes_).batch > 0;
}

uint64_t CudnnAttention::WorkspaceBytes(const Segments& segments, const AttentionShape& shape, int64_t tokens) const {
  int64_t longest = 0;
  for (const Segment& s : segments.host) longest = std::max<int64_t>(longest, s.q_len);
  return CudnnAttentionWorkspaceBytes(shape.heads, shape.kv_heads, shape.head_dim, longest, tokens,
                                      static_cast<int64_t>(segments.host.size()), cudnn_bytes_);
}

absl::StatusOr<const CudnnPlan*> CudnnAttention::PlanFor(const PlanKey& key) {
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second.get();
  const std::string path = PathOf(key);
  std::unique_ptr<CudnnPlan> plan;
  if (!path.empty()) plan = CudnnPlan::Load(*library_, path);
  if (plan == nullptr) {
    GraphMaker maker(*library_, key);
    HONE_ASSIGN_OR_RETURN(plan, key.backward ? maker.Backward() : maker.Forward());
    ++compiled_;
    if (!path.empty()) plan->Save(path);
  }
  return plans_.emplace(key, std::move(plan)).first->second.get();
}

std::string CudnnAttention::PathOf(const PlanKey& key) const {
  if (folder_.empty()) return "";
  std::string name = StrCat(folder_, "/attention-", key.backward ? "backward" : "forward", "-b", key.batch, "-t",
                            key.length, "-h", key.kv_heads, "x", key.group, "-d", key.head_dim);
  for (const int64_t pitch : key.pitches) name += StrCat("-", pitch);
  return StrCat(name, key.float_full ? "-f32" : "", ".json");
}

absl::Status CudnnAttention::Forward(Tensor q, Tensor k, Tensor v, const Segments& segments,
                                     const AttentionShape& shape, Tensor out, Tensor lse, void* workspace,
                                     uint64_t workspace_bytes, cudaStream_t stream) {
  const auto calls = CudnnCalls(segments.host, shape.heads, shape.kv_heads, cudnn_bytes_, least_batch_);
  const int64_t group = shape.heads / shape.kv_heads;
  PlanKey key{.backward = false, .group = group, .head_dim = shape.head_dim};
  key.pitches[kQ] = q.pitch, key.pitches[kKv] = k.pitch, key.pitches[kOut] = out.pitch, key.pitches[kLse] = lse.pitch;
  CudnnOffsets(segments.device, calls, key.pitches, workspace, stream);
  HostValues values{.scale = shape.scale};
  for (const CudnnCall& call : calls) {
    key.batch = call.batch, key.length = call.length, key.kv_heads = call.kv_heads;
    HONE_ASSIGN_OR_RETURN(const CudnnPlan* plan, PlanFor(key));
    Workspace space(workspace, workspace_bytes, CudnnOffsetsEnd(calls));
    void* scratch = space.Take(plan->workspace_bytes());
    for (int64_t kv = 0; kv < shape.kv_heads; kv += call.kv_heads) {
      auto b = Bindings(call, static_cast<char*>(workspace), values, false, false);
      const int64_t column = kv * group * shape.head_dim;
      b.push_back({kIdQ, At(q, column)});
      b.push_back({kIdK, At(k, kv * shape.head_dim)});
      b.push_back({kIdV, At(v, kv * shape.head_dim)});
      b.push_back({kIdOut, At(out, column)});
      b.push_back({kIdLse, At(lse, kv * group)});
      HONE_RETURN_IF_ERROR(plan->Run(b, scratch, stream));
    }
  }
  return absl::OkStatus();
}

absl::Status CudnnAttention::Backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                                      const Segments& segments, const AttentionShape& shape, Tensor dq, Tensor dk,
                                      Tensor dv, void* workspace, uint64_t workspace_bytes, cudaStream_t stream) {
  const auto calls = CudnnCalls(segments.host, shape.heads, shape.kv_heads, cudnn_bytes_, least_batch_);
  const int64_t group = shape.heads / shape.kv_heads;
  int64_t rows = 0;  // of documents; the rest has no gradient
  for (const Segment& s : segments.host) rows += s.q_len;
  for (const Tensor& t : {dq, dk, dv}) {
    if (rows == t.rows) continue;
    const Tensor rest = t.Rows(rows, t.rows - rows);
    cudaMemset2DAsync(rest.data, static_cast<size_t>(rest.pitch * 2), 0, static_cast<size_t>(rest.cols * 2),
                      static_cast<size_t>(rest.rows), stream);
  }
  PlanKey key{.backward = true, .group = group, .head_dim = shape.head_dim, .float_full = float_full_};
  for (const CudnnCall& call : calls) {
    key.batch = call.batch, key.length = call.length, key.kv_heads = call.kv_heads;
    const int64_t full_pitch = call.kv_heads * group * shape.head_dim;
    key.pitches = {q.pitch, k.pitch, out.pitch, d_out.pitch, lse.pitch, dq.pitch, dk.pitch, full_pitch};
    auto steps = key.pitches;
    steps[kFull] /= group;  // cuDNN multiplies these offsets by the group
    CudnnOffsets(segments.device, {&call, 1}, steps, workspace, stream);
    HONE_ASSIGN_OR_RETURN(const CudnnPlan* plan, PlanFor(key));
    Workspace space(workspace, workspace_bytes, CudnnOffsetsEnd(calls));
    void* sums = space.Take(static_cast<uint64_t>(q.rows * lse.pitch) * 4);
    const uint64_t full_bytes = static_cast<uint64_t>(q.rows * full_pitch) * (float_full_ ? 4 : 2);
    void* full_dk = space.Take(group == 1 ? 0 : full_bytes);
    void* full_dv = space.Take(group == 1 ? 0 : full_bytes);
    void* scratch = space.Take(plan->workspace_bytes());
    HostValues values{.scale = shape.scale};
    for (int64_t kv = 0; kv < shape.kv_heads; kv += call.kv_heads) {
      auto b = Bindings(call, static_cast<char*>(workspace), values, true, group > 1);
      const int64_t column = kv * group * shape.head_dim, kv_column = kv * shape.head_dim;
      b.push_back({kIdQ, At(q, column)});
      b.push_back({kIdK, At(k, kv_column)});
      b.push_back({kIdV, At(v, kv_column)});
      b.push_back({kIdOut, At(out, column)});
      b.push_back({kIdDOut, At(d_out, column)});
      b.push_back({kIdLse, At(lse, kv * group)});
      b.push_back({kIdDq, At(dq, column)});
      b.push_back({kIdDk, At(dk, kv_column)});
      b.push_back({kIdDv, At(dv, kv_column)});
      b.push_back({kIdSoftmaxSum, sums});
      if (group > 1) b.push_back({kIdFullDk, full_dk});
      if (group > 1) b.push_back({kIdFullDv, full_dv});
      HONE_RETURN_IF_ERROR(plan->Run(b, scratch, stream));
    }
  }
  return absl::OkStatus();
}

}  // namespace hone::cuda
