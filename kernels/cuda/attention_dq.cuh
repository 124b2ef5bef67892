// The backward pass, first half: delta = d_out . out and dq (FlashAttention-2, arXiv 2307.08691, algorithm 2, with the
// loops exchanged). A block owns kRows queries of one head and walks over its keys in ascending order, computing the
// scores once more: nothing is added to memory, so there are no atomics and no workspace.
#pragma once

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scores.cuh"

namespace hone::cuda::mma {

template <int kD, int kMT, int kWarps, int kKeys, int kBlocksPerSm>
struct QueryGradientTiles {
  static constexpr int D = kD, MT = kMT, Warps = kWarps, Keys = kKeys, BlocksPerSm = kBlocksPerSm;
  static constexpr int kThreads = Warps * 32, kWarpRows = MT * 16, kRows = Warps * kWarpRows;
  static constexpr int kStageBytes = 2 * Tile<D>::Bytes(Keys), kOwnBytes = Tile<D>::Bytes(kRows);
  static constexpr int kSharedBytes = 2 * kOwnBytes + 2 * kStageBytes;
};

__device__ inline float Dot(const uint4& a, const uint4& b) {
  const __nv_bfloat162* x = reinterpret_cast<const __nv_bfloat162*>(&a);
  const __nv_bfloat162* y = reinterpret_cast<const __nv_bfloat162*>(&b);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = __bfloat1622float2(x[i]), v = __bfloat1622float2(y[i]);
    sum += u.x * v.x + u.y * v.y;
  }
  return sum;
}

// delta of a warp's own queries, whose d_out lies in the tile: written to memory for the second half, and returned for
// the thread's rows. Eight lanes a row.
template <int D, int MT, typename RowOf>
__device__ inline void OwnDelta(uint32_t tile, const BackwardArgs& args, int64_t row0, int count, int head,
                                RowOf row_of, float (&mine)[MT][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, head_dim = args.problem.head_dim;
#pragma unroll
  for (int step = 0; step < MT * 4; ++step) {
    const int row = row_of(step / 4) + step % 4 * 4 + lane / 8;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < (D / 8 + 7) / 8; ++i) {
      const int chunk = i * 8 + lane % 8;
      if (row >= count || chunk * 8 >= head_dim) continue;
      uint4 x;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(tile + Tile<D>::Offset(row, chunk))
                   : "memory");
      sum += Dot(x, *reinterpret_cast<const uint4*>(args.out.At(row0 + row, int64_t{head} * head_dim + chunk * 8)));
    }
    sum = WarpSum<8>(sum);
    if (row < count && lane % 8 == 0) *args.delta.At(row0 + row, head) = sum;
    // These four rows are wanted by the lanes whose g = lane / 4 is (4 step) % 8 .. + 3.
    const float wanted = __shfl_sync(~0u, sum, lane / 4 % 4 * 8);
    if (lane / 16 == step % 2) mine[step / 4][step / 2 % 2] = wanted;
  }
}

