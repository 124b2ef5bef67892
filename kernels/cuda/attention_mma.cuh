// What the tensor core kernels of attention share: the description of a call, the search for a block's tile, swizzled
// tiles in shared memory, and the instructions (cp.async, ldmatrix, mma.sync m16n8k16; sm_80 and later).
//
// Fragments of m16n8k16 (PTX ISA): with g = lane / 4 and t = lane % 4 a thread holds of A (16 x 16, row-major) the
// pairs (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8), of B (16 x 8) the pairs (2t, g) (2t + 8, g) down a column, of
// C (16 x 8) the pairs (g, 2t) (g + 8, 2t). Two neighbouring C tiles, rounded, are therefore one A tile.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/ops.h"

namespace hone::cuda::mma {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int kNoWindow = 1 << 30;

// Large tiles (MT = 2, AttentionProfile::kLarge) are never launched on cards with 99 KiB of shared memory a block; code
// for those leaves their kernels empty.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr bool kLargeTilesRun = false;
#else
constexpr bool kLargeTilesRun = true;
#endif

// One call, as kernels see it.
struct Problem {
  const Segment* segments;
  int count;
  int classes;       // of FindTile
  int heads, group;  // group: query heads of one kv head
  int pack;          // query heads that share a tile of queries: 1, 2 or 4, a divisor of group
  int head_dim;
  int window;  // kNoWindow: all
  float scale;
  float exponent;   // p = exp2(exponent * s - ...): log2(e) * scale, or log2(e) * softcap for s = tanh(cap_scale * q.k)
  float cap_scale;  // scale / softcap; 0: no softcap
  int decode_most;  // segments of one query and up to so many keys are decoded (attention_decode.cuh); 0: none
  bool shares_prefix;  // whether any segment names a prefix
};

// A segment's keys are numbered 0 .. keys: first its prefix, then its own; query i stands at position offset + i.
struct Range {
  int q0, q_len, kv0, kv_len, prefix0, prefix_len, keys, offset;
  __device__ explicit Range(const Segment& s)
      : q0(s.q0),
        q_len(s.q_len),
        kv0(s.kv0),
        kv_len(s.kv_len),
        prefix0(s.prefix0),
        prefix_len(s.prefix_len),
        keys(s.prefix_len + s.kv_len),
        offset(s.prefix_len + s.kv_len - s.q_len) {}
  __device__ int KeyRow(int key) const { return key < prefix_len ? prefix0 + key : kv0 - prefix_len + key; }
};

// --- Which tile a block works on. Segments by size (classes of powers of two, the longest first), then in their order,
// then a segment's tiles from the costliest to the cheapest: what blocks share stays in the cache, and short tiles fill
// the end. A segment's tiles have the levels [lo, hi), about their cost.
struct TileOf {
  int segment, level, lo, hi;
};
__host__ __device__ inline int SizeClass(int2 levels) {  // -1: no tiles
  int size = -1;
  if (levels.y > levels.x)
    for (int l = levels.y; l > 0; l /= 2) ++size;
  return size;
}

// The same for every warp; `levels(segment)` gives int2{lo, hi}. index < the number of all tiles.
template <typename Levels>
__device__ inline TileOf FindTile(const Problem& problem, int index, Levels levels) {
  const int lane = threadIdx.x % 32;
  const auto levels_of = [&](int i) { return i < problem.count ? levels(problem.segments[i]) : make_int2(0, 0); };
  const auto class_of = [](int2 l) { return l.y > l.x ? 31 - __clz(l.y) : -1; };
  const int2 own = levels_of(lane);
  const auto at_or_above = [&](int size) {
    int sum = class_of(own) >= size ? own.y - own.x : 0;
    for (int i = lane + 32; i < problem.count; i += 32) {
      const int2 l = levels_of(i);
      sum += class_of(l) >= size ? l.y - l.x : 0;
    }
    return __reduce_add_sync(~0u, sum);
  };
  int size = problem.classes, above = 0;  // tiles of larger classes
  for (int tiles = 0; size > 0; above = tiles) {
    tiles = at_or_above(--size);
    if (tiles > index) break;
  }
  int rest = index - above;
  for (int base = 0; base < problem.count; base += 32) {
    const int2 l = base == 0 ? own : levels_of(base + lane);
    const int tiles = class_of(l) == size ? l.y - l.x : 0;
    int sum = tiles;  // of this lane and those before it
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += before;
    }
    const uint32_t beyond = __ballot_sync(~0u, sum > rest);
    if (beyond != 0) {
      const int source = __ffs(beyond) - 1, lo = __shfl_sync(~0u, l.x, source), hi = __shfl_sync(~0u, l.y, source);
      const int first = __shfl_sync(~0u, sum - tiles, source);
      return {base + source, hi - 1 - (rest - first), lo, hi};
    }
    rest -= __shfl_sync(~0u, sum, 31);
  }
  return {0, 0, 0, 0};  // not reached
}

