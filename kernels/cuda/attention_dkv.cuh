// The backward pass, second half: dk and dv (FlashAttention-2, arXiv 2307.08691, algorithm 2). A block owns kRows rows
// of keys and values of one kv head. It visits every segment that sees one of them in ascending order, every query head
// of the group, and their queries in ascending order, so that all sums stay in registers and have one order.
//
// Two warps share MT x 16 keys. The first computes the transposed scores (rows keys, columns queries), from them p, and
// dv += p d_out. The second computes dp = v d_out and ds = p (dp - delta), and dk += ds q. A fragment of C is a
// fragment of A, so what p needs to go from one to the other is a row of registers through shared memory; no tile is
// transposed. The second warp works on the tile before the first's (ds) and the one before that (dk): then neither
// waits for the other within a step, and one's exponentials meet the other's products.
#pragma once

#include "kernels/cuda/attention_launch.cuh"

namespace hone::cuda::mma {

// A tile of queries is loaded at once; a warp takes it in kParts.
template <int kD, int kMT, int kPairs, int kQueries, int kParts, int kBlocksPerSm>
struct KeyGradientTiles {
  static constexpr int D = kD, MT = kMT, Pairs = kPairs, Queries = kQueries, Parts = kParts, BlocksPerSm = kBlocksPerSm;
  static constexpr int PartQueries = Queries / Parts;
  static constexpr int kThreads = Pairs * 64, kPairRows = MT * 16, kRows = Pairs * kPairRows;
  static constexpr int kOwnBytes = Tile<D>::Bytes(kRows), kTileBytes = Tile<D>::Bytes(Queries);
  // How many tiles are held at once: q from two before the first warp's to one after, d_out and statistics from one.
  static constexpr int kQStages = 4, kOutStages = 3, kExchanges = 2;
  static constexpr int kExchangeBytes = MT * 16 * Queries * 2;  // of a pair
  static constexpr int kStatsBytes = 2 * Queries * 4;           // lse, delta
  static constexpr int kSharedBytes = 2 * kOwnBytes + (kQStages + kOutStages) * kTileBytes +
                                      kExchanges * Pairs * kExchangeBytes + kOutStages * kStatsBytes;
};

// A block's rows as keys of one segment: row r (lo <= r < hi) stands where query r + shift does.
struct OwnKeys {
  int shift, lo, hi, window;
  // Whether none, or all, of the queries [query, query + queries) see the rows [row, row + rows).
  __device__ bool None(int row, int rows, int query, int queries) const {
    return row + shift > query + queries - 1 || row + rows - 1 + shift <= query - window || row >= hi ||
           row + rows <= lo;
  }
  __device__ bool All(int row, int rows, int query, int queries) const {
    return row + rows - 1 + shift <= query && row + shift > query + queries - 1 - window && row >= lo &&
           row + rows <= hi;
  }
  __device__ bool Sees(int query, int r) const {
    return r + shift <= query && r + shift > query - window && r >= lo && r < hi;
  }
};

// One thread's part of an A fragment of 16 keys and 16 queries.
__device__ inline void Send(uint32_t address, const uint32_t (&x)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}
__device__ inline void Receive(uint32_t address, uint32_t (&x)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}
__device__ inline float2 SharedPair(uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
  return x;
}
// All threads, from either of two loops.
template <int THREADS>
__device__ inline void AllBarrier() {
  asm volatile("bar.sync 0, %0;\n" ::"n"(THREADS) : "memory");
}

template <typename C>
class KeyGradientBlock {
 public:
  static constexpr int D = C::D, MT = C::MT, kN = C::PartQueries / 8;
  using Fragments = uint32_t[MT][kN / 2][4];  // A: MT x 16 keys, columns queries
  __device__ KeyGradientBlock(const BackwardArgs& args, uint32_t shared, int kv_head)
      : args_(args), problem_(args.problem), kv_head_(kv_head), k_tile_(shared) {}

