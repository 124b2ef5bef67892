// WeightMatmul for NF4 and bf16 weights on tensor cores (weight_matmul.cuh). NF4's code values are rounded to bf16 and a
// block's sum is multiplied by its scale in fp32: one rounding a weight, as when the scaled value is rounded. A byte of
// codes becomes two bf16 by one look-up; every lane has a copy of the table in its own bank.
#include <algorithm>

#include "kernels/cuda/weight_matmul.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = kWeightThreads;
constexpr int kBlock = kNf4BlockSize;

// 2^8 pairs of bf16, element b, lane l at b * 32 + l.
struct PairTable {
  alignas(128) uint32_t pairs[256 * 32];
};

__device__ inline void FillPairs(PairTable& table) {
  const int byte = threadIdx.x;
  static_assert(kThreads == 256);
  const __nv_bfloat162 pair(__float2bfloat16_rn(kCodes.values[byte >> 4]), __float2bfloat16_rn(kCodes.values[byte & 15]));
  uint32_t word;
  memcpy(&word, &pair, 4);
  uint4* row = reinterpret_cast<uint4*>(table.pairs + byte * 32);
#pragma unroll
  for (int i = 0; i < 8; ++i) row[(i + byte) % 8] = make_uint4(word, word, word, word);
}

// Of a block of 64 elements, the 16 that a lane holds begin here. Two blocks of NF4 are 64 bytes, 16 a lane, so that
// the upper pair of lanes fetches the second block; the pairs then exchange halves.
__device__ inline int LaneOffset(int quad) { return quad % 2 * 32 + quad / 2 * 16; }

// What a lane holds of kUnit blocks of 64 elements of one row, and the blocks' scales.
template <DType D, int kUnit>
struct RowPart;

template <int kUnit>
struct RowPart<DType::kNf4, kUnit> {
  static constexpr bool kWide = kUnit % 2 == 0;
  uint2 codes[kUnit];
  uint32_t scales[kUnit < 2 ? 2 : kUnit];  // codes and the nested scale, or a block's own each
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
    if (w.absmax_codes == nullptr) {
#pragma unroll
      for (int u = 0; u < kUnit; ++u) scales[u] = LoadNow(reinterpret_cast<const uint32_t*>(w.absmax + block + u));
    } else {
      const uint8_t* p = w.absmax_codes + block;
      scales[0] = kUnit == 4 ? LoadNow(reinterpret_cast<const uint32_t*>(p)) : LoadNow(p);
      scales[1] = LoadNow(reinterpret_cast<const uint32_t*>(w.nested_absmax + block / kNf4NestedBlockSize));
    }
  }
  __device__ void Exchange(int quad) {
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
  __device__ float Scale(const WeightView& w, const float* nested_code, int u) const {
    if (w.absmax_codes == nullptr) return __uint_as_float(scales[u]);
    return __fadd_rn(__fmul_rn(nested_code[scales[0] >> (8 * u) & 255], __uint_as_float(scales[1])), w.nested_offset);
  }
  // Pairs 2 s and 2 s + 1 of the lane's eight in block u.
  __device__ void Pairs(const PairTable& table, int u, int s, uint32_t& first, uint32_t& second) const {
    const uint32_t word = s < 2 ? codes[u].x : codes[u].y;
    const uint32_t lane = threadIdx.x % 32 * 4;
    const char* base = reinterpret_cast<const char*>(table.pairs);
    const uint32_t low = s % 2 == 0 ? word << 7 : word >> 9, high = s % 2 == 0 ? word >> 1 : word >> 17;
    first = *reinterpret_cast<const uint32_t*>(base + ((low & 0x7f80) | lane));
    second = *reinterpret_cast<const uint32_t*>(base + ((high & 0x7f80) | lane));
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
  __device__ void Exchange(int) {}
  __device__ float Scale(const WeightView&, const float*, int) const { return 1; }
  __device__ void Pairs(const PairTable&, int u, int s, uint32_t& first, uint32_t& second) const {
    const uint4 four = words[u][s / 2];
    first = s % 2 == 0 ? four.x : four.z;
    second = s % 2 == 0 ? four.y : four.w;
  }
};

template <DType D>
inline constexpr int kUnitOf = D == DType::kNf4 ? 4 : 2;
template <int TILES>
inline constexpr int kBlocksPerMultiprocessor = TILES == 1 ? 2 : 1;

// TILES: of 8 rows of x. ROWS: tiles of 16 rows of W that a warp takes at once. A warp's next part of W is on its way
// while it multiplies the last, also past the end of a tile.
template <DType D, int kUnit, int TILES, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<TILES>)
    WeightTiles(const bf16* x, int x_pitch, int m, WeightView w, void* y, bool y_bf16, int64_t y_pitch, float beta,
                int tiles) {
  constexpr bool kScaled = D == DType::kNf4;
  constexpr int kSums = 16 * ROWS * 8, kBuffers = ROWS == 1 ? 2 : 1;
  struct Empty {};
  __shared__ std::conditional_t<kScaled, PairTable, Empty> table_storage;
  __shared__ float nested_code[kScaled ? 256 : 1];
  __shared__ float sums[kBuffers][kSlices][kSums];
  const PairTable& table = reinterpret_cast<const PairTable&>(table_storage);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int blocks = static_cast<int>(w.cols / kBlock), units = blocks / kUnit, rows = static_cast<int>(w.rows);
  const int first = units * warp / kSlices, last = units * (warp + 1) / kSlices;
  RowPart<D, kUnit> next[ROWS][2];
  const auto fetch = [&](int tile, int unit) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // rows past the end repeat the last
        const uint32_t row = static_cast<uint32_t>(min(tile * (16 * ROWS) + r * 16 + h * 8 + group, rows - 1));
        next[r][h].Fetch(w, row * blocks + unit * kUnit, quad);
      }
    }
  };
  if (first < last) fetch(blockIdx.x, first);
  if constexpr (kScaled) {
    FillPairs(table_storage);
    if (w.absmax_codes != nullptr) nested_code[threadIdx.x] = w.nested_code[threadIdx.x];
    __syncthreads();
  }
  const bf16* columns_at[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int column = t * 8 + group;
    columns_at[t] = column < m ? x + int64_t{column} * x_pitch + LaneOffset(quad) : nullptr;
  }
  int buffer = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float total[ROWS][TILES][4] = {};
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
      for (int r = 0; r < ROWS; ++r) part[r][0].Exchange(quad), part[r][1].Exchange(quad);