// --- Tiles of D columns in shared memory, rows of 16-byte chunks; a row's chunks are permuted (XOR) so that the eight
// rows that ldmatrix reads at once lie in different banks.
template <int D>
struct Tile {
  static constexpr int kChunks = D / 8, kRowBytes = D * 2;
  static constexpr bool kWide = kChunks % 8 == 0;  // else (D = 96) a row is one and a half times all banks
  static constexpr int Bytes(int rows) { return rows * kRowBytes; }
  static __device__ int Mix(int row) { return kWide ? row & 7 : row >> 1 & 3; }
  static __device__ uint32_t Offset(int row, int chunk) { return row * kRowBytes + ((chunk ^ Mix(row)) << 4); }
};

// A lane's address in a tile: At(k) is chunk 2k + `odd` of its row, k known at compile time.
template <int D>
struct LaneAddress {
  uint32_t row_base, mixed;
  __device__ LaneAddress(uint32_t tile, int row, int odd)
      : row_base(tile + row * Tile<D>::kRowBytes), mixed((odd ^ Tile<D>::Mix(row)) << 4) {}
  __device__ uint32_t At(int k) const {
    return Tile<D>::kWide ? row_base + (mixed ^ ((k & 3) << 5)) + (k >> 2) * 128
                          : row_base + (mixed ^ ((k & 1) << 5)) + (k >> 1) * 64;
  }
};
// For A (rows as stored) and for B stored [k][n] (with ldmatrix.trans): rows 0-15 by lane, then the right half.
template <int D>
__device__ inline LaneAddress<D> RowsAddress(uint32_t tile, int row) {
  const int lane = threadIdx.x % 32;
  return LaneAddress<D>(tile, row + lane % 16, lane / 16);
}
// For B stored [n][k]: two n8 tiles, of each the left and the right half.
template <int D>
__device__ inline LaneAddress<D> ColumnsAddress(uint32_t tile, int row) {
  const int lane = threadIdx.x % 32;
  return LaneAddress<D>(tile, row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

__device__ inline uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void CopyAsync16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}
__device__ inline void CopyAsync4(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 4 : 0));
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n"); }
template <int PENDING>
__device__ inline void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// base + row * pitch_bytes, in one instruction.
__device__ inline const void* RowAddress(const void* base, int row, int pitch_bytes) {
  uint64_t address;
  asm("mad.wide.s32 %0, %1, %2, %3;\n" : "=l"(address) : "r"(row), "r"(pitch_bytes), "l"(base));
  return reinterpret_cast<const void*>(address);
}

// threadIdx.x, read anew each time: what is computed from it is not kept in registers across a kernel's main loop,
// where there are none to spare.
__device__ inline int ThreadAnew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
  return thread;
}

// Starts copying ROWS rows of head_dim columns, from row `first` of the view on, into a tile; rows at and beyond
// `count` and columns beyond head_dim become zero (a copy of no bytes reads nothing, so its address may lie anywhere).
template <int D, int ROWS, int THREADS>
__device__ inline void LoadRows(uint32_t tile, const View<bf16>& view, int col, int head_dim, int first, int count) {
  constexpr int kChunks = Tile<D>::kChunks, kAll = ROWS * kChunks;
  const int pitch_bytes = static_cast<int>(view.pitch) * 2, thread = ThreadAnew();
#pragma unroll
  for (int i = 0; i < (kAll + THREADS - 1) / THREADS; ++i) {
    const int index = i * THREADS + thread;
    if (kAll % THREADS != 0 && index >= kAll) break;
    const int row = index / kChunks, chunk = index % kChunks;
    CopyAsync16(tile + Tile<D>::Offset(row, chunk), RowAddress(view.data + col + chunk * 8, first + row, pitch_bytes),
                row < count && chunk * 8 < head_dim);
  }
}
// The same queries of problem.pack heads from `head` on, one head after the other: ROWS / pack rows each.
template <int D, int ROWS, int THREADS>
__device__ inline void LoadHeads(uint32_t tile, const View<bf16>& view, const Problem& problem, int head, int first,
                                 int count) {
  const int pitch_bytes = static_cast<int>(view.pitch) * 2, queries = ROWS / problem.pack;
#pragma unroll 4
  for (int index = static_cast<int>(threadIdx.x); index < ROWS * Tile<D>::kChunks; index += THREADS) {
    const int row = index / Tile<D>::kChunks, chunk = index % Tile<D>::kChunks, query = row % queries;
    const bf16* from = view.data + (head + row / queries) * problem.head_dim + chunk * 8;
    CopyAsync16(tile + Tile<D>::Offset(row, chunk), RowAddress(from, first + query, pitch_bytes),
                query < count && chunk * 8 < problem.head_dim);
  }
}
// The keys key .. key + ROWS of a segment, which the end of its prefix may cut in two.
template <int D, int ROWS, int THREADS>
__device__ inline void LoadKeys(uint32_t tile, const View<bf16>& view, int col, int head_dim, const Range& s, int key) {
  if (key >= s.prefix_len || key + ROWS <= s.prefix_len)
    return LoadRows<D, ROWS, THREADS>(tile, view, col, head_dim, s.KeyRow(key), s.keys - key);
  const int pitch_bytes = static_cast<int>(view.pitch) * 2;
#pragma unroll 1
  for (int index = static_cast<int>(threadIdx.x); index < ROWS * Tile<D>::kChunks; index += THREADS) {
    const int row = index / Tile<D>::kChunks, chunk = index % Tile<D>::kChunks;
    CopyAsync16(tile + Tile<D>::Offset(row, chunk),
                RowAddress(view.data + col + chunk * 8, s.KeyRow(key + row), pitch_bytes),
                row < s.keys - key && chunk * 8 < head_dim);
  }
}

