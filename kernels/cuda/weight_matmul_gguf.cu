// WeightMatmul for GGUF's Q8_0, Q4_0 and Q4_1 on tensor cores (weight_matmul.cuh). Blocks of 32 elements are 34, 18 or
// 20 bytes, so that nothing but whole rows lies on 16 bytes: a warp stages 256 elements of 16 rows in shared memory and
// takes them apart there, while the next are on their way. Code values are exact in bf16; a block's sum is multiplied
// by its scale in fp32, and Q4_1's minimum by the sum of x over the block, so that no weight is rounded at all.
#include <algorithm>

#include "kernels/cuda/weight_matmul.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = kWeightThreads;
constexpr int kBlock = 32;
constexpr int kBlocks = 8;  // of a row at once

template <DType D>
struct Format {
  static constexpr bool kByte = D == DType::kQ8_0, kMinimum = D == DType::kQ4_1;
  static constexpr int kBytes = kByte ? 34 : kMinimum ? 20 : 18, kHeader = kMinimum ? 4 : 2;
  static constexpr int kRowBytes = kBytes * kBlocks, kVectors = kRowBytes / 16;
  // In shared memory; chosen so that the rows of a quarter warp begin in different banks.
  static constexpr int kPitch = kMinimum ? 176 : kRowBytes;
  static constexpr int kFetches = (16 * kVectors + 31) / 32;
};

// The word at an even address: `kOffset` modulo 4 decides whether it crosses two.
template <int kOffset>
__device__ inline uint32_t WordAt(const uint8_t* p) {
  if constexpr (kOffset % 4 == 0) {
    return *reinterpret_cast<const uint32_t*>(p);
  } else {
    const uint32_t* aligned = reinterpret_cast<const uint32_t*>(p - 2);
    return __byte_perm(aligned[0], aligned[1], 0x5432);
  }
}

__device__ inline uint32_t Pack(float low, float high) {
  const __nv_bfloat162 pair(__float2bfloat16_rn(low), __float2bfloat16_rn(high));
  uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}

// Bytes i and i + 1 of a word of signed bytes, each with its sign bit turned over (0 ... 255), as two bf16.
__device__ inline uint32_t BytePair(uint32_t word, int i) {
  constexpr float kBias = 8388608.0f + 128.0f;  // 2^23: its low bits count in ones
  return Pack(__uint_as_float(__byte_perm(word, 0x4b000000, 0x7550 | i)) - kBias,
              __uint_as_float(__byte_perm(word, 0x4b000000, 0x7550 | (i + 1))) - kBias);
}

// Bytes i and i + 1 of a word of nibbles (0 ... 15) less `bias`, as two bf16: 0x4300 | n is 128 + n.
__device__ inline uint32_t NibblePair(uint32_t word, int i, uint32_t bias_pair) {
  const uint32_t pair = __byte_perm(word, 0x43434343, i == 0 ? 0x4140 : 0x4342);
  __nv_bfloat162 a, b;
  memcpy(&a, &pair, 4), memcpy(&b, &bias_pair, 4);
  const __nv_bfloat162 difference = __hsub2(a, b);
  uint32_t out;
  memcpy(&out, &difference, 4);
  return out;
}

// A lane's eight elements of block kIndex of the row staged at `row`: a[0], a[1] for the first product, a[2], a[3] for
// the second.
template <DType D, int kIndex>
__device__ inline void LanePairs(const uint8_t* row, int quad, uint32_t (&a)[4]) {
  using F = Format<D>;
  constexpr int kAt = kIndex * F::kBytes + F::kHeader;
  if constexpr (F::kByte) {
    const uint32_t w0 = WordAt<kAt>(row + kAt + quad * 8) ^ 0x80808080u;
    const uint32_t w1 = WordAt<kAt>(row + kAt + quad * 8 + 4) ^ 0x80808080u;
    a[0] = BytePair(w0, 0), a[1] = BytePair(w0, 2), a[2] = BytePair(w1, 0), a[3] = BytePair(w1, 2);
  } else {
    const uint32_t word = WordAt<kAt>(row + kAt + quad * 4);
    const uint32_t low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
    constexpr uint32_t kBias = F::kMinimum ? 0x43004300u : 0x43084308u;  // 128 or 136
    a[0] = NibblePair(low, 0, kBias), a[1] = NibblePair(low, 2, kBias);
    a[2] = NibblePair(high, 0, kBias), a[3] = NibblePair(high, 2, kBias);
  }
}

