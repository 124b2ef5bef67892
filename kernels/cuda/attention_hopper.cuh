// Attention on Hopper's warpgroup products (sm_90a), tiles 128 columns wide: what the three kernels share. A block has
// one warpgroup that copies (its registers go to the others) and two that compute, 64 rows each; tiles travel through a
// ring of stages with a "full" and an "empty" mbarrier each. What is summed, in which order, and which rows a block
// owns: as in attention_forward.cuh, attention_dq.cuh and attention_dkv.cuh.
#pragma once

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scores.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace hone::cuda::hopper {

using namespace hone::cuda::mma;

constexpr int kWidth = 128;                  // columns of a tile
constexpr int kGroups = 2, kGroupRows = 64;  // warpgroups that compute
constexpr int kRows = kGroups * kGroupRows;
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kTileBytes = kRows * kWidth * 2;
// 65,536 registers between 128 threads that copy and 256 that compute.
constexpr int kCopyRegisters = 40, kComputeRegisters = 232;

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int GroupThread() { return static_cast<int>(threadIdx.x) % 128; }
// 0 .. kGroups - 1: computes; kGroups: copies.
__device__ inline int GroupIndex() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0); }

// Full and empty barriers of a ring of STAGES tiles, and one for what is loaded once.
template <int STAGES>
struct Ring {
  static constexpr int kBytes = (2 * STAGES + 1) * 8;
  uint32_t barriers;
  __device__ void Init() const {
    for (int i = 0; i < STAGES; ++i) InitBarrier(full(i), 128), InitBarrier(empty(i), kGroups * 4);
    InitBarrier(once(), 128);
  }
  __device__ uint32_t full(int stage) const { return barriers + stage * 8; }
  __device__ uint32_t empty(int stage) const { return barriers + (STAGES + stage) * 8; }
  __device__ uint32_t once() const { return barriers + 2 * STAGES * 8; }
  // By every warp that computes, when it reads a stage no more.
  __device__ void Release(int stage) const {
    __syncwarp();
    if (Lane() == 0) ArriveAt(empty(stage));
  }
};
template <int STAGES>
struct Place {
  int stage = 0, parity = 0;
  __device__ void Next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Copies ROWS rows of head_dim columns into a tile, by one warpgroup; row_of(r) is the row of the view, negative: zero.
template <int ROWS, typename RowOf>
__device__ inline void CopyTile(uint32_t tile, const View<bf16>& view, int col, int head_dim, RowOf row_of) {
  const int thread = GroupThread(), chunk = thread % 16, first = thread / 16;
  const uint32_t to = tile + ChunkOffset(ROWS, first, chunk);
  const bf16* from = view.data + col + chunk * 8;
  const int pitch_bytes = static_cast<int>(view.pitch) * 2;
  const bool inside = chunk * 8 < head_dim;
#pragma unroll 4
  for (int i = 0; i < ROWS / 8; ++i) {
    const int row = row_of(first + i * 8);
    CopyAsync16(to + i * 1024, RowAddress(from, max(row, 0), pitch_bytes), inside && row >= 0);
  }
}

// The warpgroup's 64 rows from `first` of a tile that only it reads any more: c * factor, rounded, then to memory by 16
// bytes a thread. place_of(r): row (negative: none) and column where row r of the tile goes.
template <typename PlaceOf>
__device__ inline void StoreTile(uint32_t tile, const float (&c)[64], const float (&factor)[2], const View<bf16>& out,
                                 int first, int head_dim, PlaceOf place_of) {
  const int warp_row = first + GroupThread() / 32 * 16;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair = Pack(c[n * 4 + half * 2] * factor[half], c[n * 4 + half * 2 + 1] * factor[half]);
      const uint32_t address = tile + ChunkOffset(kRows, warp_row + half * 8 + Lane() / 4, n) + Lane() % 4 * 4;
      asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(pair) : "memory");
    }
  }
  __syncwarp();
#pragma unroll 2
  for (int i = 0; i < 8; ++i) {
    const int row = warp_row + i * 2 + Lane() / 16, chunk = Lane() % 16;
    const int2 at = place_of(row);
    if (at.x < 0 || chunk * 8 >= head_dim) continue;
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(tile + ChunkOffset(kRows, row, chunk))
                 : "memory");
    *reinterpret_cast<uint4*>(out.At(at.x, at.y + chunk * 8)) = x;
  }
}

