// WeightMatmul for NF4 and bf16 weights on tensor cores (weight_matmul.cuh). NF4's code values are rounded to bf16 and
// a block's sum is multiplied by its scale in fp32: one rounding a weight, as when the scaled value is rounded. A byte
// of codes becomes two bf16 by one look-up; every lane has a copy of the table in its own bank.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_matmul.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = kWeightThreads;
constexpr int kBlock = kNf4BlockSize;

// 2^8 pairs of bf16, a copy in every bank. Entries 256 bytes apart leave half of the table empty, but one instruction
// then makes an address of a byte: for cards with that much shared memory.
template <bool kSparse>
struct PairTable {
  static constexpr uint32_t kBytes = kSparse ? 65536 : 32768;
  // Byte kByte of `word`, for the lane with this offset.
  template <int kByte>
  __device__ static uint32_t At(const uint8_t* table, uint32_t word, uint32_t lane_offset) {
    if constexpr (kSparse) {
      return *reinterpret_cast<const uint32_t*>(table + __byte_perm(word, lane_offset, 0x7704 | kByte << 4));
    } else {
      const uint32_t shifted = kByte == 0 ? word << 7 : word >> (8 * kByte - 7);
      return *reinterpret_cast<const uint32_t*>(table + ((shifted & 0x7f80) | lane_offset));
    }
  }
  __device__ static void Fill(uint8_t* table) {
    static_assert(kThreads == 256);
    const int byte = threadIdx.x;
    const __nv_bfloat162 pair(__float2bfloat16_rn(kCodes.values[byte >> 4]),
                              __float2bfloat16_rn(kCodes.values[byte & 15]));
    uint32_t word;
    memcpy(&word, &pair, 4);
    uint4* row = reinterpret_cast<uint4*>(table + byte * (kBytes / 256));
#pragma unroll
    for (int i = 0; i < 8; ++i) row[(i + byte) % 8] = make_uint4(word, word, word, word);
  }
};

// What a block asks into the L2 cache, at most, before it waits for the kernel before it: memory need not wait. (Asking
// further ahead later on does harm: 264 blocks' requests push one another out.)
constexpr int kPrefetchBytes = 64 << 10;

// Of a block of 64 elements, the 16 that a lane holds begin here. Two blocks of NF4 are 64 bytes, 16 a lane, so that
// the upper pair of lanes fetches the second block; the pairs then exchange halves.
__device__ inline int LaneOffset(int quad) { return quad % 2 * 32 + quad / 2 * 16; }

// What a lane holds of kUnit blocks of 64 elements of one row, and the blocks' scales.
template <DType D, int kUnit>
struct RowPart;