__device__ inline void LoadMatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ inline void LoadMatrixTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
// c += a b
__device__ inline void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
// tanh by one exponential: an absolute error of about 1e-7, which is what a score needs.
__device__ inline float Tanh(float x) { return 1.0f - __fdividef(2.0f, Exp2(2.0f * kLog2E * x) + 1.0f); }

__device__ inline uint32_t Pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// acc[m][n] += A B^T for A rows of one tile (MT x 16, at `a`) and N16 x 16 rows of another (at `b`), over K16 x 16
// columns.
template <int MT, int N16, int K16, int D>
__device__ inline void MultiplyRows(float (&acc)[MT][2 * N16][4], const LaneAddress<D>& a, const LaneAddress<D>& b) {
#pragma unroll
  for (int k = 0; k < K16; ++k) {
    uint32_t fragment[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) LoadMatrix(fragment[m], a.At(k) + m * Tile<D>::Bytes(16));
#pragma unroll
    for (int n = 0; n < N16; ++n) {
      uint32_t other[4];
      LoadMatrix(other, b.At(k) + n * Tile<D>::Bytes(16));
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        Multiply(acc[m][2 * n], fragment[m], other[0], other[1]);
        Multiply(acc[m][2 * n + 1], fragment[m], other[2], other[3]);
      }
    }
  }
}

// acc[m][n] += A B for A in registers (MT x 16 rows, K16 x 16 columns) and B stored [k][n] (at `b`), D columns.
template <int MT, int K16, int D>
__device__ inline void MultiplyInto(float (&acc)[MT][D / 8][4], const uint32_t (&fragment)[MT][K16][4],
                                    const LaneAddress<D>& b) {
#pragma unroll
  for (int k = 0; k < K16; ++k) {
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t other[4];
      LoadMatrixTransposed(other, b.At(n) + k * Tile<D>::Bytes(16));
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        Multiply(acc[m][2 * n], fragment[m][k], other[0], other[1]);
        Multiply(acc[m][2 * n + 1], fragment[m][k], other[2], other[3]);
      }
    }
  }
}

// The warp's place among `count` in a tile: half of the blocks count backwards. Under a causal mask late rows have more
// work, and a quarter of the processor always holds the same warps.
__device__ inline int PlaceOf(int warp, int count) {
  return (blockIdx.x * 0x9e3779b9u) >> 31 != 0 ? count - 1 - warp : warp;
}

// The MT x 16 rows from `first` on, rounded into a tile of shared memory where only this warp has read
// them, then to memory by 16 bytes a lane. Rows at and beyond `count` are left out.
template <int D, int MT>
__device__ inline void StoreRows(uint32_t tile, const float (&acc)[MT][D / 8][4], const float (&factor)[MT][2],
                                 const View<bf16>& out, int64_t row0, int count, int col, int head_dim, int first) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair = Pack(acc[m][n][2 * half] * factor[m][half], acc[m][n][2 * half + 1] * factor[m][half]);
        const uint32_t address = tile + Tile<D>::Offset(first + m * 16 + half * 8 + g, n) + t * 4;
        asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(pair) : "memory");
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = Tile<D>::kChunks;
#pragma unroll 4
  for (int index = lane; index < MT * 16 * kChunks; index += 32) {
    const int row = first + index / kChunks, chunk = index % kChunks;
    if (row >= count || chunk * 8 >= head_dim) continue;
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(tile + Tile<D>::Offset(row, chunk))
                 : "memory");
    *reinterpret_cast<uint4*>(out.At(row0 + row, col + chunk * 8)) = x;
  }
}

}  // namespace hone::cuda::mma
