// Products with one narrow side in bf16: the adapter's x A^T and dY B (few columns), dA and dB (few rows or columns,
// sums over the tokens). Each is bound by reading its wide operand once. A block takes 64 or 128 rows of the wide side
// and up to 64 of the narrow one; where such tiles are too few for the card, several blocks share one along k, and the
// one that ends last adds their sums in a fixed order, whichever it is. For x A^T and dY B the order follows from k
// alone (PieceTree), so that a row's result depends on its row and on b, not on m.
//
// Tensor cores by mma.m16n8k16, operands by cp.async into a ring of stages (narrow_mma.cuh). Below: "a" is the wide
// operand [rows, k], stored so or as [k, rows]; "b" the narrow one, stored [k, columns] or [columns, k].
#include <algorithm>

#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/narrow_mma.cuh"
#include "kernels/cuda/skinny.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 64;             // of k in a stage
constexpr int kStageBytes = 96 << 10;  // all stages: sm_86 gives a block 99 KiB
constexpr int kTreePieces = 4;         // of k, where their sums are added two by two:
constexpr int64_t kTreeDepth = 1024;   // from so much on, none of them is empty
constexpr int64_t kLongRows = 8192;
constexpr int64_t kMaxTickets = kCudaTicketBytes / 4;

struct Product {
  const bf16* a;
  const bf16* b;
  void* c;
  int64_t a_pitch, b_pitch, c_row, c_col;  // strides in elements
  int64_t rows, columns, k;
  int steps_per_piece;      // of kDepth
  int pieces_per_block;     // neighbours: 1, or of kTreePieces
  int split, column_tiles;  // blocks to a tile; tiles side by side
  float alpha, beta;
  bool fp32_out, pairs;  // pairs: two neighbouring columns of c in one access
  float* partials;
  unsigned* tickets;
};

template <int ROWS, int COLUMNS, bool kDepthFirstA>
struct Tile {
  static constexpr int kWarpColumns = COLUMNS == 64 || !kDepthFirstA ? 2 : 1;         // warps side by side
  static constexpr int kGroups = kDepthFirstA && ROWS == 64 && COLUMNS < 64 ? 2 : 1;  // halves of a stage's depth
  static constexpr int kWarpRows = 8 / kWarpColumns / kGroups;
  static constexpr int kM = ROWS / 16 / kWarpRows, kN = COLUMNS / 8 / kWarpColumns;  // fragments of a warp
  static constexpr int kFragments = kM * kN;
  static constexpr bool kPieces = !kDepthFirstA && ROWS == 64;  // several may be one block's: room for their sums
  static constexpr int kSummers = kThreads / kGroups;           // threads that hold the tile's sums in the end
  static constexpr int kBytes = (ROWS + COLUMNS) * kDepth * 2;  // of a stage
  static constexpr int kStages = std::min(kStageBytes / kBytes, 6);
  static constexpr int kSharedBytes = kBytes * kStages;
};

// One operand's part in every stage: [LINES, kDepth] as stored, or [kDepth, LINES] if kDepthFirst. Lines beyond the end
// come as zeros.
template <int LINES, bool kDepthFirst>
class Operand {
 public:
  __device__ Operand(const bf16* base, int64_t pitch, int64_t line0, int64_t lines, int64_t depth0)
      : safe_(base),
        stage_stride_(kDepthFirst ? kDepth * pitch : kDepth),
        chunk_stride_(kRowsApart * pitch),
        lines_left_(static_cast<int>(min(lines - line0, int64_t{LINES}))) {
    const int row = threadIdx.x / kChunksPerRow, chunk = threadIdx.x % kChunksPerRow;
    place_ = Place<kWidth>(row, chunk);
    from_ =
        base + (kDepthFirst ? (depth0 + row) * pitch + line0 + chunk * 8 : (line0 + row) * pitch + depth0 + chunk * 8);
  }