template <int kUnit>
struct RowPart<DType::kNf4, kUnit> {
  static constexpr bool kWide = kUnit % 2 == 0;
  static_assert(kUnit == 1 || kUnit == 4);  // a lane looks after the scale of one block
  uint2 codes[kUnit];
  uint32_t scale_code;
  float scale;  // until Prepare the nested one
  // block: number of the first in the flat weight; a multiple of kUnit.
  __device__ void Fetch(const WeightView& w, uint32_t block, int quad) {
    if constexpr (kWide) {
      const uint4* p = static_cast<const uint4*>(w.data) + (block * 2 + quad);
#pragma unroll
      for (int u = 0; u < kUnit; u += 2) {
        const uint4 x = LoadNow(p + u * 2);
        codes[u] = make_uint2(x.x, x.y), codes[u + 1] = make_uint2(x.z, x.w);
      }
    } else {
      const uint2* p = static_cast<const uint2*>(w.data) + (block * 4 + LaneOffset(quad) / 16);
#pragma unroll
      for (int u = 0; u < kUnit; ++u) codes[u] = LoadNow(p + u * 4);
    }
    const uint32_t mine = kUnit == 1 ? block : block + quad;
    if (w.absmax_codes == nullptr) {
      scale = __uint_as_float(LoadNow(reinterpret_cast<const uint32_t*>(w.absmax + mine)));
    } else {
      scale_code = LoadNow(w.absmax_codes + mine);
      scale = __uint_as_float(LoadNow(reinterpret_cast<const uint32_t*>(w.nested_absmax + mine / kNf4NestedBlockSize)));
    }
  }
  __device__ void Prepare(const WeightView& w, const float* nested_code, int quad) {
    if (w.absmax_codes != nullptr) scale = __fadd_rn(__fmul_rn(nested_code[scale_code], scale), w.nested_offset);
    if constexpr (kWide) {
#pragma unroll
      for (int u = 0; u < kUnit; u += 2) {
        const uint2 low = codes[u], high = codes[u + 1];
        const uint32_t x = __shfl_xor_sync(~0u, quad < 2 ? high.x : low.x, 2);
        const uint32_t y = __shfl_xor_sync(~0u, quad < 2 ? high.y : low.y, 2);
        if (quad < 2) codes[u + 1] = make_uint2(x, y);
        if (quad >= 2) codes[u] = make_uint2(x, y);
      }
    }
  }
  template <int kCount>
  __device__ void Drop() {  // the first blocks
#pragma unroll
    for (int u = 0; u + kCount < kUnit; ++u) codes[u] = codes[u + kCount];
  }
  __device__ float Scale(int u) const { return kUnit == 1 ? scale : __shfl_sync(~0u, scale, u, 4); }
  // Pairs 2 s and 2 s + 1 of the lane's eight in block u.
  template <typename Table, int s>
  __device__ void Pairs(const uint8_t* table, uint32_t lane_offset, int u, uint32_t& first, uint32_t& second) const {
    const uint32_t word = s < 2 ? codes[u].x : codes[u].y;
    first = Table::template At<s % 2 * 2>(table, word, lane_offset);
    second = Table::template At<s % 2 * 2 + 1>(table, word, lane_offset);
  }
};

template <int kUnit>
struct RowPart<DType::kBF16, kUnit> {
  uint4 words[kUnit][2];
  __device__ void Fetch(const WeightView& w, uint32_t block, int quad) {
    const uint4* p = static_cast<const uint4*>(w.data) + (int64_t{block} * 8 + LaneOffset(quad) / 8);
#pragma unroll
    for (int u = 0; u < kUnit; ++u) words[u][0] = LoadNow(p + u * 8), words[u][1] = LoadNow(p + u * 8 + 1);
  }
  __device__ void Prepare(const WeightView&, const float*, int) {}
  template <int kCount>
  __device__ void Drop() {
#pragma unroll
    for (int u = 0; u + kCount < kUnit; ++u) words[u][0] = words[u + kCount][0], words[u][1] = words[u + kCount][1];
  }
  __device__ float Scale(int) const { return 1; }
  template <typename Table, int s>
  __device__ void Pairs(const uint8_t*, uint32_t, int u, uint32_t& first, uint32_t& second) const {
    const uint4 four = words[u][s / 2];
    first = s % 2 == 0 ? four.x : four.z;
    second = s % 2 == 0 ? four.y : four.w;
  }
};

template <DType D>
inline constexpr int kUnitOf = D == DType::kNf4 ? 4 : 2;
template <int TILES, int kUnit>
inline constexpr int kBlocksPerMultiprocessor = TILES == 4 || (TILES == 2 && kUnit == 1) ? 1 : 2;

// Weights one under the other: tiles are counted through, and none has rows of two.
struct StackedWeights {
  WeightView view[kWeightMatmulParts];
  int first_tile[kWeightMatmulParts];  // beyond the last: INT32_MAX
  int first_row[kWeightMatmulParts];
  int tiles, rows, cols;
  __device__ int PartOf(int tile) const {
    int part = 0;
#pragma unroll
    for (int p = 1; p < kWeightMatmulParts; ++p) part = tile >= first_tile[p] ? p : part;
    return part;
  }
};

// By one thread. tile_rows: of a tile, in each weight that it takes rows of.
template <bool kHalfBytes, bool kBoth>
__device__ inline void PrefetchTiles(const StackedWeights& weights, int tile_rows) {
  const int row_bytes = kHalfBytes ? weights.cols / 2 : weights.cols * 2;
  int left = kPrefetchBytes;
  for (int tile = static_cast<int>(blockIdx.x); tile < weights.tiles && left > 0; tile += static_cast<int>(gridDim.x)) {
    const int p = kBoth ? 0 : weights.PartOf(tile), row0 = tile * tile_rows - weights.first_row[p];
    const int bytes = min(left, row_bytes * min(tile_rows, static_cast<int>(weights.view[p].rows) - row0));
    for (int q = p; q <= (kBoth ? 1 : p); ++q) {
      PrefetchToL2(static_cast<const uint8_t*>(weights.view[q].data) + int64_t{row0} * row_bytes, bytes);
      left -= bytes;
    }
  }
}

