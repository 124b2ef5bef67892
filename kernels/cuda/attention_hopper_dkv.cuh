// dk and dv by warpgroup products: see attention_hopper.cuh and, for rows, order and masks, attention_dkv.cuh. A
// warpgroup computes the transposed scores of its 64 keys with 64 queries, from them p and ds as A fragments of the
// next products; both gradients stay in its registers.
#pragma once

#include "kernels/cuda/attention_dkv.cuh"
#include "kernels/cuda/attention_hopper.cuh"

namespace hone::cuda::hopper {

struct KeyTiles {
  static constexpr int kQueries = 64, kStages = 4;
  static constexpr int kPartBytes = kQueries * kWidth * 2, kStatsBytes = 2 * kQueries * 4;
  static constexpr int kStageBytes = 2 * kPartBytes;
  static constexpr int kStats = 2 * kTileBytes + kStages * kStageBytes, kBarriers = kStats + kStages * kStatsBytes;
  static constexpr int kSharedBytes = 1024 + kBarriers + Ring<kStages>::kBytes;
};

// The tiles of queries that a block meets, in order: segments, heads of the group, queries.
template <typename Visit>
__device__ inline void ForEachQueryTile(const Problem& problem, int owner_index, int row0, int begin, int count,
                                        int kv_head, Visit visit) {
  const int first = problem.shares_prefix ? 0 : owner_index;
  const int last = problem.shares_prefix ? problem.count - 1 : owner_index;
  for (int i = first; i <= last; ++i) {
    const Segment& s = problem.segments[i];
    const int offset = s.prefix_len + s.kv_len - s.q_len;
    const OwnKeys own = i == owner_index ? OwnKeys{s.prefix_len + begin - offset, 0, count, problem.window}
                                         : OwnKeys{row0 - s.prefix0 - offset, max(s.prefix0 - row0, 0),
                                                   min(s.prefix0 + s.prefix_len - row0, count), problem.window};
    if (own.lo >= own.hi) continue;
    const int from = max(own.lo + own.shift, 0) / KeyTiles::kQueries * KeyTiles::kQueries;
    const int end = min(s.q_len, own.hi - 1 + own.shift + own.window);
    for (int head = kv_head * problem.group; head < (kv_head + 1) * problem.group; ++head) {
      for (int query = from; query < end; query += KeyTiles::kQueries) visit(s.q0, s.q_len, own, head, query);
    }
  }
}

struct KeyShared {
  uint32_t base;
  __device__ uint32_t k() const { return base; }
  __device__ uint32_t v() const { return base + kTileBytes; }
  __device__ uint32_t q(int stage) const { return base + 2 * kTileBytes + stage * KeyTiles::kStageBytes; }
  __device__ uint32_t d_out(int stage) const { return q(stage) + KeyTiles::kPartBytes; }
  __device__ uint32_t stats(int stage) const { return base + KeyTiles::kStats + stage * KeyTiles::kStatsBytes; }
  __device__ Ring<KeyTiles::kStages> ring() const { return {base + KeyTiles::kBarriers}; }
};

__device__ inline void CopyKeyTiles(const BackwardArgs& args, const KeyShared& shared, int owner_index, int row0,
                                    int begin, int count, int kv_head) {
  const Problem& problem = args.problem;
  const auto ring = shared.ring();
  const auto own_row = [&](int r) { return r < count ? row0 + r : -1; };
  CopyTile<kRows>(shared.k(), args.k, kv_head * problem.head_dim, problem.head_dim, own_row);
  CopyTile<kRows>(shared.v(), args.v, kv_head * problem.head_dim, problem.head_dim, own_row);
  ArriveWithCopies(ring.once());
  Place<KeyTiles::kStages> at;
  ForEachQueryTile(
      problem, owner_index, row0, begin, count, kv_head, [&](int q0, int q_len, const OwnKeys&, int head, int query) {
        WaitFor(ring.empty(at.stage), at.parity ^ 1);
        const auto row_of = [&](int r) { return query + r < q_len ? q0 + query + r : -1; };
        const int col = head * problem.head_dim;
        CopyTile<KeyTiles::kQueries>(shared.q(at.stage), args.q, col, problem.head_dim, row_of);
        CopyTile<KeyTiles::kQueries>(shared.d_out(at.stage), args.d_out, col, problem.head_dim, row_of);
        // Queries beyond the last get lse = delta = 0: their q and d_out are zero, so they add nothing.
        const int i = GroupThread(), r = i % KeyTiles::kQueries;
        const bool second = i >= KeyTiles::kQueries;
        const float* from = (second ? args.delta.data : args.lse.data) + head;
        const int pitch = static_cast<int>(second ? args.delta.pitch : args.lse.pitch);
        CopyAsync4(shared.stats(at.stage) + i * 4, RowAddress(from, max(row_of(r), 0), pitch * 4), row_of(r) >= 0);
        ArriveWithCopies(ring.full(at.stage));
        at.Next();
      });
}

// The 64 keys of one warpgroup.
class KeyRows {
 public:
  __device__ KeyRows(const BackwardArgs& args, const KeyShared& shared, int group)
      : problem_(args.problem), shared_(shared), ring_(shared.ring()), first_(group * kGroupRows) {
#pragma unroll
    for (int i = 0; i < 64; ++i) dv[i] = dk[i] = 0;
    WaitFor(ring_.once(), 0);
    FenceCopies();
  }