  // The next stage, of which the first `depth` are inside.
  __device__ void Load(uint32_t stage, int depth) {
    const int row = threadIdx.x / kChunksPerRow, chunk = threadIdx.x % kChunksPerRow;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (kChunks < kThreads && threadIdx.x >= kChunks) break;
      const int along = row + i * kRowsApart, across = chunk * 8;
      const bool valid = kDepthFirst ? along < depth && across < lines_left_ : along < lines_left_ && across < depth;
      const bf16* from = valid ? from_ + i * chunk_stride_ : safe_;
      const uint32_t to = stage + place_ + i * (kRowsApart * kChunksPerRow * 16);
      CopyAsync(to, from, valid);
    }
    from_ += stage_stride_;
  }

 private:
  static constexpr int kWidth = kDepthFirst ? LINES : kDepth, kChunksPerRow = kWidth / 8;
  static constexpr int kChunks = LINES * kDepth / 8, kEach = (kChunks + kThreads - 1) / kThreads;
  // A thread's chunks lie below one another, a multiple of 8 rows apart, so that Place permutes them alike.
  static constexpr int kRowsApart = kThreads / kChunksPerRow;
  static_assert(kRowsApart % 8 == 0);
  const bf16* safe_;
  const bf16* from_;
  int64_t stage_stride_, chunk_stride_;
  uint32_t place_;
  int lines_left_;
};

// Fragments of a: 16 lines from `line`, 16 of k from `k`.
template <int LINES, bool kDepthFirst>
__device__ inline void FragmentA(uint32_t (&x)[4], uint32_t stage, int line, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (kDepthFirst) {
    LoadMatrices<true>(x, stage + Place<LINES>(k + lane % 8 + lane / 16 * 8, line / 8 + lane / 8 % 2));
  } else {
    LoadMatrices<false>(x, stage + Place<kDepth>(line + lane % 16, k / 8 + lane / 16));
  }
}

// Of b: 16 lines as two fragments of 8.
template <int LINES, bool kDepthFirst>
__device__ inline void FragmentsB(uint32_t (&x)[4], uint32_t stage, int line, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (kDepthFirst) {
    LoadMatrices<true>(x, stage + Place<LINES>(k + lane % 16, line / 8 + lane / 16));
  } else {
    LoadMatrices<false>(x, stage + Place<kDepth>(line + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
  }
}

template <int FRAGMENTS>
__device__ inline void Add(Fragment (&sums)[FRAGMENTS], const Fragment (&more)[FRAGMENTS]) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[f][i] += more[f][i];
  }
}

template <int FRAGMENTS>
__device__ inline void Set(Fragment (&sums)[FRAGMENTS], const Fragment (&to)[FRAGMENTS]) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[f][i] = to[f][i];
  }
}

template <int FRAGMENTS>
__device__ inline void Clear(Fragment (&sums)[FRAGMENTS]) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) sums[f][0] = sums[f][1] = sums[f][2] = sums[f][3] = 0;
}

// Sums of a block's pieces, added two by two like the leaves of a tree, so that it does not matter how many blocks
// share the pieces.
template <int FRAGMENTS>
class PieceTree {
 public:
  // After piece i of `pieces`: sums become those of the pieces so far (of the last, all) or begin anew.
  __device__ void EndPiece(int i, int pieces, Fragment (&sums)[FRAGMENTS]) {
    if (i % 2 == 1) Add(sums, one_);
    if (i % 4 == 3) Add(sums, two_);
    if (i == pieces - 1) return;
    if (i % 2 == 0) {
      Set(one_, sums);
    } else {
      Set(two_, sums);
    }
    Clear(sums);
  }

 private:
  Fragment one_[FRAGMENTS], two_[FRAGMENTS];
};

template <int FRAGMENTS, int THREADS>
__device__ inline void LoadPartial(const float4* partial, Fragment (&sums)[FRAGMENTS]) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    const float4 x = __ldcg(partial + f * THREADS);
    sums[f][0] = x.x, sums[f][1] = x.y, sums[f][2] = x.z, sums[f][3] = x.w;
  }
}

