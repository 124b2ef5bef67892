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

// delta of a warp's own queries: Load starts reading their rows of out, Finish multiplies them with d_out's in the
// tile, writes delta to memory for the second half and returns it for the thread's rows. Eight lanes a row.
template <int D, int MT>
class OwnDelta {
 public:
  __device__ void Load(const View<bf16>& out, int64_t row0, int count, int col, int head_dim, int first) {
#pragma unroll
    for (int step = 0; step < MT * 4; ++step) {
      const int row = Row(step, first);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = i * 8 + Lane() % 8;
        out_[step][i] = make_uint4(0, 0, 0, 0);
        if (row < count && chunk * 8 < head_dim)
          out_[step][i] = *reinterpret_cast<const uint4*>(out.At(row0 + row, col + chunk * 8));
      }
    }
  }
  __device__ void Finish(uint32_t d_out_tile, const View<float>& delta, int64_t row0, int count, int head, int first,
                         float (&mine)[MT][2]) const {
#pragma unroll
    for (int step = 0; step < MT * 4; ++step) {
      const int row = Row(step, first);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int chunk = i * 8 + Lane() % 8;
        if (chunk >= Tile<D>::kChunks) continue;
        uint4 x;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(d_out_tile + Tile<D>::Offset(row, chunk))
                     : "memory");
        sum += Dot(x, out_[step][i]);
      }
      sum = WarpSum<8>(sum);
      if (row < count && Lane() % 8 == 0) *delta.At(row0 + row, head) = sum;
      // These four rows are wanted by the lanes whose g = lane / 4 is (4 step) % 8 .. + 3.
      const float wanted = __shfl_sync(~0u, sum, Lane() / 4 % 4 * 8);
      if (Lane() / 16 == step % 2) mine[step / 4][step / 2 % 2] = wanted;
    }
  }

 private:
  static constexpr int kChunks = (Tile<D>::kChunks + 7) / 8;
  __device__ static int Lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int Row(int step, int first) { return first + step * 4 + Lane() / 8; }
  uint4 out_[MT * 4][kChunks];
};

template <typename C, bool kMasked>
__device__ inline void QueryGradientStep(const LaneAddress<C::D>& q, const LaneAddress<C::D>& d_out, uint32_t k_tile,
                                         uint32_t v_tile, int key, const Visible& visible, const Problem& problem,
                                         const float (&lse2)[C::MT][2], const float (&delta)[C::MT][2],
                                         float (&acc)[C::MT][C::D / 8][4]) {
  constexpr int MT = C::MT, D = C::D, kN = C::Keys / 8;
  float s[MT][kN][4] = {}, dp[MT][kN][4] = {};
  MultiplyRows<MT, kN / 2, D / 16, D>(s, q, ColumnsAddress<D>(k_tile, 0));
  MultiplyRows<MT, kN / 2, D / 16, D>(dp, d_out, ColumnsAddress<D>(v_tile, 0));
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
  MultiplyInto<MT, kN / 2, D>(acc, ds, RowsAddress<D>(k_tile, 0));
}

template <typename C>
__device__ inline void RunQueryGradientBlock(const BackwardArgs& args) {
  constexpr int D = C::D, MT = C::MT;
  extern __shared__ __align__(128) uint8_t shared[];
  const Problem& problem = args.problem;
  const int queries = C::kRows / problem.pack, units = problem.heads / problem.pack;
  const int first_head = static_cast<int>(blockIdx.x) % units * problem.pack;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / units,
                               [&](const Segment& s) { return QueryLevels(s, queries); });
  const Range s(problem.segments[tile.segment]);
  const int q_begin = (tile.level - tile.lo) * queries;
  const int kv_col = first_head / problem.group * problem.head_dim;
  const uint32_t q_tile = SharedAddress(shared), do_tile = q_tile + C::kOwnBytes, stages = do_tile + C::kOwnBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

  const int first_seen = max(s.offset + q_begin - problem.window + 1, 0);
  const int key_begin = first_seen / C::Keys * C::Keys;
  const int key_end = min(s.keys, s.offset + q_begin + queries);
  const auto load = [&](int key, int stage) {
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    LoadKeys<D, C::Keys, C::kThreads>(k_tile, args.k, kv_col, problem.head_dim, s, key);
    LoadKeys<D, C::Keys, C::kThreads>(v_tile, args.v, kv_col, problem.head_dim, s, key);
    CommitCopies();
  };
  LoadHeads<D, C::kRows, C::kThreads>(do_tile, args.d_out, problem, first_head, s.q0 + q_begin, s.q_len - q_begin);
  CommitCopies();
  LoadHeads<D, C::kRows, C::kThreads>(q_tile, args.q, problem, first_head, s.q0 + q_begin, s.q_len - q_begin);
  load(key_begin, 0);

  const OwnQueries own(problem, PlaceOf(warp, C::Warps), C::kWarpRows, C::kRows, first_head, q_begin);
  // Where the tile's row 0 would lie if all its rows were of the warp's head, and how many rows there are from there.
  const int64_t row0 = int64_t{s.q0} + own.begin - own.first;
  const int count = s.q_len - own.begin + own.first;
  OwnDelta<D, MT> own_delta;
  own_delta.Load(args.out, row0, count, own.head * problem.head_dim, problem.head_dim, own.first);
  float lse2[MT][2] = {}, delta[MT][2] = {};
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = own.first + m * 16 + half * 8 + lane / 4;
      if (row < count) lse2[m][half] = *args.lse.At(row0 + row, own.head) * kLog2E;
    }
  }
  WaitCopies<1>();
  __syncthreads();
  own_delta.Finish(do_tile, args.delta, row0, count, own.head, own.first, delta);

  const Visible visible{s.offset + own.begin, s.offset + own.begin + C::kWarpRows - 1, problem.window};
  const LaneAddress<D> q_address = RowsAddress<D>(q_tile, own.first);
  const LaneAddress<D> do_address = RowsAddress<D>(do_tile, own.first);
  float acc[MT][D / 8][4] = {};
  int stage = 0;
  for (int key = key_begin; key < key_end; key += C::Keys, stage ^= 1) {
    WaitCopies<0>();
    __syncthreads();
    if (key + C::Keys < key_end) load(key + C::Keys, stage ^ 1);
    if (own.begin >= s.q_len || visible.None(key, C::Keys)) continue;
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    if (visible.All(key, C::Keys)) {
      QueryGradientStep<C, false>(q_address, do_address, k_tile, v_tile, key, visible, problem, lse2, delta, acc);
    } else {
      QueryGradientStep<C, true>(q_address, do_address, k_tile, v_tile, key, visible, problem, lse2, delta, acc);
    }
  }
  float factor[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m) factor[m][0] = factor[m][1] = problem.scale;
  StoreRows<D, MT>(q_tile, acc, factor, args.dq, row0, count, own.head * problem.head_dim, problem.head_dim, own.first);
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::BlocksPerSm)
    QueryGradient(const __grid_constant__ BackwardArgs args) {
  if constexpr (C::MT == 1 || kLargeTilesRun) RunQueryGradientBlock<C>(args);
}

template <typename C>
void LaunchQueryGradient(const BackwardArgs& args, HostSegments host, cudaStream_t stream) {
  static_assert(Fits<C>());
  const int queries = C::kRows / args.problem.pack;
  LaunchTiles(
      QueryGradient<C>, args, host, args.problem.heads / args.problem.pack,
      [=](const Segment& s) { return QueryLevels(s, queries); }, C::kThreads, C::kSharedBytes, stream);
}

}  // namespace hone::cuda::mma