  __device__ void Visit(const OwnKeys& own, int query) {
    WaitFor(ring_.full(at_.stage), at_.parity);
    constexpr int kQueries = KeyTiles::kQueries;
    if (!own.None(first_, kGroupRows, query, kQueries)) Step(own, query);
    ring_.Release(at_.stage);
    at_.Next();
  }
  float dv[64], dk[64];

 private:
  __device__ void Step(const OwnKeys& own, int query) {
    constexpr int kQueries = KeyTiles::kQueries, kN = kQueries / 8;
    FenceCopies();
    const uint32_t q = shared_.q(at_.stage), d_out = shared_.d_out(at_.stage), stats = shared_.stats(at_.stage);
    float s[kN * 4], dp[kN * 4];
    Pin(s), Pin(dp);
    Arrive();
    ScoreProduct<kRows, kQueries>(s, shared_.k(), first_, q);
    Commit();
    ScoreProduct<kRows, kQueries>(dp, shared_.v(), first_, d_out);
    Commit();
    Wait<1>();
    Pin(s);
    if (!own.All(first_, kGroupRows, query, kQueries)) {
      const int row = first_ + GroupThread() / 32 * 16 + Lane() / 4;
#pragma unroll
      for (int i = 0; i < kN * 4; ++i) {
        if (!own.Sees(query + i / 4 * 8 + Lane() % 4 * 2 + i % 2, row + i / 2 % 2 * 8)) s[i] = -INFINITY;
      }
    }
    uint32_t p[kN / 2][4], ds[kN / 2][4];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float2 lse = SharedPair(stats + (n * 8 + Lane() % 4 * 2) * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        p[n / 2][n % 2 * 2 + half] = Pack(Exp2(s[n * 4 + half * 2] * problem_.exponent - lse.x * kLog2E),
                                          Exp2(s[n * 4 + half * 2 + 1] * problem_.exponent - lse.y * kLog2E));
      }
    }
    Arrive();
    ValueProduct<kQueries>(dv, p, d_out);
    Commit();
    Wait<1>();  // dp
    Pin(dp);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float2 delta = SharedPair(stats + (kQueries + n * 8 + Lane() % 4 * 2) * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&p[n / 2][n % 2 * 2 + half]));
        ds[n / 2][n % 2 * 2 + half] =
            Pack(x.x * (dp[n * 4 + half * 2] - delta.x), x.y * (dp[n * 4 + half * 2 + 1] - delta.y));
      }
    }
    Arrive();
    ValueProduct<kQueries>(dk, ds, q);
    Commit();
    Wait<0>();
    Pin(dv), Pin(dk);
  }

  const Problem& problem_;
  KeyShared shared_;
  Ring<KeyTiles::kStages> ring_;
  int first_;
  Place<KeyTiles::kStages> at_;
};

__global__ void __launch_bounds__(kThreads, 1) KeyGradientHopper(const __grid_constant__ BackwardArgs args) {
  extern __shared__ uint8_t raw[];
  const KeyShared shared{(SharedAddress(raw) + 1023) / 1024 * 1024};
  const Problem& problem = args.problem;
  const int kv_heads = problem.heads / problem.group, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
  const TileOf tile =
      FindTile(problem, static_cast<int>(blockIdx.x) / kv_heads, [](const Segment& s) { return KeyLevels(s, kRows); });
  const Segment owner = problem.segments[tile.segment];
  const int begin = (tile.hi - 1 - tile.level) * kRows, row0 = owner.kv0 + begin;
  const int count = min(owner.kv_len - begin, kRows);
  if (threadIdx.x == 0) shared.ring().Init();
  __syncthreads();
  const int group = GroupIndex();
  if (group == kGroups) {
    GiveRegisters<kCopyRegisters>();
    CopyKeyTiles(args, shared, tile.segment, row0, begin, count, kv_head);
    return;
  }
  TakeRegisters<kComputeRegisters>();
  KeyRows rows(args, shared, group);
  ForEachQueryTile(problem, tile.segment, row0, begin, count, kv_head,
                   [&](int, int, const OwnKeys& own, int, int query) { rows.Visit(own, query); });
  const int first = group * kGroupRows;
  const auto place = [&](int r) { return make_int2(r < count ? row0 + r : -1, kv_head * problem.head_dim); };
  const float one[2] = {1.0f, 1.0f}, scale[2] = {problem.scale, problem.scale};
  GroupBarrier(1 + group);  // all of the warpgroup's products have read its rows
  StoreTile(shared.v(), rows.dv, one, args.dv, first, problem.head_dim, place);
  StoreTile(shared.k(), rows.dk, scale, args.dk, first, problem.head_dim, place);
}

}  // namespace hone::cuda::hopper