// Adds what the blocks of a tile found, in a fixed order; a thread reads what those with its place wrote. False:
// another block is to do so. All threads of the block come here; those beyond THREADS hold no sums.
template <int FRAGMENTS, int THREADS, bool kTree>
__device__ bool AddParts(const Product& p, unsigned tile, int part, Fragment (&sums)[FRAGMENTS]) {
  constexpr int kPartial = FRAGMENTS * THREADS;
  float4* partials = reinterpret_cast<float4*>(p.partials) + int64_t{tile} * p.split * kPartial + threadIdx.x;
  if (threadIdx.x < THREADS) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f)
      __stcg(partials + part * kPartial + f * THREADS, make_float4(sums[f][0], sums[f][1], sums[f][2], sums[f][3]));
  }
  __threadfence();
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(p.tickets + tile, 1u) == static_cast<unsigned>(p.split - 1);
    if (last) p.tickets[tile] = 0;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  if (threadIdx.x >= THREADS) return true;
  Fragment more[FRAGMENTS];
  LoadPartial<FRAGMENTS, THREADS>(partials, sums);
  if (kTree && p.split == 4) {
    Fragment third[FRAGMENTS];
    LoadPartial<FRAGMENTS, THREADS>(partials + kPartial, more);
    Add(sums, more);
    LoadPartial<FRAGMENTS, THREADS>(partials + 2 * kPartial, third);
    LoadPartial<FRAGMENTS, THREADS>(partials + 3 * kPartial, more);
    Add(third, more), Add(sums, third);
    return true;
  }
#pragma unroll 4
  for (int i = 1; i < p.split; ++i) {
    LoadPartial<FRAGMENTS, THREADS>(partials + i * kPartial, more);
    Add(sums, more);
  }
  return true;
}

template <typename C>
struct PairOf;
template <>
struct PairOf<float> {
  using Type = float2;
  static __device__ float2 Make(float x, float y) { return make_float2(x, y); }
};
template <>
struct PairOf<bf16> {
  using Type = __nv_bfloat162;
  static __device__ __nv_bfloat162 Make(float x, float y) { return __floats2bfloat162_rn(x, y); }
};

// c <- alpha sums + beta c for a warp's fragments from (row0, column0) on. All of c is read before any of it is
// written: one wait instead of one for each element.
template <int M, int N, typename C>
__device__ inline void StoreFragments(const Product& p, int64_t row0, int64_t column0, Fragment (&sums)[M * N]) {
  const int lane = threadIdx.x % 32;
  const int64_t row = row0 + lane / 4, column = column0 + lane % 4 * 2;
  C* c = static_cast<C*>(p.c) + row * p.c_row + column * p.c_col;
  const auto inside = [&](int f, int i) {
    return row + f / N * 16 + i / 2 * 8 < p.rows && column + f % N * 8 + i % 2 < p.columns;
  };
  const auto at = [&](int f, int i) { return c + (f / N * 16 + i / 2 * 8) * p.c_row + (f % N * 8 + i % 2) * p.c_col; };
#pragma unroll
  for (int f = 0; f < M * N; ++f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[f][i] *= p.alpha;
  }
  if (p.beta != 0) {
    Fragment old[M * N];
#pragma unroll
    for (int f = 0; f < M * N; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) old[f][i] = inside(f, i) ? ToFloat(*at(f, i)) : 0.0f;
    }
#pragma unroll
    for (int f = 0; f < M * N; ++f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[f][i] += p.beta * old[f][i];
    }
  }
#pragma unroll
  for (int f = 0; f < M * N; ++f) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (p.pairs) {
        if (inside(f, i))
          *reinterpret_cast<typename PairOf<C>::Type*>(at(f, i)) = PairOf<C>::Make(sums[f][i], sums[f][i + 1]);
        continue;
      }
      if (inside(f, i)) *at(f, i) = FromFloat<C>(sums[f][i]);
      if (inside(f, i + 1)) *at(f, i + 1) = FromFloat<C>(sums[f][i + 1]);
    }
  }
}

