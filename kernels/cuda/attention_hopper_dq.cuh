// delta and dq by warpgroup products: see attention_hopper.cuh and, for rows, order and masks, attention_dq.cuh.
#pragma once

#include "kernels/cuda/attention_dq.cuh"
#include "kernels/cuda/attention_hopper.cuh"

namespace hone::cuda::hopper {

struct QueryTiles {
  static constexpr int kStages = 2;
  static constexpr int kBarriers = (2 + 2 * kStages) * kTileBytes;
  static constexpr int kSharedBytes = 1024 + kBarriers + Ring<kStages>::kBytes;
};

// delta of a warp's 16 rows from `first`, to memory for the gradient of keys and to the threads that hold the rows.
__device__ inline void OwnDeltas(const BackwardArgs& args, const Queries& own, int first, float (&mine)[2]) {
  const int head_dim = args.problem.head_dim, head = own.head(first);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int row = own.packed_row(first + step * 4 + Lane() / 8);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = (i * 8 + Lane() % 8) * 8;
      if (row < 0 || column >= head_dim) continue;
      sum += Dot(*reinterpret_cast<const uint4*>(args.d_out.At(row, head * head_dim + column)),
                 *reinterpret_cast<const uint4*>(args.out.At(row, head * head_dim + column)));
    }
    sum = WarpSum<8>(sum);
    if (row >= 0 && Lane() % 8 == 0) *args.delta.At(row, head) = sum;
    const float wanted = __shfl_sync(~0u, sum, Lane() / 4 % 4 * 8);
    if (Lane() / 16 == step % 2) mine[step / 2] = wanted;
  }
}

// With the first KEYS keys of a tile.
template <int KEYS>
__device__ inline void QueryGradientTile(uint32_t q_tile, uint32_t do_tile, uint32_t k_tile, uint32_t v_tile, int first,
                                         bool masked, int key, int position, const Problem& problem,
                                         const float (&lse2)[2], const float (&delta)[2], float (&acc)[64]) {
  float s[KEYS / 2], dp[KEYS / 2];
  Pin(s), Pin(dp);
  Arrive();
  ScoreProduct<kRows, kRows>(s, q_tile, first, k_tile);
  Commit();
  ScoreProduct<kRows, kRows>(dp, do_tile, first, v_tile);
  Commit();
  Wait<1>();
  Pin(s);
  if (masked) MaskKeys(s, key, position, problem.window);
#pragma unroll
  for (int i = 0; i < KEYS / 2; ++i) s[i] = Exp2(s[i] * problem.exponent - lse2[i / 2 % 2]);
  Wait<0>();
  Pin(dp);
  uint32_t ds[KEYS / 16][4];
#pragma unroll
  for (int n = 0; n < KEYS / 16; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (2 * n + i / 2) * 4 + i % 2 * 2;
      ds[n][i] = Pack(s[at] * (dp[at] - delta[i % 2]), s[at + 1] * (dp[at + 1] - delta[i % 2]));
    }
  }
  Arrive();
  ValueProduct<kRows>(acc, ds, k_tile);
  Commit();
  Wait<0>();
  Pin(acc);
}

__global__ void __launch_bounds__(kThreads, 1) QueryGradientHopper(const __grid_constant__ BackwardArgs args) {
  extern __shared__ uint8_t raw[];
  constexpr int kStages = QueryTiles::kStages;
  const uint32_t base = (SharedAddress(raw) + 1023) / 1024 * 1024;
  const Ring<kStages> ring{base + QueryTiles::kBarriers};
  const Problem& problem = args.problem;
  const int units = problem.heads / problem.pack, queries = kRows / problem.pack;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / units,
                               [&](const Segment& s) { return QueryLevels(s, queries); });
  const Queries own(problem, tile, static_cast<int>(blockIdx.x) % units);
  if (threadIdx.x == 0) ring.Init();
  __syncthreads();
  const int group = GroupIndex();
  if (group == kGroups) {
    GiveRegisters<kCopyRegisters>();
    const View<bf16> mine[2] = {args.q, args.d_out};
    CopyQueryTiles<kStages, 2>(problem, own, ring, mine, args.k, args.v, base);
    return;
  }
  TakeRegisters<kComputeRegisters>();
  const int first = group * kGroupRows, warp_row = first + GroupThread() / 32 * 16;
  float lse2[2], delta[2] = {0, 0}, acc[64];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = own.packed_row(warp_row + half * 8 + Lane() / 4);
    lse2[half] = row < 0 ? 0.0f : *args.lse.At(row, own.head(warp_row)) * kLog2E;
  }
  OwnDeltas(args, own, warp_row, delta);
#pragma unroll
  for (int i = 0; i < 64; ++i) acc[i] = 0;
  const Visible visible = own.Of(problem, first);
  const int position = own.s.offset + own.query(warp_row) + Lane() / 4;
  WaitFor(ring.once(), 0);
  Place<kStages> at;
  for (int key = own.key_begin; key < own.key_end; key += kRows, at.Next()) {
    WaitFor(ring.full(at.stage), at.parity);
    FenceCopies();
    const uint32_t k_tile = base + (2 + 2 * at.stage) * kTileBytes;
    const auto step = [&](auto keys, bool masked) {
      QueryGradientTile<decltype(keys)::value>(base, base + kTileBytes, k_tile, k_tile + kTileBytes, first, masked, key,
                                               position, problem, lse2, delta, acc);
    };
    if (key + kRows / 2 > visible.last) {
      if (!visible.None(key, kRows)) step(std::integral_constant<int, kRows / 2>{}, true);
    } else if (!visible.None(key, kRows)) {
      step(std::integral_constant<int, kRows>{}, !visible.All(key, kRows));
    }
    ring.Release(at.stage);
  }
  const float scale[2] = {problem.scale, problem.scale};
  GroupBarrier(1 + group);  // all of the warpgroup's products have read its rows
  StoreTile(base, acc, scale, args.dq, first, problem.head_dim,
            [&](int r) { return make_int2(own.packed_row(r), own.head(r) * problem.head_dim); });
}

}  // namespace hone::cuda::hopper
