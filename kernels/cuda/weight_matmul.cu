// y[m, N] <- x[m, K] W^T + beta y for m <= 64, W read in its stored form: generation's products, whose time is that of
// reading W. The order of a row's sum depends on K alone: k is cut into kSlices pieces, each summed in order by one warp,
// and the pieces are added in order; so a token's result does not depend on how many are generated beside it.
//
// NF4 and bf16 weights with bf16 x: tensor cores by mma.m16n8k16, 16 rows of W against 8 rows of x. A thread's part of a
// row is 16 neighbouring elements of a block of 64 rather than the pairs that the instruction's layout names: the sum
// over k does not mind a permutation that both operands share. NF4's code values are rounded to bf16 and a block's sum is
// multiplied by its scale in fp32: one rounding a weight, as when the scaled value is rounded. A byte of codes becomes
// two bf16 by one look-up; every lane has a copy of the table in its own bank.
//
// Everything else (fp32 x, other stored forms, odd shapes): a warp per row of W, 8 elements a lane, fp32 products.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_groups.cuh"

namespace hone::cuda {
namespace {

constexpr int kSlices = 8;  // warps of a block
constexpr int kThreads = kSlices * 32;
constexpr int kBlock = kNf4BlockSize;
constexpr int64_t kMostRows = 32;  // of x in one launch

__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

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

// What a lane holds of kUnit blocks of 64 elements of one row, and the blocks' scales.
template <DType D, int kUnit>
struct RowPart;

template <int kUnit>
struct RowPart<DType::kNf4, kUnit> {
  uint2 codes[kUnit];
  uint32_t scales[kUnit < 2 ? 2 : kUnit];  // codes and the nested scale, or a block's own each
  // block: number of the first in the flat weight; a multiple of kUnit.
  __device__ void Fetch(const WeightView& w, uint32_t block, int quad) {
    const uint2* p = static_cast<const uint2*>(w.data) + (block * 4 + quad);
#pragma unroll
    for (int u = 0; u < kUnit; ++u) codes[u] = __ldg(p + u * 4);
    if (w.absmax_codes == nullptr) {
#pragma unroll
      for (int u = 0; u < kUnit; ++u) scales[u] = __float_as_uint(__ldg(w.absmax + block + u));
    } else {
      const uint8_t* p = w.absmax_codes + block;
      scales[0] = kUnit == 4 ? __ldg(reinterpret_cast<const uint32_t*>(p)) : __ldg(p);
      scales[1] = __float_as_uint(__ldg(w.nested_absmax + block / kNf4NestedBlockSize));
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
    const uint4* p = static_cast<const uint4*>(w.data) + block * 8 + quad * 2;
#pragma unroll
    for (int u = 0; u < kUnit; ++u) words[u][0] = __ldg(p + u * 8), words[u][1] = __ldg(p + u * 8 + 1);
  }
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
inline constexpr int kBlocksPerMultiprocessor = TILES == 1 ? 3 : TILES == 2 ? 2 : 1;

// TILES: of 8 rows of x. ROWS: tiles of 16 rows of W that a warp takes at once.
template <DType D, int kUnit, int TILES, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<TILES>)
    WeightTiles(const bf16* x, int x_pitch, int m, WeightView w, void* y, bool y_bf16, int64_t y_pitch, float beta,
                int tiles) {
  constexpr bool kScaled = D == DType::kNf4;
  struct Empty {};
  __shared__ std::conditional_t<kScaled, PairTable, Empty> table_storage;
  __shared__ float nested_code[kScaled ? 256 : 1];
  __shared__ float sums[kSlices][16 * ROWS * 8];
  const PairTable& table = reinterpret_cast<const PairTable&>(table_storage);
  if constexpr (kScaled) {
    FillPairs(table_storage);
    if (w.absmax_codes != nullptr) nested_code[threadIdx.x] = w.nested_code[threadIdx.x];
    __syncthreads();
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int blocks = static_cast<int>(w.cols / kBlock), units = blocks / kUnit, rows = static_cast<int>(w.rows);
  const int first = units * warp / kSlices, last = units * (warp + 1) / kSlices;

  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row0 = tile * (16 * ROWS);
    float total[ROWS][TILES][4] = {};
#pragma unroll 1
    for (int unit = first; unit < last; ++unit) {
      RowPart<D, kUnit> part[ROWS][2];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {  // rows past the end repeat the last
          const uint32_t row = static_cast<uint32_t>(min(row0 + r * 16 + h * 8 + group, rows - 1));
          part[r][h].Fetch(w, row * blocks + unit * kUnit, quad);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnit; ++u) {
        const int k = (unit * kUnit + u) * kBlock + quad * 16;
        uint4 columns[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          const int column = t * 8 + group;
          columns[t][0] = columns[t][1] = make_uint4(0, 0, 0, 0);
          if (column < m) {
            const uint4* p = reinterpret_cast<const uint4*>(x + column * x_pitch + k);
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
            if constexpr (kScaled) {
              total[r][t][0] += scale0 * sum[0], total[r][t][1] += scale0 * sum[1];
              total[r][t][2] += scale1 * sum[2], total[r][t][3] += scale1 * sum[3];
            }
          }
        }
      }
    }
    for (int t = 0; t < TILES; ++t) {  // not unrolled by hand: `total` is indexed by constants below
      __syncthreads();
#pragma unroll
      for (int tt = 0; tt < TILES; ++tt) {
        if (tt != t) continue;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          float* out = sums[warp] + quad * 2 * (16 * ROWS) + r * 16 + group;
          out[0] = total[r][tt][0], out[16 * ROWS] = total[r][tt][1];
          out[8] = total[r][tt][2], out[16 * ROWS + 8] = total[r][tt][3];
        }
      }
      __syncthreads();
      for (int i = threadIdx.x; i < 16 * ROWS * 8; i += kThreads) {
        const int column = t * 8 + i / (16 * ROWS);
        const int row = row0 + i % (16 * ROWS);
        if (column >= m || row >= rows) continue;
        float value = sums[0][i];
#pragma unroll
        for (int s = 1; s < kSlices; ++s) value += sums[s][i];
        const int64_t at = column * y_pitch + row;
        if (y_bf16) {
          bf16* to = static_cast<bf16*>(y) + at;
          *to = FromFloat<bf16>(beta == 0 ? value : value + beta * ToFloat(*to));
        } else {
          float* to = static_cast<float*>(y) + at;
          *to = beta == 0 ? value : value + beta * *to;
        }
      }
    }
    __syncthreads();
  }
}

// One element, for rows that are no whole groups of 8.
template <DType D>
__device__ inline float DecodeAt(const WeightView& w, const float* table, int64_t index) {
  if constexpr (D == DType::kF32) {
    return static_cast<const float*>(w.data)[index];
  } else if constexpr (D == DType::kBF16) {
    return ToFloat(static_cast<const bf16*>(w.data)[index]);
  } else if constexpr (D == DType::kF16) {
    return ToFloat(static_cast<const __half*>(w.data)[index]);
  } else if constexpr (D == DType::kNf4) {
    const int byte = static_cast<const uint8_t*>(w.data)[index / 2];
    return __fmul_rn(table[index % 2 == 0 ? byte >> 4 : byte & 15], Nf4Scale(w, index / kNf4BlockSize));
  } else {
    Group<D> group;  // these are whole blocks of 32: only a misaligned x leads here
    group.Fetch(w, index / 8);
    float values[8];
    group.Decode(table, values);
    float value = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) value = index % 8 == i ? values[i] : value;
    return value;
  }
}

// A warp per row of W; V elements of it a lane, at most 8 rows of x at a time.
template <DType D, typename T, int V>
__global__ void __launch_bounds__(kThreads)
    WeightRows(View<T> x, int m, WeightView w, void* y, bool y_bf16, int64_t y_pitch, float beta) {
  constexpr int kAtOnce = 8;
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = kCodes.values[threadIdx.x];
  __syncthreads();
  const int64_t row = int64_t{blockIdx.x} * kSlices + threadIdx.x / 32;
  if (row >= w.rows) return;
  const int lane = threadIdx.x % 32;
  for (int begin = 0; begin < m; begin += kAtOnce) {
    float sums[kAtOnce] = {};
#pragma unroll 2
    for (int64_t k = lane * V; k < w.cols; k += 32 * V) {
      float values[V];
      if constexpr (V == 8) {
        Group<D> part;
        part.Fetch(w, (row * w.cols + k) / 8);
        part.Decode(table, values);
      } else {
        values[0] = DecodeAt<D>(w, table, row * w.cols + k);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = ToFloat(FromFloat<T>(values[i]));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i >= m) continue;
        float xs[V];
        Load<V>(x.At(begin + i, k), xs);
#pragma unroll
        for (int j = 0; j < V; ++j) sums[i] += values[j] * xs[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float value = WarpSum(sums[i]);
      if (begin + i >= m || lane != 0) continue;
      const int64_t at = (begin + i) * y_pitch + row;
      if (y_bf16) {
        bf16* to = static_cast<bf16*>(y) + at;
        *to = FromFloat<bf16>(beta == 0 ? value : value + beta * ToFloat(*to));
      } else {
        float* to = static_cast<float*>(y) + at;
        *to = beta == 0 ? value : value + beta * *to;
      }
    }
  }
}

int Multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
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

void WeightMatmul(Tensor x, const WeightView& weight, Tensor y, float beta, cudaStream_t stream) {
  if (weight.dtype == DType::kNf4 && TryTiles<DType::kNf4>(x, weight, y, beta, stream)) return;
  if (weight.dtype == DType::kBF16 && TryTiles<DType::kBF16>(x, weight, y, beta, stream)) return;
  const bool grouped = reinterpret_cast<uintptr_t>(weight.data) % 16 == 0 && weight.cols % 8 == 0 && Vectorises(x);
  const unsigned grid = static_cast<unsigned>((weight.rows + kSlices - 1) / kSlices);
  WithWeightType(weight.dtype, [&](auto d) {
    WithType(x.dtype, [&](auto t) {
      using T = decltype(t);
      constexpr DType D = decltype(d)::value;
      const auto kernel = grouped ? WeightRows<D, T, 8> : WeightRows<D, T, 1>;
      kernel<<<grid, kThreads, 0, stream>>>(View<T>(x), static_cast<int>(x.rows), weight, y.data,
                                            y.dtype == DType::kBF16, y.pitch, beta);
    });
  });
}

}  // namespace hone::cuda
