// du <- alpha dY B + beta du and dB += dY^T U in one pass over dY [m, N], which is all but all of the bytes. A block
// takes a range of rows and a slab of one part's columns: every so many times 128 of them, so that blocks side by side
// read what lies side by side. The slab's dB stays in its registers, du of 64 rows at a time is added up along the
// slab; both go to the workspace as partial sums, and a second launch adds those up in a fixed order. A slab's columns
// follow from the part's and the group's width alone, so that a row of du depends on its row and on B. B and U are read
// in the part's own columns only: the rest of the block diagonal is zero.
//
// A stage of the ring is 64 rows by 128 columns. For dB each warp takes 16 of the columns (k: the rows), for du 16 of
// the rows and half of the rank (k: the columns); the slab's B stays in shared memory, U's fragments in registers where
// the rank leaves room.
#include <algorithm>

#include "kernels/cuda/adapter_backward.h"
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/narrow_mma.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 64, kColumns = 128;  // of a stage
constexpr int kStageBytes = kRows * kColumns * 2;
constexpr int kMostParts = 4;

struct Part {
  int64_t column;        // of dY
  int64_t columns;       // of dY: dB's rows
  int rank, spare;       // its columns of B, U and du begin at `spare`
  int chunks;            // of kColumns, in a slab: every slabs-th, at most
  int slabs, splits;     // of the columns; of the rows
  int tiles;             // of kRows, in a split
  unsigned first_block;  // splits of slabs
  float* du;             // partial sums [slabs, m, RANK]
  float* db;             // partial sums [splits, columns, RANK]
  float* grad;
  int64_t grad_pitch;
};

struct Job {
  const bf16* dy;
  const bf16* b;
  const bf16* u;  // null: no dB
  bf16* du;       // null: no du
  int64_t dy_pitch, b_pitch, u_pitch, du_pitch;
  int64_t rows;
  int spare;  // columns of du
  float alpha, beta;
  int parts;
  unsigned du_blocks;  // of the second launch
  Part part[kMostParts];
};

template <int RANK>
struct Layout {
  static constexpr int kMostChunks = RANK == 16 ? 6 : 3;
  static constexpr int kStages = RANK == 16 ? 4 : 3;
  static constexpr int kBBytes = kMostChunks * kColumns * RANK * 2;
  static constexpr int kUBytes = kRows * RANK * 2;  // of a tile; as many as stages may be on their way
  static constexpr int kSharedBytes = kBBytes + kStages * (kUBytes + kStageBytes);
  static constexpr int kN = RANK / 8;   // fragments side by side: dB
  static constexpr int kHalf = kN / 2;  // du
  static_assert(kSharedBytes <= 99 << 10);
};

// The stages of one block's rows and columns, in the order in which they are used: a tile of rows from left to right.
template <int RANK>
class Loader {
 public:
  __device__ Loader(const Job& p, const Part& part, int64_t row, int64_t rows, int slab, int chunks, uint32_t u,
                    uint32_t stages)
      : dy_(p.dy + (row + threadIdx.x / 16) * p.dy_pitch + part.column + slab * kColumns + threadIdx.x % 16 * 8),
        dy_stride_(16 * p.dy_pitch),
        dy_safe_(p.dy),
        u_(p.u == nullptr ? nullptr
                          : p.u + (row + threadIdx.x / kUChunks) * p.u_pitch + part.spare + threadIdx.x % kUChunks * 8),
        u_stride_(kRows * p.u_pitch),
        rows_left_(static_cast<int>(rows)),
        columns_left_(static_cast<int>(part.columns) - slab * kColumns - static_cast<int>(threadIdx.x % 16) * 8),
        chunk_stride_(part.slabs * kColumns),
        chunks_(chunks),
        u_inside_(static_cast<int>(threadIdx.x) % kUChunks * 8 < part.rank),
        u_place_(u + Place<RANK>(threadIdx.x / kUChunks, threadIdx.x % kUChunks)),
        place_(stages + Place<kColumns>(threadIdx.x / 16, threadIdx.x % 16)) {}