// TILES: of 8 rows of x. ROWS: tiles of 16 rows of W that a warp takes at once. A warp's next part of W is on its way
// while it multiplies the last, also past the end of a tile. kGlu: a tile has 8 rows of the gate over the same 8 rows
// of the other weight, and what is stored is the gated unit of both.
template <DType D, int kUnit, int TILES, int ROWS, bool kSparse, bool kGlu>
__global__ void __launch_bounds__(kThreads, (kBlocksPerMultiprocessor<TILES, kUnit>))
    WeightTiles(const bf16* x, int x_pitch, int m, const __grid_constant__ StackedWeights weights,
                const __grid_constant__ ProductOutput out) {
  constexpr bool kScaled = D == DType::kNf4;
  // Blocks of a part that are multiplied at once: what more need of x would not fit the registers.
  constexpr int kInner = TILES > 1 && kUnit > 1 ? kUnit / 2 : kUnit;
  constexpr int kSums = 16 * ROWS * 8, kBuffers = ROWS == 1 ? 2 : 1;
  using Table = PairTable<kSparse>;
  extern __shared__ uint4 table_storage[];
  __shared__ float nested_code[kScaled ? kWeightMatmulParts * 256 : 1];
  __shared__ float sums[kBuffers][kSlices][kSums];
  uint8_t* table = reinterpret_cast<uint8_t*>(table_storage);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int tiles = weights.tiles, blocks = weights.cols / kBlock, units = blocks / kUnit;
  const int first = units * warp / kSlices, last = units * (warp + 1) / kSlices;
  RowPart<D, kUnit> next[ROWS][2];
  const auto fetch = [&](int tile, int unit) {
    const int p = kGlu ? 0 : weights.PartOf(tile);
    const int row0 = tile * (kGlu ? 8 * ROWS : 16 * ROWS) - weights.first_row[p];
    const int rows = static_cast<int>(weights.view[p].rows);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // rows past the end repeat the last
        const uint32_t row = static_cast<uint32_t>(min(row0 + (kGlu ? r * 8 : r * 16 + h * 8) + group, rows - 1));
        next[r][h].Fetch(weights.view[kGlu ? h : p], row * blocks + unit * kUnit, quad);
      }
    }
  };
  LetNextKernelStart();
  if (first < last) fetch(blockIdx.x, first);
  if (threadIdx.x == 0) PrefetchTiles<kScaled, kGlu>(weights, kGlu ? 8 * ROWS : 16 * ROWS);
  if constexpr (kScaled) {
    Table::Fill(table);
#pragma unroll
    for (int p = 0; p < kWeightMatmulParts; ++p) {
      const float* code = weights.view[p].nested_code;
      if (weights.view[p].absmax_codes != nullptr) nested_code[p * 256 + threadIdx.x] = code[threadIdx.x];
    }
    __syncthreads();
  }
  WaitForEarlierKernels();
  const bf16* columns_at[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int column = t * 8 + group;
    columns_at[t] = column < m ? x + int64_t{column} * x_pitch + LaneOffset(quad) : nullptr;
  }
  const uint32_t lane_offset = lane * 4;
  int buffer = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float total[ROWS][TILES][4] = {};
    const int upper = kGlu ? 0 : weights.PartOf(tile), lower = kGlu ? 1 : upper;
#pragma unroll 1
    for (int unit = first; unit < last; ++unit) {
      RowPart<D, kUnit> part[ROWS][2];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) part[r][0] = next[r][0], part[r][1] = next[r][1];
      if (unit + 1 < last) {
        fetch(tile, unit + 1);
      } else {
        fetch(min(tile + static_cast<int>(gridDim.x), tiles - 1), first);
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        part[r][0].Prepare(weights.view[upper], nested_code + upper * 256, quad);
        part[r][1].Prepare(weights.view[lower], nested_code + lower * 256, quad);
      }