// The queries of a block: kRows / pack of each of `pack` heads that share their keys.
struct Queries {
  Range s;
  int per_head, first_head, begin, kv_col, key_begin, key_end;
  __device__ Queries(const Problem& problem, const TileOf& tile, int unit)
      : s(problem.segments[tile.segment]),
        per_head(kRows / problem.pack),
        first_head(unit * problem.pack),
        begin((tile.level - tile.lo) * per_head),
        kv_col(first_head / problem.group * problem.head_dim),
        key_begin(max(s.offset + begin - problem.window + 1, 0) / kRows * kRows),
        key_end(min(s.keys, s.offset + begin + per_head)) {}
  __device__ int head(int row) const { return first_head + row / per_head; }
  __device__ int query(int row) const { return begin + row % per_head; }
  // Row of the packed queries, or negative where there is none.
  __device__ int packed_row(int row) const { return query(row) < s.q_len ? s.q0 + query(row) : -1; }
  // What a warpgroup's rows see.
  __device__ Visible Of(const Problem& problem, int first) const {
    const int from = s.offset + begin + (per_head >= kGroupRows ? first % per_head : 0);
    return {from, from + min(per_head, kGroupRows) - 1, problem.window};
  }
};

// The keys and values of Queries, tile by tile, after the tiles of their own rows: by the warpgroup that copies.
template <int STAGES, int OWN>
__device__ inline void CopyQueryTiles(const Problem& problem, const Queries& own, const Ring<STAGES>& ring,
                                      const View<bf16> (&views)[OWN], const View<bf16>& k, const View<bf16>& v,
                                      uint32_t base) {
  const int thread = GroupThread(), chunk = thread % 16;
#pragma unroll
  for (int t = 0; t < OWN; ++t) {
#pragma unroll 2
    for (int i = 0; i < kRows / 8; ++i) {
      const int r = i * 8 + thread / 16, row = own.packed_row(r);
      CopyAsync16(base + t * kTileBytes + ChunkOffset(kRows, r, chunk),
                  RowAddress(views[t].data + own.head(r) * problem.head_dim + chunk * 8, max(row, 0),
                             static_cast<int>(views[t].pitch) * 2),
                  row >= 0 && chunk * 8 < problem.head_dim);
    }
  }
  ArriveWithCopies(ring.once());
  Place<STAGES> at;
  for (int key = own.key_begin; key < own.key_end; key += kRows, at.Next()) {
    WaitFor(ring.empty(at.stage), at.parity ^ 1);
    const uint32_t tile = base + (OWN + 2 * at.stage) * kTileBytes;
    const auto row_of = [&](int r) { return key + r < own.s.keys ? own.s.KeyRow(key + r) : -1; };
    CopyTile<kRows>(tile, k, own.kv_col, problem.head_dim, row_of);
    CopyTile<kRows>(tile + kTileBytes, v, own.kv_col, problem.head_dim, row_of);
    ArriveWithCopies(ring.full(at.stage));
  }
}

// What queries must not see of scores with the keys from `key` on becomes -infinity; `position`: of the thread's first
// row.
template <int N>
__device__ inline void MaskKeys(float (&s)[N], int key, int position, int window) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int column = key + i / 4 * 8 + Lane() % 4 * 2 + i % 2, row = position + i / 2 % 2 * 8;
    if (column > row || column <= row - window) s[i] = -INFINITY;
  }
}

// c[64 x 8 N] (+)= rows [first, first + 64) of tile a (A_ROWS rows) times the rows of tile b (B_ROWS), over 128
// columns.
template <int A_ROWS, int B_ROWS, int N>
__device__ inline void ScoreProduct(float (&c)[N], uint32_t a, int first, uint32_t b) {
  const uint64_t rows = RowsOperand(a + first * 128), others = RowsOperand(b);
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    MultiplyTiles<false>(c, Advance(rows, RowsStep(k, PanelBytes(A_ROWS))),
                         Advance(others, RowsStep(k, PanelBytes(B_ROWS))), k > 0);
  }
}
// c[64 x 128] += p[64 x 16 K] times the rows of tile b (B_ROWS of them, the first 16 K used).
template <int B_ROWS, int K>
__device__ inline void ValueProduct(float (&c)[64], const uint32_t (&p)[K][4], uint32_t b) {
  const uint64_t columns = ColumnsOperand(b, PanelBytes(B_ROWS));
#pragma unroll
  for (int k = 0; k < K; ++k) MultiplyRegisters<true>(c, p[k], Advance(columns, k * kColumnsStep), true);
}

}  // namespace hone::cuda::hopper