  __device__ void Next() {
    if (rows_left_ > 0) {
      const int row = threadIdx.x / 16;
      const int column = chunk_ * chunk_stride_;
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        const bool valid = column < columns_left_ && row + i * 16 < rows_left_;
        CopyAsync(place_ + slot_ * kStageBytes + i * (16 * kColumns * 2),
                  valid ? dy_ + column + i * dy_stride_ : dy_safe_, valid);
      }
      if (chunk_ == 0 && u_ != nullptr && threadIdx.x < kRows * kUChunks) {
        const bool valid = u_inside_ && static_cast<int>(threadIdx.x) / kUChunks < rows_left_;
        CopyAsync(u_place_ + u_slot_ * Layout<RANK>::kUBytes, valid ? u_ : dy_safe_, valid);
      }
      if (++chunk_ == chunks_) {
        chunk_ = 0;
        rows_left_ -= kRows;
        dy_ += 4 * dy_stride_;
        u_ = u_ == nullptr ? nullptr : u_ + u_stride_;
        u_slot_ = u_slot_ == Layout<RANK>::kStages - 1 ? 0 : u_slot_ + 1;
      }
    }
    slot_ = slot_ == Layout<RANK>::kStages - 1 ? 0 : slot_ + 1;
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

 private:
  static constexpr int kUChunks = RANK / 8;
  const bf16* dy_;
  int64_t dy_stride_;
  const bf16* dy_safe_;
  const bf16* u_;
  int64_t u_stride_;
  int rows_left_, columns_left_, chunk_stride_, chunks_;
  bool u_inside_;
  uint32_t u_place_, place_;
  int chunk_ = 0, slot_ = 0, u_slot_ = 0;
};

template <int RANK>
__device__ inline void LoadB(const Job& p, const Part& part, int slab, int chunks, uint32_t to) {
  constexpr int kChunks = RANK / 8;
  const bf16* b = p.b + part.column * p.b_pitch + part.spare;
  for (int i = threadIdx.x; i < chunks * kColumns * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t column = int64_t{row / kColumns * part.slabs + slab} * kColumns + row % kColumns;
    const bool valid = column < part.columns && chunk * 8 < part.rank;
    CopyAsync(to + Place<RANK>(row, chunk), valid ? b + column * p.b_pitch + chunk * 8 : p.b, valid);
  }
}

// du's sums over 128 columns: rows 16 * (warp % 4), half warp / 4 of the rank.
template <int RANK>
__device__ inline void AddDu(uint32_t stage, uint32_t b, Fragment (&sums)[Layout<RANK>::kHalf]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < kColumns; k += 32) {
    uint32_t x[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      LoadMatrices<false>(x[i], stage + Place<kColumns>(warp % 4 * 16 + lane % 16, k / 8 + i * 2 + lane / 16));
#pragma unroll
    for (int n = 0; n < Layout<RANK>::kHalf; ++n) {
      uint32_t y[4];
      LoadMatrices<true>(y, b + Place<RANK>(k + lane, warp / 4 * Layout<RANK>::kHalf + n));
      Mma(sums[n], x[0], y[0], y[1]);
      Mma(sums[n], x[1], y[2], y[3]);
    }
  }
}

template <int RANK>
using UFragments = uint32_t[kRows / 16][RANK / 16][4];

template <int RANK>
__device__ inline void LoadU(uint32_t u, UFragments<RANK>& y) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
#pragma unroll
    for (int n = 0; n < RANK / 16; ++n)
      LoadMatrices<true>(y[k][n], u + Place<RANK>(k * 16 + lane % 16, n * 2 + lane / 16));
  }
}

// dB's sums over 64 rows: columns 16 * warp.
template <int RANK>
__device__ inline void AddDb(uint32_t stage, const UFragments<RANK>& y, Fragment* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    uint32_t x[4];
    LoadMatrices<true>(x, stage + Place<kColumns>(k * 16 + lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2));
#pragma unroll
    for (int n = 0; n < RANK / 8; ++n) Mma(sums[n], x, y[k][n / 2][n % 2 * 2], y[k][n / 2][n % 2 * 2 + 1]);
  }
}

// Partial sums of 16 rows, N fragments side by side from column `column` on, to rows of RANK.
template <int RANK, int N>
__device__ inline void StorePartial(float* to, int64_t row, int64_t rows, int column, const Fragment* sums) {
  const int lane = threadIdx.x % 32;
  row += lane / 4;
  float* at = to + row * RANK + column + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (row < rows) __stcg(reinterpret_cast<float2*>(at + n * 8), make_float2(sums[n][0], sums[n][1]));
    if (row + 8 < rows) __stcg(reinterpret_cast<float2*>(at + 8 * RANK + n * 8), make_float2(sums[n][2], sums[n][3]));
  }
}