// The second half of the warps hands its sums to the first through the memory of the stages.
template <int FRAGMENTS>
__device__ inline void AddGroups(float4* shared, bool second, Fragment (&sums)[FRAGMENTS]) {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  float4* place = shared + threadIdx.x % (kThreads / 2);
  if (second) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f)
      place[f * (kThreads / 2)] = make_float4(sums[f][0], sums[f][1], sums[f][2], sums[f][3]);
  }
  __syncthreads();
  if (second) return;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    const float4 x = place[f * (kThreads / 2)];
    sums[f][0] += x.x, sums[f][1] += x.y, sums[f][2] += x.z, sums[f][3] += x.w;
  }
}

template <int ROWS, int COLUMNS, bool kDepthFirstA, bool kDepthFirstB>
__global__ void __launch_bounds__(kThreads, 2) Skinny(const __grid_constant__ Product p) {
  using T = Tile<ROWS, COLUMNS, kDepthFirstA>;
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t stages = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const unsigned tile = blockIdx.x / p.split;
  const int part = static_cast<int>(blockIdx.x % p.split);
  const int64_t row0 = int64_t{tile / p.column_tiles} * ROWS, column0 = int64_t{tile % p.column_tiles} * COLUMNS;
  const int block_steps = p.steps_per_piece * p.pieces_per_block;
  const int64_t begin = int64_t{part} * block_steps * kDepth;
  const int depth = static_cast<int>(min(int64_t{block_steps} * kDepth, p.k - begin));
  const int steps = (depth + kDepth - 1) / kDepth;
  Operand<ROWS, kDepthFirstA> a(p.a, p.a_pitch, row0, p.rows, begin);
  Operand<COLUMNS, kDepthFirstB> b(p.b, p.b_pitch, column0, p.columns, begin);
  const auto load = [&](int step, int slot) {
    if (step < steps) {
      a.Load(stages + slot * T::kBytes, depth - step * kDepth);
      b.Load(stages + slot * T::kBytes + ROWS * kDepth * 2, depth - step * kDepth);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  WaitForEarlierKernels();
  LetNextKernelStart();
#pragma unroll
  for (int step = 0; step < T::kStages - 1; ++step) load(step, step);

  const int warp = threadIdx.x / 32, group = warp / (8 / T::kGroups), place = warp % (8 / T::kGroups);
  const int row = place / T::kWarpColumns * (T::kM * 16), column = place % T::kWarpColumns * (T::kN * 8);
  Fragment sums[T::kFragments] = {};
  [[maybe_unused]] PieceTree<T::kFragments> tree;
  int slot = 0;
  [[maybe_unused]] int in_piece = 0, piece = 0;
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(T::kStages - 2) : "memory");
    __syncthreads();
    load(step + T::kStages - 1, slot == 0 ? T::kStages - 1 : slot - 1);
    const uint32_t stage = stages + slot * T::kBytes, stage_b = stage + ROWS * kDepth * 2;
    slot = slot == T::kStages - 1 ? 0 : slot + 1;
#pragma unroll
    for (int i = 0; i < kDepth / T::kGroups; i += 16) {
      const int k = i + group * (kDepth / T::kGroups);
      uint32_t x[T::kM][4], y[T::kN / 2][4];
#pragma unroll
      for (int m = 0; m < T::kM; ++m) FragmentA<ROWS, kDepthFirstA>(x[m], stage, row + m * 16, k);
#pragma unroll
      for (int n = 0; n < T::kN / 2; ++n) FragmentsB<COLUMNS, kDepthFirstB>(y[n], stage_b, column + n * 16, k);
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
#pragma unroll
        for (int n = 0; n < T::kN; ++n) Mma(sums[m * T::kN + n], x[m], y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]);
      }
    }
    if constexpr (T::kPieces) {
      if (p.pieces_per_block > 1 && (++in_piece == p.steps_per_piece || step == steps - 1)) {
        tree.EndPiece(piece++, p.pieces_per_block, sums);
        in_piece = 0;
      }
    }
  }
  if constexpr (T::kGroups == 2) AddGroups(reinterpret_cast<float4*>(shared), group == 1, sums);
  if (p.split > 1 && !AddParts<T::kFragments, T::kSummers, !kDepthFirstA>(p, tile, part, sums)) return;
  if (group != 0) return;
  if (p.fp32_out) {
    StoreFragments<T::kM, T::kN, float>(p, row0 + row, column0 + column, sums);
  } else {
    StoreFragments<T::kM, T::kN, bf16>(p, row0 + row, column0 + column, sums);
  }
}