  // Everything after the search: rows row0 .. row0 + count, the owner's keys from `begin`.
  template <bool kFirst>
  __device__ void Run(int row0, int owner_index, int begin, int count) {
    LoadOwn(row0, count);
    float acc[MT][D / 8][4] = {};
    const int first = problem_.shares_prefix ? 0 : owner_index;
    const int last = problem_.shares_prefix ? problem_.count - 1 : owner_index;
    for (int i = first; i <= last; ++i) {
      const Segment& s = problem_.segments[i];
      const int offset = s.prefix_len + s.kv_len - s.q_len;
      const OwnKeys own = i == owner_index ? OwnKeys{s.prefix_len + begin - offset, 0, count, problem_.window}
                                           : OwnKeys{row0 - s.prefix0 - offset, max(s.prefix0 - row0, 0),
                                                     min(s.prefix0 + s.prefix_len - row0, count), problem_.window};
      if (own.lo < own.hi) Visit<kFirst>(s.q0, s.q_len, own, acc);
    }
    CommitCopies();  // nobody may have seen a row
    WaitCopies<0>();
    AllBarrier<C::kThreads>();
    Store<kFirst>(row0, count, acc);
  }

 private:
  __device__ void LoadOwn(int row0, int count) {
    const int kv_col = kv_head_ * problem_.head_dim;
    LoadRows<D, C::kRows, C::kThreads>(k_tile_, args_.k, kv_col, problem_.head_dim, row0, count);
    LoadRows<D, C::kRows, C::kThreads>(v_tile(), args_.v, kv_col, problem_.head_dim, row0, count);
  }

  // Adds what one segment gives, to dv in the first warp of a pair, to dk in the second. (Two loops, not one with a
  // choice inside: the second's gradients would occupy the first's registers.)
  template <bool kFirst>
  __device__ void Visit(int q0, int q_len, const OwnKeys& own, float (&acc)[MT][D / 8][4]) {
    const int begin = max(own.lo + own.shift, 0) / C::Queries * C::Queries;
    const int end = min(q_len, own.hi - 1 + own.shift + own.window);
    if (begin >= end) return;
    const int steps = (end - begin + C::Queries - 1) / C::Queries * problem_.group;
    const LaneAddress<D> own_rows = RowsAddress<D>(kFirst ? k_tile_ : v_tile(), own_row());
    int next = begin, head = kv_head_ * problem_.group;  // what is loaded next
    AllBarrier<C::kThreads>();                           // the segment before this one is done with the tiles
    Load(q0, q_len, next, head, 0);
    Fragments ds;
    bool pending = false;  // whether ds holds something
    int query = begin;     // of this step's tile
    for (int step = 0; step <= steps; ++step) {
      WaitCopies<0>();
      AllBarrier<C::kThreads>();
      if (step + 1 < steps) {
        next += C::Queries;
        if (next >= end) next = begin, ++head;
        Load(q0, q_len, next, head, step + 1);
      }
      if (kFirst ? step == steps : step == 0) continue;
#pragma unroll 1
      for (int part = 0; part < C::Parts; ++part) {
        const int first = query + part * C::PartQueries;
        const Sight sight = SightOf(own, first);
        if constexpr (kFirst) {
          if (sight == Sight::kAll) ValueStep<false>(own_rows, step, part, first, own, acc);
          if (sight == Sight::kSome) ValueStep<true>(own_rows, step, part, first, own, acc);
        } else {
          // The part before this one, in this tile or in the one before it.
          if (pending) KeyStep(acc, ds, part > 0 ? step - 1 : step - 2, part > 0 ? part - 1 : C::Parts - 1);
          if (sight == Sight::kAll) ScoreStep<false>(own_rows, step - 1, part, first, own, ds);
          if (sight == Sight::kSome) ScoreStep<true>(own_rows, step - 1, part, first, own, ds);
          pending = sight != Sight::kNone;
        }
      }
      query = query + C::Queries < end ? query + C::Queries : begin;
    }
    if (!kFirst && pending) KeyStep(acc, ds, steps - 1, C::Parts - 1);
  }

