// Attention over segments, forward and backward, in plain fp32 arithmetic: correct, deterministic and without any
// workspace, not fast (no tensor cores). It is what faster kernels are checked against on the card. No atomics: a
// thread owns what it sums, in ascending order of position inside the segment, so a document's results do not depend on
// what it is packed with.
//
// A segment's keys are numbered 0 .. prefix_len + kv_len: first the prefix, then its own. With offset = prefix_len +
// kv_len - q_len, query i stands at position offset + i and sees the keys at (position - window, position].
//
// Forward and dQ: a warp owns kOwn queries; for each tile of 32 keys a lane scores one key, then owns the columns lane
// + 32 j. dK and dV: the same with queries and keys exchanged. (FlashAttention-2, arXiv 2307.08691, algorithms 1
// and 2.)
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTile = 32;

// Rows a warp owns; C columns of 32 a lane. At head dimensions above 128 shared memory (99 KiB on sm_86) allows two.
template <int C>
inline constexpr int kOwn = C == 8 ? 2 : 4;

template <int N>
struct alignas(4 * N) Pack {
  float v[N];
};

struct Shape {
  int heads, group, head_dim;  // group: query heads of one kv head
  float scale, softcap;
  int64_t window;
};

struct Range {
  int q0, q_len, kv0, prefix0, prefix_len, keys, offset;
  __device__ explicit Range(const Segment& s)
      : q0(s.q0),
        q_len(s.q_len),
        kv0(s.kv0),
        prefix0(s.prefix0),
        prefix_len(s.prefix_len),
        keys(s.prefix_len + s.kv_len),
        offset(s.prefix_len + s.kv_len - s.q_len) {}
  __device__ int64_t KeyRow(int key) const { return key < prefix_len ? prefix0 + key : kv0 + (key - prefix_len); }
  // The number of a row of k and v among this segment's keys; -1: it is not one of them.
  __device__ int KeyOfRow(int64_t row) const {
    if (row >= kv0 && row < int64_t{kv0} + keys - prefix_len) return prefix_len + static_cast<int>(row - kv0);
    if (row >= prefix0 && row < int64_t{prefix0} + prefix_len) return static_cast<int>(row - prefix0);
    return -1;
  }
  __device__ bool Sees(int query, int key, int64_t window) const {
    const int position = offset + query;
    return query < q_len && key >= 0 && key <= position && (window == 0 || int64_t{key} > position - window);
  }
};

__device__ inline float Score(float dot, const Shape& shape) {
  const float s = dot * shape.scale;
  return shape.softcap > 0 ? shape.softcap * tanhf(s / shape.softcap) : s;
}
// d score / d dot
__device__ inline float ScoreSlope(float score, const Shape& shape) {
  const float t = shape.softcap > 0 ? score / shape.softcap : 0.0f;
  return shape.scale * (1.0f - t * t);
}

__host__ __device__ inline int TilePitch(int head_dim) {
  return head_dim | 1;
}  // odd: lanes on neighbouring rows, no conflict

// tile[r][d] <- row of the view for r < count, else 0.
template <typename T, typename RowOf>
__device__ inline void LoadTile(float* tile, const View<T>& source, int64_t col, int head_dim, int count,
                                RowOf row_of) {
  const int pitch = TilePitch(head_dim);
  for (int r = threadIdx.x / 32; r < kTile; r += kWarps) {
    const T* row = r < count ? source.At(row_of(r), col) : nullptr;
    for (int d = threadIdx.x % 32; d < head_dim; d += 32) tile[r * pitch + d] = row != nullptr ? ToFloat(row[d]) : 0.0f;
  }
}

// own[d].v[i] <- the warp's own rows, side by side so that one broadcast load serves all of them.
template <int N, typename T, typename RowOf>
__device__ inline void LoadOwn(Pack<N>* own, const View<T>& source, int64_t col, int head_dim, RowOf row_of) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int64_t row = row_of(i);
    for (int d = threadIdx.x % 32; d < head_dim; d += 32)
      own[d].v[i] = row >= 0 ? ToFloat(source.At(row, col)[d]) : 0.0f;
  }
}

// dots[i] <- own row i . row `lane` of the tile.
template <int N>
__device__ inline void Dots(const float* tile, const Pack<N>* own, int head_dim, float (&dots)[N]) {
  const float* row = tile + threadIdx.x % 32 * TilePitch(head_dim);
#pragma unroll
  for (int i = 0; i < N; ++i) dots[i] = 0;
#pragma unroll 4
  for (int d = 0; d < head_dim; ++d) {
    const float x = row[d];
    const Pack<N> mine = own[d];
#pragma unroll
    for (int i = 0; i < N; ++i) dots[i] += mine.v[i] * x;
  }
}