#pragma unroll
      for (int u = 0; u < kUnit; ++u) {
        uint4 columns[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          columns[t][0] = columns[t][1] = make_uint4(0, 0, 0, 0);
          if (columns_at[t] != nullptr) {
            const uint4* p = reinterpret_cast<const uint4*>(columns_at[t] + (unit * kUnit + u) * kBlock);
            columns[t][0] = __ldg(p), columns[t][1] = __ldg(p + 1);
          }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          uint32_t a[4][4];
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            part[r][0].Pairs(table, u, s, a[s][0], a[s][2]);
            part[r][1].Pairs(table, u, s, a[s][1], a[s][3]);
          }
          const float scale0 = part[r][0].Scale(w, nested_code, u), scale1 = part[r][1].Scale(w, nested_code, u);
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
    }
    FinishTile(sums, buffer, total, tile * (16 * ROWS), 0, rows, m, y, y_bf16, y_pitch, beta);
  }
}

template <DType D, int kUnit, int TILES>
void LaunchTiles(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream) {
  constexpr int ROWS = TILES == 4 ? 2 : 1;
  const int tiles = static_cast<int>((w.rows + 16 * ROWS - 1) / (16 * ROWS));
  const int grid = std::min(tiles, Multiprocessors() * kBlocksPerMultiprocessor<TILES>);
  WeightTiles<D, kUnit, TILES, ROWS><<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(
      x.as<bf16>(), static_cast<int>(x.pitch), static_cast<int>(x.rows), w, y.data, y.dtype == DType::kBF16, y.pitch, beta, tiles);
}

template <DType D, int kUnit>
void LaunchTilesFor(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream) {
  if (x.rows <= 8) return LaunchTiles<D, kUnit, 1>(x, w, y, beta, stream);
  if (x.rows <= 16) return LaunchTiles<D, kUnit, 2>(x, w, y, beta, stream);
  LaunchTiles<D, kUnit, 4>(x, w, y, beta, stream);
}

// True if tensor cores took it.
template <DType D>
bool TryTiles(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
                       (x.rows <= 1 || x.pitch % 8 == 0);
  if (x.dtype != DType::kBF16 || !aligned || w.cols % kBlock != 0) return false;
  if (w.rows > INT32_MAX / 2 || w.cols > INT32_MAX || w.rows * (w.cols / kBlock) > INT32_MAX / 4) return false;
  const bool scales_in_words = reinterpret_cast<uintptr_t>(w.absmax_codes) % 4 == 0;
  const bool whole = w.cols % (kBlock * kUnitOf<D>) == 0 && scales_in_words;
  for (int64_t begin = 0; begin < x.rows; begin += kMostRows) {  // more would not fit the registers
    const int64_t count = std::min(kMostRows, x.rows - begin);
    if (whole) {
      LaunchTilesFor<D, kUnitOf<D>>(x.Rows(begin, count), w, y.Rows(begin, count), beta, stream);
    } else {
      LaunchTilesFor<D, 1>(x.Rows(begin, count), w, y.Rows(begin, count), beta, stream);
    }
  }
  return true;
}

}  // namespace

bool WeightMatmulTiles(Tensor x, const WeightView& w, Tensor y, float beta, cudaStream_t stream) {
  if (w.dtype == DType::kNf4) return TryTiles<DType::kNf4>(x, w, y, beta, stream);
  return w.dtype == DType::kBF16 && TryTiles<DType::kBF16>(x, w, y, beta, stream);
}

}  // namespace hone::cuda