__device__ inline const Part& PartOfBlock(const Job& p) {
  int i = p.parts - 1;
  while (i > 0 && blockIdx.x < p.part[i].first_block) --i;
  return p.part[i];
}

template <int RANK>
__global__ void __launch_bounds__(kThreads, 2) AdapterBackwardSums(const __grid_constant__ Job p) {
  using L = Layout<RANK>;
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t b = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t u = b + L::kBBytes, stages = u + L::kStages * L::kUBytes;
  const Part& part = PartOfBlock(p);
  const int slab = static_cast<int>((blockIdx.x - part.first_block) % part.slabs);
  const int split = static_cast<int>((blockIdx.x - part.first_block) / part.slabs);
  const int64_t row0 = int64_t{split} * part.tiles * kRows;
  const int all = static_cast<int>((part.columns + kColumns - 1) / kColumns);
  const int chunks = (all - slab + part.slabs - 1) / part.slabs;
  const int64_t rows = min(p.rows - row0, int64_t{part.tiles} * kRows);
  const bool want_du = p.du != nullptr, want_db = p.u != nullptr;

  WaitForEarlierKernels();
  LetNextKernelStart();
  if (want_du) LoadB<RANK>(p, part, slab, chunks, b);
  Loader<RANK> loader(p, part, row0, rows, slab, chunks, u, stages);
#pragma unroll
  for (int i = 0; i < L::kStages - 1; ++i) loader.Next();

  const int warp = threadIdx.x / 32;
  Fragment db[L::kMostChunks * L::kN] = {};
  float* const du_partial = part.du + int64_t{slab} * p.rows * RANK;
  int slot = 0, u_slot = 0;
  for (int64_t row = 0; row < rows; row += kRows) {
    Fragment du[L::kHalf] = {};
    UFragments<RANK> y;
#pragma unroll
    for (int chunk = 0; chunk < L::kMostChunks; ++chunk) {
      if (chunk >= chunks) break;
      asm volatile("cp.async.wait_group %0;" ::"n"(L::kStages - 2) : "memory");
      __syncthreads();
      loader.Next();
      const uint32_t stage = stages + slot * kStageBytes;
      slot = slot == L::kStages - 1 ? 0 : slot + 1;
      if (want_db) {
        if (chunk == 0 || RANK > 16) LoadU<RANK>(u + u_slot * L::kUBytes, y);
        AddDb<RANK>(stage, y, db + chunk * L::kN);
      }
      if (want_du) AddDu<RANK>(stage, b + chunk * (kColumns * RANK * 2), du);
    }
    u_slot = u_slot == L::kStages - 1 ? 0 : u_slot + 1;
    if (want_du) {
      StorePartial<RANK, L::kHalf>(du_partial, row0 + row + warp % 4 * 16, p.rows, warp / 4 * (RANK / 2), du);
    }
  }
  if (!want_db) return;
  float* const db_partial = part.db + int64_t{split} * part.columns * RANK;
#pragma unroll
  for (int chunk = 0; chunk < L::kMostChunks; ++chunk) {
    if (chunk >= chunks) break;
    const int64_t column = int64_t{chunk * part.slabs + slab} * kColumns;
    StorePartial<RANK, L::kN>(db_partial, column + warp * 16, part.columns, 0, db + chunk * L::kN);
  }
}

// The sum of `count` partial sums, four columns of one row.
__device__ inline float4 SumPartials(const float* from, int64_t stride, int count) {
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float4 x = __ldcg(reinterpret_cast<const float4*>(from + i * stride));
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
  }
  return sum;
}

template <int RANK>
__device__ inline void FinishDu(const Job& p, int64_t thread) {
  const int each = p.spare / 4;
  const int64_t row = thread / each;
  const int column = static_cast<int>(thread % each) * 4;
  if (row >= p.rows) return;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = 0; i < p.parts; ++i) {
    const Part& part = p.part[i];
    if (column < part.spare || column >= part.spare + part.rank) continue;
    sum = SumPartials(part.du + row * RANK + column - part.spare, p.rows * RANK, part.slabs);
  }
  bf16* to = p.du + row * p.du_pitch + column;
  float values[4] = {p.alpha * sum.x, p.alpha * sum.y, p.alpha * sum.z, p.alpha * sum.w};
  if (p.beta != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] += p.beta * ToFloat(to[i]);
  }
  __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(values[0], values[1]), __floats2bfloat162_rn(values[2], values[3])};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}