// sums[i][j] += sum over r of weights[r].v[i] * tile[r][lane + 32 j], r ascending.
template <int N, int C>
__device__ inline void Accumulate(const float* tile, const Pack<N>* weights, int head_dim, float (&sums)[N][C]) {
  const int lane = threadIdx.x % 32;
  for (int r = 0; r < kTile; ++r) {
    const Pack<N> weight = weights[r];
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const int d = lane + 32 * j;
      const float x = d < head_dim ? tile[r * TilePitch(head_dim) + d] : 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i][j] += weight.v[i] * x;
    }
  }
}

template <int N, int C, typename T>
__device__ inline void StoreOwn(const View<T>& out, int64_t row, int64_t col, int head_dim, const float (&values)[N][C],
                                int i, float factor) {
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const int d = threadIdx.x % 32 + 32 * j;
    if (d < head_dim) out.At(row, col)[d] = FromFloat<T>(values[i][j] * factor);
  }
}

// The first tile of keys that any query of [q_begin, q_end) sees; tiles are counted from the segment's first key.
__device__ inline int FirstKeyTile(const Range& s, int q_begin, int64_t window) {
  const int64_t first = window == 0 ? 0 : int64_t{s.offset} + q_begin - window + 1;
  return first <= 0 ? 0 : static_cast<int>(first / kTile * kTile);
}

template <int C, typename T>
__global__ void __launch_bounds__(kThreads) Forward(View<T> q, View<T> k, View<T> v, const Segment* segments, int tiles,
                                                    Shape shape, View<T> out, View<float> lse) {
  constexpr int N = kOwn<C>;
  const Range s(segments[blockIdx.x / tiles]);
  const int q_begin = static_cast<int>(blockIdx.x % tiles) * kWarps * N;
  if (q_begin >= s.q_len) return;
  extern __shared__ float4 shared[];
  const int pitch = TilePitch(shape.head_dim), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Pack<N>* own_q = reinterpret_cast<Pack<N>*>(shared) + warp * shape.head_dim;
  Pack<N>* weights = reinterpret_cast<Pack<N>*>(shared) + kWarps * shape.head_dim + warp * kTile;
  float* k_tile = reinterpret_cast<float*>(reinterpret_cast<Pack<N>*>(shared) + kWarps * (shape.head_dim + kTile));
  float* v_tile = k_tile + kTile * pitch;

  const int head = blockIdx.y, q_own = q_begin + warp * N;
  const int64_t q_col = int64_t{head} * shape.head_dim, kv_col = int64_t{head / shape.group} * shape.head_dim;
  LoadOwn<N>(own_q, q, q_col, shape.head_dim,
             [&](int i) { return q_own + i < s.q_len ? int64_t{s.q0} + q_own + i : -1; });
  float sums[N][C] = {}, max[N], total[N];
#pragma unroll
  for (int i = 0; i < N; ++i) max[i] = -INFINITY, total[i] = 0;

  const int end = min(s.keys, s.offset + min(q_begin + kWarps * N, s.q_len));
  for (int key0 = FirstKeyTile(s, q_begin, shape.window); key0 < end; key0 += kTile) {
    __syncthreads();
    const auto row_of = [&](int r) { return s.KeyRow(key0 + r); };
    LoadTile(k_tile, k, kv_col, shape.head_dim, min(kTile, s.keys - key0), row_of);
    LoadTile(v_tile, v, kv_col, shape.head_dim, min(kTile, s.keys - key0), row_of);
    __syncthreads();
    float dots[N];
    Dots<N>(k_tile, own_q, shape.head_dim, dots);
    Pack<N> p;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool seen = s.Sees(q_own + i, key0 + lane, shape.window);
      const float score = seen ? Score(dots[i], shape) : -INFINITY;
      const float new_max = fmaxf(max[i], WarpMax(score));
      const float keep = max[i] == -INFINITY ? 0.0f : expf(max[i] - new_max);
      p.v[i] = seen ? expf(score - new_max) : 0.0f;
      total[i] = total[i] * keep + p.v[i];
      max[i] = new_max;
#pragma unroll
      for (int j = 0; j < C; ++j) sums[i][j] *= keep;
    }
    __syncwarp();
    weights[lane] = p;
    __syncwarp();
    Accumulate<N, C>(v_tile, weights, shape.head_dim, sums);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float sum = WarpSum(total[i]);
    if (q_own + i >= s.q_len) continue;
    const int64_t row = int64_t{s.q0} + q_own + i;
    StoreOwn<N, C>(out, row, q_col, shape.head_dim, sums, i, 1.0f / sum);
    if (lane == 0) *lse.At(row, head) = max[i] + logf(sum);
  }
}