// The same elements of a row of x, from the block's first on.
template <DType D>
__device__ inline uint4 LaneColumns(const bf16* block, int quad) {
  if constexpr (Format<D>::kByte) {
    return __ldg(reinterpret_cast<const uint4*>(block + quad * 8));
  } else {
    const uint2 low = __ldg(reinterpret_cast<const uint2*>(block + quad * 4));
    const uint2 high = __ldg(reinterpret_cast<const uint2*>(block + 16 + quad * 4));
    return make_uint4(low.x, low.y, high.x, high.y);
  }
}

template <DType D, int TILES, int kIndex>
__device__ inline void MultiplyBlock(const uint8_t* row0, const uint8_t* row8, const bf16* const (&columns_at)[TILES],
                                     int k, int quad, float (&total)[1][TILES][4]) {
  using F = Format<D>;
  uint32_t low[4], high[4];  // of rows `group` and `group + 8`
  LanePairs<D, kIndex>(row0, quad, low);
  LanePairs<D, kIndex>(row8, quad, high);
  const float d0 = HalfAt(row0 + kIndex * F::kBytes), d8 = HalfAt(row8 + kIndex * F::kBytes);
  const uint32_t first[4] = {low[0], high[0], low[1], high[1]}, second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (columns_at[t] != nullptr) x = LaneColumns<D>(columns_at[t] + k + kIndex * kBlock, quad);
    float sum[4] = {};
    Mma(sum, first, x.x, x.y);
    Mma(sum, second, x.z, x.w);
    total[0][t][0] = __fmaf_rn(d0, sum[0], total[0][t][0]);
    total[0][t][1] = __fmaf_rn(d0, sum[1], total[0][t][1]);
    total[0][t][2] = __fmaf_rn(d8, sum[2], total[0][t][2]);
    total[0][t][3] = __fmaf_rn(d8, sum[3], total[0][t][3]);
    if constexpr (F::kMinimum) {
      constexpr uint32_t kOnes[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
      const float m0 = HalfAt(row0 + kIndex * F::kBytes + 2), m8 = HalfAt(row8 + kIndex * F::kBytes + 2);
      float ones[4] = {};
      Mma(ones, kOnes, x.x, x.y);
      Mma(ones, kOnes, x.z, x.w);
      total[0][t][0] = __fmaf_rn(m0, ones[0], total[0][t][0]);
      total[0][t][1] = __fmaf_rn(m0, ones[1], total[0][t][1]);
      total[0][t][2] = __fmaf_rn(m8, ones[2], total[0][t][2]);
      total[0][t][3] = __fmaf_rn(m8, ones[3], total[0][t][3]);
    }
  }
}

// One where a thread's fetches (36 registers of Q8_0) and sums need more than half of the registers.
template <DType D, int TILES>
inline constexpr int kBlocksPerMultiprocessor = Format<D>::kByte || TILES == 4 ? 1 : 2;