template <typename C, bool kMasked>
__device__ inline void QueryGradientStep(const LaneAddress<C::D>& q, const LaneAddress<C::D>& d_out, uint32_t stride,
                                         uint32_t k_tile, uint32_t v_tile, int key, const Visible<C::MT>& visible,
                                         const Problem& problem, const float (&lse2)[C::MT][2],
                                         const float (&delta)[C::MT][2], float (&acc)[C::MT][C::D / 8][4]) {
  constexpr int MT = C::MT, D = C::D, kN = C::Keys / 8;
  const auto use = [&](int m, int n) { return !kMasked || !visible.None(m, key + n * 16, 16); };
  float s[MT][kN][4] = {}, dp[MT][kN][4] = {};
  MultiplyRows<MT, kN / 2, D / 16, D>(s, q, stride, ColumnsAddress<D>(k_tile, 0), use);
  MultiplyRows<MT, kN / 2, D / 16, D>(dp, d_out, stride, ColumnsAddress<D>(v_tile, 0), use);
  const bool capped = problem.cap_scale > 0;
  if (capped) {
    Cap(s, problem.cap_scale);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) dp[m][n][i] = (dp[m][n][i] - delta[m][i / 2]) * (1.0f - s[m][n][i] * s[m][n][i]);
      }
    }
  }
  if (kMasked) Mask(s, key, visible);
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    if (kMasked && visible.None(m, key, C::Keys)) continue;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = Exp2(s[m][n][i] * problem.exponent - lse2[m][i / 2]);
        s[m][n][i] = p * (capped ? dp[m][n][i] : dp[m][n][i] - delta[m][i / 2]);
      }
    }
  }
  uint32_t ds[MT][kN / 2][4];
  PackScores(s, ds);
  MultiplyInto<MT, kN / 2, D>(acc, ds, RowsAddress<D>(k_tile, 0), use);
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::BlocksPerSm)
    QueryGradient(const __grid_constant__ BackwardArgs args) {
  constexpr int D = C::D, MT = C::MT;
  extern __shared__ __align__(128) uint8_t shared[];
  const Problem& problem = args.problem;
  const int head = static_cast<int>(blockIdx.x) % problem.heads;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / problem.heads,
                               [](const Segment& s) { return QueryLevels(s, C::kRows); });
  const Range s(problem.segments[tile.segment]);
  const int q_begin = (tile.level - tile.lo) * C::kRows;
  const int q_col = head * problem.head_dim, kv_col = head / problem.group * problem.head_dim;
  const uint32_t q_tile = SharedAddress(shared), do_tile = q_tile + C::kOwnBytes, stages = do_tile + C::kOwnBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  const int first_seen = max(s.offset + q_begin - problem.window + 1, 0);
  const int key_begin = first_seen / C::Keys * C::Keys;
  const int key_end = min(s.keys, s.offset + q_begin + C::kRows);
  const auto load = [&](int key, int stage) {
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    const auto row_of = [&](int r) { return s.KeyRow(key + r); };
    LoadTile<D, C::Keys, C::kThreads>(k_tile, args.k, kv_col, problem.head_dim, s.keys - key, row_of);
    LoadTile<D, C::Keys, C::kThreads>(v_tile, args.v, kv_col, problem.head_dim, s.keys - key, row_of);
    CommitCopies();
  };
  const auto query_row = [&](int r) { return s.q0 + q_begin + r; };
  LoadTile<D, C::kRows, C::kThreads>(do_tile, args.d_out, q_col, problem.head_dim, s.q_len - q_begin, query_row);
  CommitCopies();
  LoadTile<D, C::kRows, C::kThreads>(q_tile, args.q, q_col, problem.head_dim, s.q_len - q_begin, query_row);
  load(key_begin, 0);

  const auto own_row = [&](int m) { return RowOfWarp<MT, C::Warps>(warp, m); };
  float lse2[MT][2] = {}, delta[MT][2] = {};
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = q_begin + own_row(m) + half * 8 + lane / 4;
      if (query < s.q_len) lse2[m][half] = *args.lse.At(s.q0 + query, head) * kLog2E;
    }
  }
  WaitCopies<1>();
  __syncthreads();
  OwnDelta<D, MT>(do_tile, args, int64_t{s.q0} + q_begin, s.q_len - q_begin, head, own_row, delta);

  const Visible<MT> visible(s.offset, q_begin, s.q_len, problem.window, own_row);
  const LaneAddress<D> q_address = RowsAddress<D>(q_tile, own_row(0));
  const LaneAddress<D> do_address = RowsAddress<D>(do_tile, own_row(0));
  const uint32_t stride = (own_row(MT - 1) - own_row(0)) * Tile<D>::kRowBytes;
  float acc[MT][D / 8][4] = {};
  int stage = 0;
  for (int key = key_begin; key < key_end; key += C::Keys, stage ^= 1) {
    WaitCopies<0>();
    __syncthreads();
    if (key + C::Keys < key_end) load(key + C::Keys, stage ^ 1);
    if (visible.None(key, C::Keys)) continue;
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    if (visible.All(key, C::Keys)) {
      QueryGradientStep<C, false>(q_address, do_address, stride, k_tile, v_tile, key, visible, problem, lse2, delta,
                                  acc);
    } else {
      QueryGradientStep<C, true>(q_address, do_address, stride, k_tile, v_tile, key, visible, problem, lse2, delta,
                                 acc);
    }
  }
  float factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) factor[m][0] = factor[m][1] = problem.scale;
  StoreRows<D, MT>(q_tile, acc, factor, args.dq, int64_t{s.q0} + q_begin, s.q_len - q_begin, q_col, problem.head_dim,
                   own_row);
}

template <typename C>
void LaunchQueryGradient(const BackwardArgs& args, HostSegments host, cudaStream_t stream) {
  LaunchTiles(
      QueryGradient<C>, args, host, args.problem.heads, [](const Segment& s) { return QueryLevels(s, C::kRows); },
      C::kThreads, C::kSharedBytes, stream);
}

}  // namespace hone::cuda::mma