// delta[t, h] = d_out . out: the sum that softmax's backward subtracts. Only rows that segments name.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    Delta(View<T> d_out, View<T> out, const Segment* segments, int tiles, Shape shape, View<float> delta) {
  const Segment s = segments[blockIdx.x / tiles];
  const int query = static_cast<int>(blockIdx.x % tiles) * kWarps + threadIdx.x / 32;
  if (query >= s.q_len) return;
  const int64_t row = int64_t{s.q0} + query, col = int64_t{blockIdx.y} * shape.head_dim;
  float sum = 0;
  for (int d = threadIdx.x % 32; d < shape.head_dim; d += 32) {
    sum += ToFloat(d_out.At(row, col)[d]) * ToFloat(out.At(row, col)[d]);
  }
  sum = WarpSum(sum);
  if (threadIdx.x % 32 == 0) *delta.At(row, blockIdx.y) = sum;
}

template <int C, typename T>
__global__ void __launch_bounds__(kThreads)
    BackwardQ(View<T> d_out, View<T> q, View<T> k, View<T> v, View<float> lse, View<float> delta,
              const Segment* segments, int tiles, Shape shape, View<T> dq) {
  constexpr int N = kOwn<C>;
  const Range s(segments[blockIdx.x / tiles]);
  const int q_begin = static_cast<int>(blockIdx.x % tiles) * kWarps * N;
  if (q_begin >= s.q_len) return;
  extern __shared__ float4 shared[];
  const int pitch = TilePitch(shape.head_dim), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Pack<N>* packs = reinterpret_cast<Pack<N>*>(shared);
  Pack<N>* own_q = packs + warp * shape.head_dim;
  Pack<N>* own_do = packs + (kWarps + warp) * shape.head_dim;
  Pack<N>* weights = packs + 2 * kWarps * shape.head_dim + warp * kTile;
  float* k_tile = reinterpret_cast<float*>(packs + kWarps * (2 * shape.head_dim + kTile));
  float* v_tile = k_tile + kTile * pitch;

  const int head = blockIdx.y, q_own = q_begin + warp * N;
  const int64_t q_col = int64_t{head} * shape.head_dim, kv_col = int64_t{head / shape.group} * shape.head_dim;
  const auto own_row = [&](int i) { return q_own + i < s.q_len ? int64_t{s.q0} + q_own + i : -1; };
  LoadOwn<N>(own_q, q, q_col, shape.head_dim, own_row);
  LoadOwn<N>(own_do, d_out, q_col, shape.head_dim, own_row);
  float sums[N][C] = {}, row_lse[N], row_delta[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    row_lse[i] = own_row(i) >= 0 ? *lse.At(own_row(i), head) : 0.0f;
    row_delta[i] = own_row(i) >= 0 ? *delta.At(own_row(i), head) : 0.0f;
  }
  const int end = min(s.keys, s.offset + min(q_begin + kWarps * N, s.q_len));
  for (int key0 = FirstKeyTile(s, q_begin, shape.window); key0 < end; key0 += kTile) {
    __syncthreads();
    const auto row_of = [&](int r) { return s.KeyRow(key0 + r); };
    LoadTile(k_tile, k, kv_col, shape.head_dim, min(kTile, s.keys - key0), row_of);
    LoadTile(v_tile, v, kv_col, shape.head_dim, min(kTile, s.keys - key0), row_of);
    __syncthreads();
    float dots[N], dp[N];
    Dots<N>(k_tile, own_q, shape.head_dim, dots);
    Dots<N>(v_tile, own_do, shape.head_dim, dp);
    Pack<N> ds;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float score = Score(dots[i], shape);
      const float p = s.Sees(q_own + i, key0 + lane, shape.window) ? expf(score - row_lse[i]) : 0.0f;
      ds.v[i] = p == 0.0f ? 0.0f : p * (dp[i] - row_delta[i]) * ScoreSlope(score, shape);
    }
    __syncwarp();
    weights[lane] = ds;
    __syncwarp();
    Accumulate<N, C>(k_tile, weights, shape.head_dim, sums);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (own_row(i) >= 0) StoreOwn<N, C>(dq, own_row(i), q_col, shape.head_dim, sums, i, 1.0f);
  }
}

