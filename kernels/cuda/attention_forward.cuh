// The forward pass on tensor cores (FlashAttention-2, arXiv 2307.08691, algorithm 1): a block owns kRows queries of one
// head and walks over its keys in ascending order; a warp owns MT x 16 queries, whose scores, probabilities and outputs
// stay in its registers. Included by one .cu file per head dimension.
#pragma once

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scores.cuh"
#include "kernels/cuda/attention_softmax.cuh"

namespace hone::cuda::mma {

template <int kD, int kMT, int kWarps, int kKeys, int kBlocksPerSm>
struct ForwardTiles {
  static constexpr int D = kD, MT = kMT, Warps = kWarps, Keys = kKeys, BlocksPerSm = kBlocksPerSm;
  static constexpr int kThreads = Warps * 32, kWarpRows = MT * 16, kRows = Warps * kWarpRows;
  static constexpr int kStageBytes = 2 * Tile<D>::Bytes(Keys), kQBytes = Tile<D>::Bytes(kRows);
  static constexpr int kSharedBytes = kQBytes + 2 * kStageBytes;
};

// The warp's queries against the first N16 x 16 keys of a tile.
template <typename C, bool kMasked, int N16>
__device__ inline void ForwardStep(const LaneAddress<C::D>& q, uint32_t k_tile, uint32_t v_tile, int key,
                                   const Visible& visible, const Problem& problem, RunningSoftmax<C::MT>& softmax,
                                   float (&acc)[C::MT][C::D / 8][4]) {
  constexpr int MT = C::MT, D = C::D;
  float s[MT][2 * N16][4] = {};
  MultiplyRows<MT, N16, D / 16, D>(s, q, ColumnsAddress<D>(k_tile, 0));
  if (problem.cap_scale > 0) Cap(s, problem.cap_scale);
  if (kMasked) Mask(s, key, visible);
#pragma unroll
  for (int m = 0; m < MT; ++m) softmax.Update(m, s[m], acc[m], problem.exponent);
  uint32_t p[MT][N16][4];
  PackScores(s, p);
  MultiplyInto<MT, N16, D>(acc, p, RowsAddress<D>(v_tile, 0));
}

template <typename C>
__device__ inline void RunForwardBlock(const ForwardArgs& args) {
  constexpr int D = C::D, MT = C::MT;
  extern __shared__ __align__(128) uint8_t shared[];
  const Problem& problem = args.problem;
  const int queries = C::kRows / problem.pack, units = problem.heads / problem.pack;
  const int first_head = static_cast<int>(blockIdx.x) % units * problem.pack;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / units,
                               [&](const Segment& s) { return ForwardLevels(s, queries, problem.decode_most); });
  const Range s(problem.segments[tile.segment]);
  const int q_begin = (tile.level - tile.lo) * queries;
  const int kv_col = first_head / problem.group * problem.head_dim;
  const uint32_t q_tile = SharedAddress(shared), stages = q_tile + C::kQBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;

  const int first_seen = max(s.offset + q_begin - problem.window + 1, 0);
  const int key_begin = first_seen / C::Keys * C::Keys;
  const int key_end = min(s.keys, s.offset + q_begin + queries);
  const auto load = [&](int key, int stage) {
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    LoadKeys<D, C::Keys, C::kThreads>(k_tile, args.k, kv_col, problem.head_dim, s, key);
    LoadKeys<D, C::Keys, C::kThreads>(v_tile, args.v, kv_col, problem.head_dim, s, key);
    CommitCopies();
  };
  LoadHeads<D, C::kRows, C::kThreads>(q_tile, args.q, problem, first_head, s.q0 + q_begin, s.q_len - q_begin);
  load(key_begin, 0);

  const OwnQueries own(problem, PlaceOf(warp, C::Warps), C::kWarpRows, C::kRows, first_head, q_begin);
  const Visible visible{s.offset + own.begin, s.offset + own.begin + C::kWarpRows - 1, problem.window};
  const LaneAddress<D> q_address = RowsAddress<D>(q_tile, own.first);
  RunningSoftmax<MT> softmax;
  float acc[MT][D / 8][4] = {};
  int stage = 0;
  for (int key = key_begin; key < key_end; key += C::Keys, stage ^= 1) {
    WaitCopies<0>();
    __syncthreads();
    if (key + C::Keys < key_end) load(key + C::Keys, stage ^ 1);
    if (own.begin >= s.q_len || visible.None(key, C::Keys)) continue;
    const uint32_t k_tile = stages + stage * C::kStageBytes, v_tile = k_tile + C::kStageBytes / 2;
    constexpr int kN16 = C::Keys / 16;
    if (visible.All(key, C::Keys)) {
      ForwardStep<C, false, kN16>(q_address, k_tile, v_tile, key, visible, problem, softmax, acc);
    } else if (key + C::Keys / 2 > visible.last) {
      ForwardStep<C, true, kN16 / 2>(q_address, k_tile, v_tile, key, visible, problem, softmax, acc);
    } else {
      ForwardStep<C, true, kN16>(q_address, k_tile, v_tile, key, visible, problem, softmax, acc);
    }
  }

  float factor[MT][2];
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = WarpSum<4>(softmax.sum[m][half]);
      factor[m][half] = 1.0f / sum;
      const int query = own.begin + m * 16 + half * 8 + lane / 4;
      if (query < s.q_len && lane % 4 == 0) {
        *args.lse.At(s.q0 + query, own.head) = softmax.top[m][half] * problem.exponent * kLn2 + logf(sum);
      }
    }
  }
  StoreRows<D, MT>(q_tile, acc, factor, args.out, int64_t{s.q0} + own.begin - own.first,
                   s.q_len - own.begin + own.first, own.head * problem.head_dim, problem.head_dim, own.first);
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::BlocksPerSm) Forward(const __grid_constant__ ForwardArgs args) {
  if constexpr (C::MT == 1 || kLargeTilesRun) RunForwardBlock<C>(args);
}

template <typename C>
void LaunchForward(const ForwardArgs& args, HostSegments host, cudaStream_t stream) {
  static_assert(Fits<C>());
  const int queries = C::kRows / args.problem.pack, decode_most = args.problem.decode_most;
  LaunchTiles(
      Forward<C>, args, host, args.problem.heads / args.problem.pack,
      [=](const Segment& s) { return ForwardLevels(s, queries, decode_most); }, C::kThreads, C::kSharedBytes, stream);
}

}  // namespace hone::cuda::mma