  template <bool kFirst>
  __device__ void Store(int row0, int count, const float (&acc)[MT][D / 8][4]) {
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) factor[m][0] = factor[m][1] = kFirst ? 1.0f : problem_.scale;
    // Over the rows of k (or v) that only this warp has read.
    StoreRows<D, MT>(kFirst ? k_tile_ : v_tile(), acc, factor, kFirst ? args_.dv : args_.dk, row0, count,
                     kv_head_ * problem_.head_dim, problem_.head_dim, own_row());
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int pair() { return static_cast<int>(threadIdx.x) / 32 % C::Pairs; }
  __device__ static int own_row() { return PlaceOf(pair(), C::Pairs) * C::kPairRows; }
  // How much of the pair's rows the queries of a part see.
  enum class Sight { kNone, kSome, kAll };
  __device__ static Sight SightOf(const OwnKeys& own, int query) {
    if (own.All(own_row(), C::kPairRows, query, C::PartQueries)) return Sight::kAll;
    return own.None(own_row(), C::kPairRows, query, C::PartQueries) ? Sight::kNone : Sight::kSome;
  }

  // Shared memory: k, v, q tiles, d_out tiles, p from warp to warp, statistics.
  __device__ uint32_t v_tile() const { return k_tile_ + C::kOwnBytes; }
  __device__ uint32_t q_tile(int step) const { return k_tile_ + 2 * C::kOwnBytes + step % C::kQStages * C::kTileBytes; }
  __device__ uint32_t do_tile(int step) const {
    return k_tile_ + 2 * C::kOwnBytes + (C::kQStages + step % C::kOutStages) * C::kTileBytes;
  }
  static constexpr int kPartBytes = Tile<D>::Bytes(C::PartQueries);
  __device__ uint32_t exchanges() const {
    return k_tile_ + 2 * C::kOwnBytes + (C::kQStages + C::kOutStages) * C::kTileBytes;
  }
  __device__ uint32_t exchange(int step, int part) const {
    return exchanges() + (step % C::kExchanges * C::Pairs + pair()) * C::kExchangeBytes +
           part * (C::kExchangeBytes / C::Parts) + lane() * 16;
  }
  __device__ uint32_t stats(int step) const {
    return exchanges() + C::kExchanges * C::Pairs * C::kExchangeBytes + step % C::kOutStages * C::kStatsBytes;
  }
  static constexpr int kSent = 32 * 16;  // bytes of one fragment of a warp

  __device__ void Load(int q0, int q_len, int query, int head, int step) {
    const int col = head * problem_.head_dim, count = q_len - query;
    LoadRows<D, C::Queries, C::kThreads>(q_tile(step), args_.q, col, problem_.head_dim, q0 + query, count);
    LoadRows<D, C::Queries, C::kThreads>(do_tile(step), args_.d_out, col, problem_.head_dim, q0 + query, count);
    // Queries beyond the last get lse = delta = 0: their q and d_out are zero, so they add exactly nothing.
    static_assert(2 * C::Queries <= C::kThreads);
    const int i = static_cast<int>(threadIdx.x), r = i % C::Queries;
    if (i < 2 * C::Queries) {
      const bool second = i >= C::Queries;
      const float* from = (second ? args_.delta.data : args_.lse.data) + head;
      const int pitch = static_cast<int>(second ? args_.delta.pitch : args_.lse.pitch);
      CopyAsync4(stats(step) + i * 4, RowAddress(from, q0 + query + r, pitch * 4), r < count);
    }
    CommitCopies();
  }