#pragma unroll(kInner == kUnit ? kUnit : 1)
      for (int begin = 0; begin < kUnit; begin += kInner) {
#pragma unroll
        for (int u = 0; u < kInner; ++u) {
          uint4 columns[TILES][2];
#pragma unroll
          for (int t = 0; t < TILES; ++t) {
            columns[t][0] = columns[t][1] = make_uint4(0, 0, 0, 0);
            if (columns_at[t] != nullptr) {
              const uint4* p = reinterpret_cast<const uint4*>(columns_at[t] + (unit * kUnit + begin + u) * kBlock);
              columns[t][0] = __ldg(p), columns[t][1] = __ldg(p + 1);
            }
          }
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            uint32_t a[4][4];
            part[r][0].template Pairs<Table, 0>(table, lane_offset, u, a[0][0], a[0][2]);
            part[r][1].template Pairs<Table, 0>(table, lane_offset, u, a[0][1], a[0][3]);
            part[r][0].template Pairs<Table, 1>(table, lane_offset, u, a[1][0], a[1][2]);
            part[r][1].template Pairs<Table, 1>(table, lane_offset, u, a[1][1], a[1][3]);
            part[r][0].template Pairs<Table, 2>(table, lane_offset, u, a[2][0], a[2][2]);
            part[r][1].template Pairs<Table, 2>(table, lane_offset, u, a[2][1], a[2][3]);
            part[r][0].template Pairs<Table, 3>(table, lane_offset, u, a[3][0], a[3][2]);
            part[r][1].template Pairs<Table, 3>(table, lane_offset, u, a[3][1], a[3][3]);
            const float scale0 = part[r][0].Scale(begin + u), scale1 = part[r][1].Scale(begin + u);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
              float sum[4] = {};
              float(&target)[4] = kScaled ? sum : total[r][t];
              Mma(target, a[0], columns[t][0].x, columns[t][0].y);
              Mma(target, a[1], columns[t][0].z, columns[t][0].w);
              Mma(target, a[2], columns[t][1].x, columns[t][1].y);
              Mma(target, a[3], columns[t][1].z, columns[t][1].w);
              if constexpr (kScaled) {  // spelt out, so that every instance of the template rounds alike
                total[r][t][0] = __fmaf_rn(scale0, sum[0], total[r][t][0]);
                total[r][t][1] = __fmaf_rn(scale0, sum[1], total[r][t][1]);
                total[r][t][2] = __fmaf_rn(scale1, sum[2], total[r][t][2]);
                total[r][t][3] = __fmaf_rn(scale1, sum[3], total[r][t][3]);
              }
            }
          }
        }
        if constexpr (kInner != kUnit) {
#pragma unroll
          for (int r = 0; r < ROWS; ++r) part[r][0].template Drop<kInner>(), part[r][1].template Drop<kInner>();
        }
      }
    }
    if constexpr (kGlu) {
      FinishGluTile(sums, buffer, total, tile * (8 * ROWS), static_cast<int>(weights.view[0].rows), m, out);
    } else {
      FinishTile(sums, buffer, total, tile * (16 * ROWS), 0, weights.rows, m, out);
    }
  }
}

constexpr int RowTiles(int tiles) { return tiles == 4 ? 2 : 1; }  // ROWS by TILES

StackedWeights Stack(std::span<const WeightView> weights, int tile_rows) {  // tile_rows: of all of a tile
  StackedWeights stacked{};
  int64_t rows = 0;
  for (size_t p = 0; p < kWeightMatmulParts; ++p) {
    stacked.first_tile[p] = p < weights.size() ? static_cast<int>(rows / tile_rows) : INT32_MAX;
    stacked.first_row[p] = static_cast<int>(rows);
    if (p >= weights.size()) continue;
    stacked.view[p] = weights[p];
    rows += weights[p].rows;
  }
  stacked.rows = static_cast<int>(rows), stacked.cols = static_cast<int>(weights[0].cols);
  stacked.tiles = static_cast<int>((rows + tile_rows - 1) / tile_rows);
  return stacked;
}