template <int RANK>
__device__ inline void FinishDb(const Job& p, int64_t thread) {
  int64_t row = thread / (RANK / 4);
  const int column = static_cast<int>(thread % (RANK / 4)) * 4;
  for (int i = 0; i < p.parts; ++i) {
    const Part& part = p.part[i];
    if (row >= part.columns) {
      row -= part.columns;
      continue;
    }
    if (column >= part.rank) return;
    const float4 sum = SumPartials(part.db + row * RANK + column, part.columns * RANK, part.splits);
    float* to = part.grad + row * part.grad_pitch + column;
    to[0] += sum.x, to[1] += sum.y, to[2] += sum.z, to[3] += sum.w;
    return;
  }
}

template <int RANK>
__global__ void __launch_bounds__(kThreads) AdapterBackwardFinish(const __grid_constant__ Job p) {
  WaitForEarlierKernels();
  LetNextKernelStart();
  if (blockIdx.x < p.du_blocks) return FinishDu<RANK>(p, int64_t{blockIdx.x} * kThreads + threadIdx.x);
  FinishDb<RANK>(p, int64_t{blockIdx.x - p.du_blocks} * kThreads + threadIdx.x);
}

int64_t CeilDiv(int64_t x, int64_t y) { return (x + y - 1) / y; }

struct Room {
  Card card;
  size_t shared_bytes = 0;
};

// One block to a processor: a second one would cost more in partial sums than it hides. It asks for over half of the
// shared memory, lest two that start early share a processor while others have none.
template <int RANK>
const Room& RoomFor() {
  static const Room room = [] {
    Room r{CurrentCard(), 0};
    const int half = r.card.shared_bytes / 2;
    r.shared_bytes = static_cast<size_t>(std::max(Layout<RANK>::kSharedBytes, half));
    cudaFuncSetAttribute(AdapterBackwardSums<RANK>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(r.shared_bytes));
    return r;
  }();
  return room;
}

// Of kColumns, in a slab, where all parts have so many columns: wide slabs make few partial sums of du, narrow ones few
// of dB. Measured on an H100.
int SuggestedChunks(int64_t columns) {
  return columns >= 16384 ? 6 : columns >= 8192 ? 5 : columns >= 5120 ? 4 : columns >= 2048 ? 2 : 1;
}

// Rows in so many splits that all blocks work at once and each has about as many stages.
void CutRows(Job& p, int blocks) {
  const int64_t tiles = CeilDiv(p.rows, kRows);
  int64_t stages = 0;
  for (int i = 0; i < p.parts; ++i) stages += tiles * p.part[i].slabs * p.part[i].chunks;
  for (int64_t each = CeilDiv(stages, blocks);; each += CeilDiv(each, 64)) {
    int64_t count = 0;
    for (int i = 0; i < p.parts; ++i) {
      Part& part = p.part[i];
      part.tiles = static_cast<int>(std::clamp<int64_t>(each / part.chunks, 1, tiles));
      part.splits = static_cast<int>(CeilDiv(tiles, part.tiles));
      part.tiles = static_cast<int>(CeilDiv(tiles, part.splits));
      part.first_block = static_cast<unsigned>(count);
      count += int64_t{part.slabs} * part.splits;
    }
    if (count <= blocks || each >= stages) return;
  }
}

// Floats that the partial sums take.
template <int RANK>
int64_t PlacePartials(Job& p, float* base) {
  int64_t floats = 0;
  for (int i = 0; i < p.parts; ++i) {
    Part& part = p.part[i];
    part.du = base + floats;
    floats += int64_t{part.slabs} * p.rows * RANK;
    part.db = base + floats;
    floats += int64_t{part.splits} * part.columns * RANK;
  }
  return floats;
}