template <DType D, int TILES>
__global__ void __launch_bounds__(kThreads, (kBlocksPerMultiprocessor<D, TILES>))
    WeightBlocks(const bf16* x, int x_pitch, int m, WeightView w, const __grid_constant__ ProductOutput out,
                 int tiles) {
  using F = Format<D>;
  __shared__ alignas(16) uint8_t staged[kSlices][16 * F::kPitch];
  __shared__ float sums[2][kSlices][16 * 8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int units = static_cast<int>(w.cols) / (kBlock * kBlocks), rows = static_cast<int>(w.rows);
  const int first = units * warp / kSlices, last = units * (warp + 1) / kSlices;
  const int64_t row_bytes = int64_t{units} * F::kRowBytes;
  // The last tile of a ragged matrix begins before its place and stores what is new.
  const auto row_of = [&](int tile) { return min(tile * 16, rows - 16); };
  uint4 next[F::kFetches];
  const auto fetch = [&](int tile, int unit) {
    const uint8_t* base = static_cast<const uint8_t*>(w.data) + row_of(tile) * row_bytes + int64_t{unit} * F::kRowBytes;
#pragma unroll
    for (int j = 0; j < F::kFetches; ++j) {
      const int vector = min(j * 32 + lane, 16 * F::kVectors - 1);
      next[j] = LoadNow(reinterpret_cast<const uint4*>(base + vector / F::kVectors * row_bytes) + vector % F::kVectors);
    }
  };
  LetNextKernelStart();
  if (first < last) fetch(blockIdx.x, first);
  WaitForEarlierKernels();
  const bf16* columns_at[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) columns_at[t] = t * 8 + group < m ? x + int64_t{t * 8 + group} * x_pitch : nullptr;
  const uint8_t *row0 = staged[warp] + group * F::kPitch, *row8 = row0 + 8 * F::kPitch;
  int buffer = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float total[1][TILES][4] = {};
#pragma unroll 1
    for (int unit = first; unit < last; ++unit) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < F::kFetches; ++j) {
        const int vector = j * 32 + lane;
        if (vector < 16 * F::kVectors) {
          *reinterpret_cast<uint4*>(staged[warp] + vector / F::kVectors * F::kPitch + vector % F::kVectors * 16) =
              next[j];
        }
      }
      __syncwarp();
      if (unit + 1 < last) {
        fetch(tile, unit + 1);
      } else {
        fetch(min(tile + static_cast<int>(gridDim.x), tiles - 1), first);
      }
      // Two at a time: an odd block lies two bytes off the words, and more in flight would not fit the registers.
#pragma unroll 1
      for (int i = 0; i < kBlocks; i += 2) {
        const int k = unit * (kBlock * kBlocks) + i * kBlock;
        MultiplyBlock<D, TILES, 0>(row0 + i * F::kBytes, row8 + i * F::kBytes, columns_at, k, quad, total);
        MultiplyBlock<D, TILES, 1>(row0 + i * F::kBytes, row8 + i * F::kBytes, columns_at, k, quad, total);
      }
    }
    FinishTile(sums, buffer, total, row_of(tile), tile * 16, rows, m, out);
  }
}

template <DType D, int TILES>
void Launch(Tensor x, const WeightView& w, Tensor y, Tensor addend, cudaStream_t stream) {
  const int tiles = static_cast<int>((w.rows + 15) / 16);
  const Card card = CurrentCard();
  const int grid = std::min(tiles, card.processors * kBlocksPerMultiprocessor<D, TILES>);
  LaunchEarly(card.starts_early, WeightBlocks<D, TILES>, static_cast<unsigned>(grid), kThreads, 0, stream, x.as<bf16>(),
              static_cast<int>(x.pitch), static_cast<int>(x.rows), w, ProductOutput(y, addend), tiles);
}

template <DType D>
void LaunchFor(Tensor x, const WeightView& w, Tensor y, Tensor addend, cudaStream_t stream) {
  for (int64_t begin = 0; begin < x.rows; begin += kMostRows) {
    const int64_t count = std::min(kMostRows, x.rows - begin);
    const Tensor in = x.Rows(begin, count), out = y.Rows(begin, count), add = RowsOf(addend, begin, count);
    if (count <= 8) {
      Launch<D, 1>(in, w, out, add, stream);
    } else if (count <= 16) {
      Launch<D, 2>(in, w, out, add, stream);
    } else {
      Launch<D, 4>(in, w, out, add, stream);
    }
  }
}

}  // namespace

bool WeightMatmulGguf(Tensor x, const WeightView& w, Tensor y, Tensor addend, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
                       (x.rows <= 1 || x.pitch % 8 == 0);
  if (x.dtype != DType::kBF16 || !aligned || w.cols % (kBlock * kBlocks) != 0 || w.rows < 16) return false;
  if (w.rows > INT32_MAX / 2 || w.cols > INT32_MAX / 2) return false;
  switch (w.dtype) {
    case DType::kQ8_0:
      LaunchFor<DType::kQ8_0>(x, w, y, addend, stream);
      return true;
    case DType::kQ4_0:
      LaunchFor<DType::kQ4_0>(x, w, y, addend, stream);
      return true;
    case DType::kQ4_1:
      LaunchFor<DType::kQ4_1>(x, w, y, addend, stream);
      return true;
    default:
      return false;
  }
}

}  // namespace hone::cuda