  // The first warp: p, sent on, and dv += p d_out.
  template <bool kMasked>
  __device__ void ValueStep(const LaneAddress<D>& k, int step, int part, int query, const OwnKeys& own,
                            float (&acc)[MT][D / 8][4]) {
    float s[MT][kN][4] = {};
    MultiplyRows<MT, kN / 2, D / 16, D>(s, k, ColumnsAddress<D>(q_tile(step) + part * kPartBytes, 0));
    const bool capped = problem_.cap_scale > 0;
    Fragments p;
#pragma unroll
    for (int n = 0; n < kN / 2; ++n) {
      float lse2[2][2];  // of the columns n * 16 + half * 8 + 2t + j
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 lse = SharedPair(stats(step) + (part * C::PartQueries + n * 16 + half * 8 + lane() % 4 * 2) * 4);
        lse2[half][0] = lse.x * kLog2E, lse2[half][1] = lse.y * kLog2E;
      }
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        uint32_t sent[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {  // columns r / 2 * 8, rows r % 2 * 8
          const int column = query + n * 16 + r / 2 * 8 + lane() % 4 * 2,
                    row = own_row() + m * 16 + r % 2 * 8 + lane() / 4;
          float value[2], slope[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float x = s[m][2 * n + r / 2][r % 2 * 2 + j];
            if (capped) x = Tanh(x * problem_.cap_scale);
            value[j] = Exp2(x * problem_.exponent - lse2[r / 2][j]);
            if (kMasked && !own.Sees(column + j, row)) value[j] = 0;
            slope[j] = capped ? value[j] * (1.0f - x * x) : value[j];
          }
          p[m][n][r] = Pack(value[0], value[1]);
          sent[r] = capped ? Pack(slope[0], slope[1]) : p[m][n][r];
        }
        Send(exchange(step, part) + (n * MT + m) * kSent, sent);
      }
    }
    MultiplyInto<MT, kN / 2, D>(acc, p, RowsAddress<D>(do_tile(step) + part * kPartBytes, 0));
  }

  // The second warp: ds of the tile that p was sent for.
  template <bool kMasked>
  __device__ void ScoreStep(const LaneAddress<D>& v, int step, int part, int query, const OwnKeys& own, Fragments& ds) {
    float dp[MT][kN][4] = {};
    MultiplyRows<MT, kN / 2, D / 16, D>(dp, v, ColumnsAddress<D>(do_tile(step) + part * kPartBytes, 0));
#pragma unroll
    for (int n = 0; n < kN / 2; ++n) {
      float2 delta[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        delta[half] =
            SharedPair(stats(step) + (C::Queries + part * C::PartQueries + n * 16 + half * 8 + lane() % 4 * 2) * 4);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        uint32_t p[4];
        Receive(exchange(step, part) + (n * MT + m) * kSent, p);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&p[r]));
          const float(&d)[4] = dp[m][2 * n + r / 2];
          ds[m][n][r] = Pack(x.x * (d[r % 2 * 2] - delta[r / 2].x), x.y * (d[r % 2 * 2 + 1] - delta[r / 2].y));
        }
      }
    }
  }

  // The second warp: dk += ds q.
  __device__ void KeyStep(float (&acc)[MT][D / 8][4], const Fragments& ds, int step, int part) {
    MultiplyInto<MT, kN / 2, D>(acc, ds, RowsAddress<D>(q_tile(step) + part * kPartBytes, 0));
  }

  const BackwardArgs& args_;
  const Problem& problem_;
  int kv_head_;
  uint32_t k_tile_;
};

template <typename C>
__device__ inline void RunKeyGradientBlock(const BackwardArgs& args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Problem& problem = args.problem;
  const int kv_heads = problem.heads / problem.group;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / kv_heads,
                               [](const Segment& s) { return KeyLevels(s, C::kRows); });
  const Segment owner = problem.segments[tile.segment];
  const int begin = (tile.hi - 1 - tile.level) * C::kRows;
  const int count = min(owner.kv_len - begin, C::kRows);
  KeyGradientBlock<C> block(args, SharedAddress(shared), static_cast<int>(blockIdx.x) % kv_heads);
  if (threadIdx.x / 32 < C::Pairs) {
    block.template Run<true>(owner.kv0 + begin, tile.segment, begin, count);
  } else {
    block.template Run<false>(owner.kv0 + begin, tile.segment, begin, count);
  }
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::BlocksPerSm) KeyGradient(const __grid_constant__ BackwardArgs args) {
  if constexpr (C::MT == 1 || kLargeTilesRun) RunKeyGradientBlock<C>(args);
}

template <typename C>
void LaunchKeyGradient(const BackwardArgs& args, HostSegments host, cudaStream_t stream) {
  static_assert(Fits<C>());
  LaunchTiles(
      KeyGradient<C>, args, host, args.problem.heads / args.problem.group,
      [](const Segment& s) { return KeyLevels(s, C::kRows); }, C::kThreads, C::kSharedBytes, stream);
}

}  // namespace hone::cuda::mma