template <int ROWS, int COLUMNS, bool kDepthFirstA, bool kDepthFirstB>
void LaunchTile(const Product& p, cudaStream_t stream) {
  using T = Tile<ROWS, COLUMNS, kDepthFirstA>;
  const auto kernel = Skinny<ROWS, COLUMNS, kDepthFirstA, kDepthFirstB>;
  // Once for all, for the process works on one card; if it fails so does the launch.
  [[maybe_unused]] static const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  const int64_t tiles = (p.rows + ROWS - 1) / ROWS * p.column_tiles;
  static const bool early = CardStartsEarly();
  LaunchEarly(early, kernel, static_cast<unsigned>(tiles * p.split), kThreads, T::kSharedBytes, stream, p);
}

template <int COLUMNS>
void LaunchLayout(const Product& p, int rows, bool depth_first_a, bool depth_first_b, cudaStream_t stream) {
  if (depth_first_a && rows == 128) return LaunchTile<128, COLUMNS, true, true>(p, stream);
  if (depth_first_a) return LaunchTile<64, COLUMNS, true, true>(p, stream);
  if constexpr (COLUMNS > 16) {
    if (rows == 128 && depth_first_b) return LaunchTile<128, COLUMNS, false, true>(p, stream);
    if (rows == 128) return LaunchTile<128, COLUMNS, false, false>(p, stream);
    if (depth_first_b) return LaunchTile<64, COLUMNS, false, true>(p, stream);
    LaunchTile<64, COLUMNS, false, false>(p, stream);
  }
}

void LaunchColumns(const Product& p, SkinnyShape shape, bool depth_first_a, bool depth_first_b, cudaStream_t stream) {
  if (shape.columns == 16) return LaunchLayout<16>(p, shape.rows, depth_first_a, depth_first_b, stream);
  if (shape.columns == 32) return LaunchLayout<32>(p, shape.rows, depth_first_a, depth_first_b, stream);
  LaunchLayout<64>(p, shape.rows, depth_first_a, depth_first_b, stream);
}

int64_t CeilDiv(int64_t x, int64_t y) { return (x + y - 1) / y; }

bool RowsOn16Bytes(Tensor t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.pitch % 8 == 0;  // whatever the number of rows: not by m
}

// The wide operand gives the rows of a tile: for dA (few rows of c, many columns) that is b.
struct Roles {
  Tensor wide, narrow;
  bool depth_first_wide, depth_first_narrow;
  int64_t rows, columns, k, c_row, c_col;
};

bool Swapped(Tensor c, Transpose ta, Transpose tb) {
  return ta == Transpose::kYes && tb == Transpose::kNo && c.rows < c.cols;
}

Roles RolesOf(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  const int64_t k = ta == Transpose::kYes ? a.rows : a.cols;
  if (Swapped(c, ta, tb)) return {b, a, true, true, c.cols, c.rows, k, 1, c.pitch};
  return {a, b, ta == Transpose::kYes, tb == Transpose::kNo, c.rows, c.cols, k, c.pitch, 1};
}

}  // namespace