template <int RANK>
void Launch(Job p, int64_t rows, int64_t columns, AdapterBackwardShape shape, const SkinnyWorkspace& workspace,
            cudaStream_t stream) {
  using L = Layout<RANK>;
  const Room& room = RoomFor<RANK>();
  const bool early = room.card.starts_early;
  const int slots = shape.blocks > 0 ? shape.blocks : std::max(room.card.processors, 1);
  const int most = std::min(shape.chunks > 0 ? shape.chunks : SuggestedChunks(columns), L::kMostChunks);
  for (int i = 0; i < p.parts; ++i) {
    Part& part = p.part[i];
    const int64_t chunks = CeilDiv(part.columns, kColumns);
    part.chunks = static_cast<int>(CeilDiv(chunks, CeilDiv(chunks, most)));
    part.slabs = static_cast<int>(CeilDiv(chunks, part.chunks));
  }
  for (int64_t left = rows; left > 0; left -= p.rows) {
    p.rows = left;
    CutRows(p, slots);
    while (PlacePartials<RANK>(p, workspace.partials) * 4 > workspace.partial_bytes) {
      p.rows = CeilDiv(CeilDiv(p.rows, 2), kRows) * kRows;
      CutRows(p, slots);
    }
    const Part& last = p.part[p.parts - 1];
    const auto blocks = last.first_block + static_cast<unsigned>(last.slabs * last.splits);
    LaunchEarly(early, AdapterBackwardSums<RANK>, blocks, kThreads, room.shared_bytes, stream, p);
    int64_t db_rows = 0;
    for (int i = 0; i < p.parts; ++i) db_rows += p.part[i].columns;
    p.du_blocks = p.du == nullptr ? 0 : static_cast<unsigned>(CeilDiv(p.rows * (p.spare / 4), kThreads));
    const auto db_blocks = p.u == nullptr ? 0 : static_cast<unsigned>(CeilDiv(db_rows * (RANK / 4), kThreads));
    LaunchEarly(early, AdapterBackwardFinish<RANK>, p.du_blocks + db_blocks, kThreads, 0, stream, p);
    p.dy += p.rows * p.dy_pitch;
    if (p.u != nullptr) p.u += p.rows * p.u_pitch;
    if (p.du != nullptr) p.du += p.rows * p.du_pitch;
  }
}

bool On16Bytes(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.pitch % 8 == 0; }

int64_t MostRank(std::span<const AdapterPart> parts) {
  int64_t most = 0;
  for (const AdapterPart& part : parts) most = std::max(most, part.db.cols);
  return most;
}

}  // namespace

bool AdapterBackwardFits(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, Tensor du) {
  const int64_t rank = MostRank(parts);
  if (dy.dtype != DType::kBF16 || parts.size() > kMostParts || rank == 0 || rank > 32) return false;
  for (const Tensor& t : {dy, b, u, du}) {
    if (!t.empty() && (!On16Bytes(t) || t.dtype != DType::kBF16)) return false;
  }
  if (b.cols % 8 != 0) return false;
  return std::all_of(parts.begin(), parts.end(), [](const AdapterPart& part) {
    return part.rows % 8 == 0 && part.db.cols % 8 == 0 && part.column % 8 == 0;
  });
}

void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha, float beta,
                     Tensor du, AdapterBackwardShape shape, const SkinnyWorkspace& workspace, cudaStream_t stream) {
  Job p{};
  p.dy = dy.as<bf16>(), p.b = b.as<bf16>();
  p.u = u.empty() ? nullptr : u.as<bf16>(), p.du = du.empty() ? nullptr : du.as<bf16>();
  p.dy_pitch = dy.pitch, p.b_pitch = b.pitch, p.u_pitch = u.pitch, p.du_pitch = du.pitch;
  p.spare = static_cast<int>(b.cols);
  p.alpha = alpha, p.beta = beta;
  int64_t column = 0;
  for (const AdapterPart& from : parts) {
    if (from.db.cols > 0) {
      Part& part = p.part[p.parts++];
      part.column = column, part.columns = from.rows;
      part.rank = static_cast<int>(from.db.cols), part.spare = static_cast<int>(from.column);
      part.grad = from.db.as<float>(), part.grad_pitch = from.db.pitch;
    }
    column += from.rows;
  }
  if (MostRank(parts) <= 16) return Launch<16>(p, dy.rows, dy.cols, shape, workspace, stream);
  Launch<32>(p, dy.rows, dy.cols, shape, workspace, stream);
}

}  // namespace hone::cuda