struct Product {
  Tensor x;
  std::span<const WeightView> weights;
  Tensor y, addend;
  cudaStream_t stream;
  bool glu = false;  // y <- the gated unit of two
  Product Rows(int64_t begin, int64_t count) const {
    return {x.Rows(begin, count), weights, y.Rows(begin, count), RowsOf(addend, begin, count), stream, glu};
  }
};

template <DType D, int kUnit, int TILES, bool kSparse, bool kGlu>
void LaunchWithTable(const Product& p, const Card& card) {
  constexpr int ROWS = RowTiles(TILES);
  const StackedWeights stacked = Stack(p.weights, 16 * ROWS);
  const int grid = std::min(stacked.tiles, card.processors * (kBlocksPerMultiprocessor<TILES, kUnit>));
  constexpr size_t kTableBytes = D == DType::kNf4 ? PairTable<kSparse>::kBytes : 0;
  const auto kernel = WeightTiles<D, kUnit, TILES, ROWS, kSparse, kGlu>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kTableBytes));
  LaunchEarly(card.starts_early, kernel, static_cast<unsigned>(grid), kThreads, kTableBytes, p.stream, p.x.as<bf16>(),
              static_cast<int>(p.x.pitch), static_cast<int>(p.x.rows), stacked, ProductOutput(p.y, p.addend));
}

template <DType D, int kUnit, int TILES, bool kGlu>
void LaunchTiles(const Product& p) {
  const Card card = CurrentCard();
  if (D == DType::kNf4 && card.shared_bytes >= 160 * 1024) {
    LaunchWithTable<D, kUnit, TILES, D == DType::kNf4, kGlu>(p, card);
  } else {
    LaunchWithTable<D, kUnit, TILES, false, kGlu>(p, card);
  }
}

template <DType D, int kUnit, bool kGlu>
void LaunchTilesFor(const Product& p) {
  if (p.x.rows <= 8) return LaunchTiles<D, kUnit, 1, kGlu>(p);
  if (p.x.rows <= 16) return LaunchTiles<D, kUnit, 2, kGlu>(p);
  LaunchTiles<D, kUnit, 4, kGlu>(p);
}

bool OnSixteenBytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// True if tensor cores took it.
template <DType D>
bool TryTiles(const Product& p) {
  if (p.x.dtype != DType::kBF16 || !OnSixteenBytes(p.x.data) || (p.x.rows > 1 && p.x.pitch % 8 != 0)) return false;
  const int64_t cols = p.weights[0].cols;
  int64_t rows = 0;
  for (const WeightView& w : p.weights) {
    if (!OnSixteenBytes(w.data) || w.rows * (cols / kBlock) > INT32_MAX / 4) return false;
    if (p.weights.size() > 1 && (w.rows == 0 || (!p.glu && w.rows % (16 * RowTiles(4)) != 0))) return false;
    rows += w.rows;
  }
  if (cols % kBlock != 0 || cols > INT32_MAX || rows > INT32_MAX / 2) return false;
  const bool whole = cols % (kBlock * kUnitOf<D>) == 0;
  if (p.glu && !whole) return false;
  for (int64_t begin = 0; begin < p.x.rows; begin += kMostRows) {  // more would not fit the registers
    const Product some = p.Rows(begin, std::min(kMostRows, p.x.rows - begin));
    if (p.glu) {
      LaunchTilesFor<D, kUnitOf<D>, true>(some);
    } else if (whole) {
      LaunchTilesFor<D, kUnitOf<D>, false>(some);
    } else {
      LaunchTilesFor<D, 1, false>(some);
    }
  }
  return true;
}

}  // namespace

bool WeightMatmulTiles(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, cudaStream_t stream) {
  const Product product{x, weights, y, addend, stream, false};
  if (weights[0].dtype == DType::kNf4) return TryTiles<DType::kNf4>(product);
  return weights[0].dtype == DType::kBF16 && TryTiles<DType::kBF16>(product);
}

bool WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Activation activation, Tensor out,
                     cudaStream_t stream) {
  if (activation != Activation::kSilu) return false;
  const Product product{x, weights, out, {}, stream, true};
  if (weights[0].dtype == DType::kNf4) return TryTiles<DType::kNf4>(product);
  return weights[0].dtype == DType::kBF16 && TryTiles<DType::kBF16>(product);
}

}  // namespace hone::cuda