bool SkinnyFits(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  if (a.dtype != DType::kBF16 || (ta == Transpose::kYes && tb == Transpose::kYes)) return false;
  if (!RowsOn16Bytes(a) || !RowsOn16Bytes(b)) return false;
  const Roles r = RolesOf(a, ta, b, tb, c);
  // A chunk of 8 along a stored row lies inside it or outside.
  if ((r.depth_first_wide ? r.rows : r.k) % 8 != 0 || (r.depth_first_narrow ? r.columns : r.k) % 8 != 0) return false;
  return r.columns <= kSkinnyColumns;
}

SkinnyShape SkinnyShapeFor(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  const Roles r = RolesOf(a, ta, b, tb, c);
  constexpr int64_t kBlocks = 112;  // enough to keep the memory of 132 processors busy
  SkinnyShape s;
  s.columns = r.columns <= 16 && r.depth_first_wide ? 16 : r.columns <= 32 ? 32 : 64;
  const int64_t column_tiles = CeilDiv(r.columns, s.columns);
  if (!r.depth_first_wide) {
    if (r.k < kTreeDepth) return s;
    // Long rows bear two blocks to a processor.
    const int64_t tiles = CeilDiv(r.rows, 64) * column_tiles, blocks = r.k < kLongRows ? kBlocks : 2 * kBlocks;
    s.split = tiles >= blocks ? 1 : tiles * 2 >= blocks ? 2 : kTreePieces;
    return s;
  }
  if (CeilDiv(r.rows, 128) * column_tiles >= kBlocks && s.columns < 64) s.rows = 128;
  const int64_t tiles = CeilDiv(r.rows, s.rows) * column_tiles;
  s.split = static_cast<int>(std::clamp<int64_t>(CeilDiv(kBlocks, tiles), 1, std::max<int64_t>(r.k / 128, 1)));
  return s;
}

void SkinnyMatmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta, SkinnyShape shape,
                  const SkinnyWorkspace& workspace, cudaStream_t stream) {
  const Roles r = RolesOf(a, ta, b, tb, c);
  const int64_t size = c.dtype == DType::kF32 ? 4 : 2;
  Product p{};
  p.a = r.wide.as<bf16>(), p.a_pitch = r.wide.pitch;
  p.b = r.narrow.as<bf16>(), p.b_pitch = r.narrow.pitch;
  p.c = c.data, p.c_row = r.c_row, p.c_col = r.c_col, p.fp32_out = c.dtype == DType::kF32;
  p.pairs = r.c_col == 1 && r.c_row % 2 == 0 && r.columns % 2 == 0 &&
            reinterpret_cast<uintptr_t>(c.data) % static_cast<uintptr_t>(2 * size) == 0;
  p.columns = r.columns, p.k = r.k;
  p.alpha = alpha, p.beta = beta;
  const int pieces = r.depth_first_wide ? shape.split : r.k < kTreeDepth ? 1 : kTreePieces;
  p.steps_per_piece = static_cast<int>(CeilDiv(CeilDiv(r.k, pieces), kDepth));
  p.split = r.depth_first_wide ? static_cast<int>(CeilDiv(r.k, int64_t{p.steps_per_piece} * kDepth)) : shape.split;
  p.pieces_per_block = pieces / shape.split;
  p.column_tiles = static_cast<int>(CeilDiv(r.columns, shape.columns));
  p.partials = workspace.partials, p.tickets = workspace.tickets;
  // Rows in parts whose partial sums and tickets fit.
  const int64_t tile_bytes = int64_t{4} * shape.rows * shape.columns * p.split;
  const int64_t tiles = std::min<int64_t>(kMaxTickets, workspace.partial_bytes / tile_bytes);
  const int64_t part = p.split == 1 ? (int64_t{1} << 20) * shape.rows : tiles / p.column_tiles * shape.rows;
  for (int64_t begin = 0; begin < r.rows; begin += part) {
    p.rows = std::min(part, r.rows - begin);
    LaunchColumns(p, shape, r.depth_first_wide, r.depth_first_narrow, stream);
    p.a += r.depth_first_wide ? part : part * p.a_pitch;
    p.c = static_cast<char*>(p.c) + part * p.c_row * size;
  }
}

}  // namespace hone::cuda