// One block owns kWarps * N rows of dk and dv for one kv head and visits every segment that names one of them.
template <int C, typename T>
__global__ void __launch_bounds__(kThreads)
    BackwardKv(View<T> d_out, View<T> q, View<T> k, View<T> v, View<float> lse, View<float> delta,
               const Segment* segments, int count, int64_t rows, Shape shape, View<T> dk, View<T> dv) {
  constexpr int N = kOwn<C>;
  extern __shared__ float4 shared[];
  const int pitch = TilePitch(shape.head_dim), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Pack<N>* packs = reinterpret_cast<Pack<N>*>(shared);
  Pack<N>* own_k = packs + warp * shape.head_dim;
  Pack<N>* own_v = packs + (kWarps + warp) * shape.head_dim;
  Pack<N>* p_weights = packs + 2 * kWarps * shape.head_dim + warp * kTile;
  Pack<N>* ds_weights = p_weights + kWarps * kTile;
  float* q_tile = reinterpret_cast<float*>(packs + 2 * kWarps * (shape.head_dim + kTile));
  float* do_tile = q_tile + kTile * pitch;

  const int64_t block_row = int64_t{blockIdx.x} * kWarps * N, own = block_row + warp * N;
  const int64_t kv_col = int64_t{blockIdx.y} * shape.head_dim;
  const auto own_row = [&](int i) { return own + i < rows ? own + i : int64_t{-1}; };
  LoadOwn<N>(own_k, k, kv_col, shape.head_dim, own_row);
  LoadOwn<N>(own_v, v, kv_col, shape.head_dim, own_row);
  float dk_sums[N][C] = {}, dv_sums[N][C] = {};
  for (int index = 0; index < count; ++index) {
    const Range s(segments[index]);
    int first = s.keys, last = -1;  // the block's rows among the segment's keys
    for (int r = 0; r < kWarps * N; ++r) {
      const int key = block_row + r < rows ? s.KeyOfRow(block_row + r) : -1;
      if (key >= 0) first = min(first, key), last = max(last, key);
    }
    if (last < 0) continue;
    int keys[N];
#pragma unroll
    for (int i = 0; i < N; ++i) keys[i] = own_row(i) >= 0 ? s.KeyOfRow(own + i) : -1;
    const int q_first = max(0, first - s.offset);
    const int64_t q_bound = shape.window == 0 ? s.q_len : int64_t{last} - s.offset + shape.window;
    const int q_end = static_cast<int>(q_bound < s.q_len ? q_bound : s.q_len);
    for (int head = blockIdx.y * shape.group; head < (static_cast<int>(blockIdx.y) + 1) * shape.group; ++head) {
      const int64_t q_col = int64_t{head} * shape.head_dim;
      for (int q_begin = q_first; q_begin < q_end; q_begin += kTile) {
        __syncthreads();
        const auto row_of = [&](int r) { return int64_t{s.q0} + q_begin + r; };
        LoadTile(q_tile, q, q_col, shape.head_dim, min(kTile, s.q_len - q_begin), row_of);
        LoadTile(do_tile, d_out, q_col, shape.head_dim, min(kTile, s.q_len - q_begin), row_of);
        __syncthreads();
        float dots[N], dp[N];
        Dots<N>(q_tile, own_k, shape.head_dim, dots);
        Dots<N>(do_tile, own_v, shape.head_dim, dp);
        const bool inside = q_begin + lane < s.q_len;
        const float row_lse = inside ? *lse.At(row_of(lane), head) : 0.0f;
        const float row_delta = inside ? *delta.At(row_of(lane), head) : 0.0f;
        Pack<N> p, ds;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float score = Score(dots[i], shape);
          p.v[i] = s.Sees(q_begin + lane, keys[i], shape.window) ? expf(score - row_lse) : 0.0f;
          ds.v[i] = p.v[i] == 0.0f ? 0.0f : p.v[i] * (dp[i] - row_delta) * ScoreSlope(score, shape);
        }
        __syncwarp();
        p_weights[lane] = p;
        ds_weights[lane] = ds;
        __syncwarp();
        Accumulate<N, C>(do_tile, p_weights, shape.head_dim, dv_sums);
        Accumulate<N, C>(q_tile, ds_weights, shape.head_dim, dk_sums);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (own_row(i) < 0) continue;
    StoreOwn<N, C>(dk, own_row(i), kv_col, shape.head_dim, dk_sums, i, 1.0f);
    StoreOwn<N, C>(dv, own_row(i), kv_col, shape.head_dim, dv_sums, i, 1.0f);
  }
}

size_t SharedBytes(int64_t head_dim, int own, int own_matrices, int weight_matrices) {
  const int64_t floats = kWarps * own * (own_matrices * head_dim + weight_matrices * kTile) +
                         int64_t{2} * kTile * TilePitch(static_cast<int>(head_dim));
  return static_cast<size_t>(floats) * 4;
}

template <typename Kernel>
Kernel* WithShared(Kernel* kernel, size_t bytes) {
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  return kernel;
}

// Calls f with the columns of 32 that cover head_dim.
template <typename F>
void WithColumns(int64_t head_dim, F&& f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 1>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 2>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

Shape Describe(const AttentionShape& shape) {
  return {static_cast<int>(shape.heads),
          static_cast<int>(shape.heads / shape.kv_heads),
          static_cast<int>(shape.head_dim),
          shape.scale,
          shape.softcap,
          shape.window};
}

int64_t LongestQueries(const Segments& segments) {
  int64_t longest = 0;
  for (const Segment& s : segments.host) longest = std::max<int64_t>(longest, s.q_len);
  return longest;
}

}  // namespace

void PlainAttention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
                    Tensor lse, cudaStream_t stream) {
  const int64_t longest = LongestQueries(segments);
  if (longest == 0) return;
  WithType(q.dtype, [&](auto t) {
    WithColumns(shape.head_dim, [&](auto columns) {
      using T = decltype(t);
      constexpr int C = decltype(columns)::value;
      const int tiles = static_cast<int>((longest + kWarps * kOwn<C> - 1) / (kWarps * kOwn<C>));
      const dim3 grid(static_cast<unsigned>(tiles * segments.host.size()), static_cast<unsigned>(shape.heads));
      const size_t bytes = SharedBytes(shape.head_dim, kOwn<C>, 1, 1);
      WithShared(Forward<C, T>, bytes)<<<grid, kThreads, bytes, stream>>>(
          View<T>(q), View<T>(k), View<T>(v), segments.device.as<Segment>(), tiles, Describe(shape), View<T>(out),
          View<float>(lse));
    });
  });
}

void PlainAttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                            const Segments& segments, const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk,
                            Tensor dv, cudaStream_t stream) {
  if (!dq.empty()) Fill(dq, 0, stream);
  if (k.rows == 0) return;
  const int64_t longest = LongestQueries(segments);
  const int count = static_cast<int>(segments.host.size());
  WithType(q.dtype, [&](auto t) {
    WithColumns(shape.head_dim, [&](auto columns) {
      using T = decltype(t);
      constexpr int C = decltype(columns)::value;
      constexpr int kRows = kWarps * kOwn<C>;
      const Segment* device_segments = segments.device.as<Segment>();
      const Shape s = Describe(shape);
      const View<float> lse_view(lse), delta_view(delta);
      if (longest > 0) {
        const int delta_tiles = static_cast<int>((longest + kWarps - 1) / kWarps);
        const dim3 delta_grid(static_cast<unsigned>(delta_tiles * count), static_cast<unsigned>(shape.heads));
        Delta<T><<<delta_grid, kThreads, 0, stream>>>(View<T>(d_out), View<T>(out), device_segments, delta_tiles, s,
                                                      delta_view);
        const int tiles = static_cast<int>((longest + kRows - 1) / kRows);
        const dim3 grid(static_cast<unsigned>(tiles * count), static_cast<unsigned>(shape.heads));
        const size_t bytes = SharedBytes(shape.head_dim, kOwn<C>, 2, 1);
        WithShared(BackwardQ<C, T>, bytes)<<<grid, kThreads, bytes, stream>>>(View<T>(d_out), View<T>(q), View<T>(k),
                                                                              View<T>(v), lse_view, delta_view,
                                                                              device_segments, tiles, s, View<T>(dq));
      }
      const dim3 kv_grid(static_cast<unsigned>((k.rows + kRows - 1) / kRows), static_cast<unsigned>(shape.kv_heads));
      const size_t bytes = SharedBytes(shape.head_dim, kOwn<C>, 2, 2);
      WithShared(BackwardKv<C, T>, bytes)<<<kv_grid, kThreads, bytes, stream>>>(
          View<T>(d_out), View<T>(q), View<T>(k), View<T>(v), lse_view, delta_view, device_segments, count, k.rows, s,
          View<T>(dk), View<T>(dv));
    });
  });
}

}  // namespace hone::cuda
