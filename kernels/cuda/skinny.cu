// c[m, n] <- alpha a[m, k] op(b) + beta c for n <= 64 in bf16: the adapter's products x A^T and dY B. Without a split
// of k cuBLASLt gives them a handful of blocks; here 16 rows take a block, whose warps share out k in chunks of 64
// and add their sums in the order of the warps. So a row's result depends on its row and on b alone, as for every
// product.
//
// Tensor cores by mma.m16n8k16. A thread's part of a row is 8 neighbouring elements (one 16-byte load) rather than the
// four pairs that the instruction's layout names: the sum over k does not mind a permutation that both operands share.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

// Warps of a block: many, because most shapes give a multiprocessor two blocks only; 64 columns allow 8 (48 KiB of
// sums).
template <int TILES>
inline constexpr int kWarps = TILES == 8 ? 8 : 16;
constexpr int kRows = 16;
constexpr int kChunk = 64;
constexpr int64_t kMaxColumns = 64;

__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes, issued where it stands: left to itself the compiler moves loads down to their use and waits for each.
__device__ inline uint4 LoadNow(const bf16* p) {
  uint4 x;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
  return x;
}

__device__ inline uint32_t LoadWordNow(const bf16* p) {
  uint32_t x;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}

// An 8 x 8 matrix over a warp: from a row's neighbouring pair in each thread to a column's.
__device__ inline uint32_t TransposeTile(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// What a thread needs of 32 neighbouring k, fetched apart from its use so that several are in flight. x0, x1: elements
// 8 * quad ... of its two rows of a. columns[t]: the same elements of column 8 t + group of op(b). Where b is stored
// [k, n] they are fetched as pairs of columns, of the row that TransposeTile hands to the thread in need of it.
template <int TILES, bool kTransposed>
struct Step {
  uint4 x0, x1, columns[TILES];
  __device__ void FetchRows(const bf16* row0, const bf16* row1, int64_t at) {
    x0 = LoadNow(row0 + at);
    x1 = LoadNow(row1 + at);
  }
  __device__ void FetchColumns(const bf16* const (&b)[TILES], int64_t pitch, int64_t at) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      if constexpr (kTransposed) {
        columns[t] = LoadNow(b[t] + at);
      } else {
        const bf16* p = b[t] + at * pitch;
        columns[t] = make_uint4(LoadWordNow(p), LoadWordNow(p + 2 * pitch), LoadWordNow(p + 4 * pitch),
                                LoadWordNow(p + 6 * pitch));
      }
    }
  }
  __device__ void Clear() {
    x0 = x1 = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int t = 0; t < TILES; ++t) columns[t] = x0;
  }
  __device__ void Multiply(float (&sums)[TILES][4]) const {
    const uint32_t low[4] = {x0.x, x1.x, x0.y, x1.y}, high[4] = {x0.z, x1.z, x0.w, x1.w};
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      uint4 c = columns[t];
      if constexpr (!kTransposed) {
        c = make_uint4(TransposeTile(c.x), TransposeTile(c.y), TransposeTile(c.z), TransposeTile(c.w));
      }
      Mma(sums[t], low, c.x, c.y);
      Mma(sums[t], high, c.z, c.w);
    }
  }
};

template <int TILES, bool kTransposed, typename C>
__global__ void __launch_bounds__(kWarps<TILES> * 32)
    Skinny(const bf16* a, int64_t a_pitch, const bf16* b, int64_t b_pitch, View<C> c, int64_t m, int64_t n, int64_t k,
           float alpha, float beta) {
  constexpr int kSteps = TILES <= 2 ? 4 : 2;  // of 32 elements of k
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  // Rows and columns past the end repeat the last: loads need no branch, and nobody stores what comes of them.
  const int64_t row = int64_t{blockIdx.x} * kRows + group;
  const bf16* row0 = a + min(row, m - 1) * a_pitch;
  const bf16* row1 = a + min(row + 8, m - 1) * a_pitch;
  const bf16* columns[TILES];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    if constexpr (kTransposed) {
      columns[t] = b + min(t * 8 + group, static_cast<int>(n) - 1) * b_pitch;
    } else {  // rows 8 (group / 2) + group % 2 of a step, counted from the thread's own 8 * quad
      columns[t] =
          b + (group / 2 * 8 + group % 2 - quad * 8) * b_pitch + min(t * 8 + quad * 2, static_cast<int>(n) - 2);
    }
  }
  float sums[TILES][4] = {};
  // Warp w takes every kWarps-th chunk of 64; `chunk` is where a thread's first 8 elements stand.
  int64_t chunk = int64_t{warp} * kChunk + quad * 8;
  constexpr int64_t kStride = kWarps<TILES> * kChunk;
  const int64_t whole = k / kChunk * kChunk;
  for (; chunk + (kSteps / 2 - 1) * kStride < whole; chunk += kSteps / 2 * kStride) {
    Step<TILES, kTransposed> steps[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int64_t at = chunk + i / 2 * kStride + i % 2 * 32;
      steps[i].FetchRows(row0, row1, at);
      steps[i].FetchColumns(columns, b_pitch, at);
    }
    __syncwarp();  // keeps the compiler from moving loads down to their use
#pragma unroll
    for (int i = 0; i < kSteps; ++i) steps[i].Multiply(sums);
  }
  for (; chunk - quad * 8 < k; chunk += kStride) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = chunk + half * 32;
      Step<TILES, kTransposed> step;
      step.Clear();
      if (at < k) step.FetchRows(row0, row1, at);
      // The block of 8 rows of b that a thread fetches for the others is not its own.
      const int64_t fetched = kTransposed ? at : at - quad * 8 + group / 2 * 8;
      if (fetched < k) step.FetchColumns(columns, b_pitch, at);
      step.Multiply(sums);
    }
  }
  __shared__ float partial[kWarps<TILES>][kRows][TILES * 8];
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
    const int col = t * 8 + quad * 2;
    partial[warp][group][col] = sums[t][0], partial[warp][group][col + 1] = sums[t][1];
    partial[warp][group + 8][col] = sums[t][2], partial[warp][group + 8][col + 1] = sums[t][3];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * TILES * 8; i += kWarps<TILES> * 32) {
    const int row = i / (TILES * 8), col = i % (TILES * 8);
    const int64_t out_row = int64_t{blockIdx.x} * kRows + row;
    if (out_row >= m || col >= n) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps<TILES>; ++w) sum += partial[w][row][col];
    C* out = c.At(out_row, col);
    *out = FromFloat<C>(alpha * sum + (beta != 0 ? beta * ToFloat(*out) : 0.0f));
  }
}

template <int TILES, typename C>
void Launch(Tensor a, Tensor b, Transpose tb, Tensor c, float alpha, float beta, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((c.rows + kRows - 1) / kRows);
  const auto kernel = tb == Transpose::kYes ? Skinny<TILES, true, C> : Skinny<TILES, false, C>;
  kernel<<<blocks, kWarps<TILES> * 32, 0, stream>>>(a.as<bf16>(), a.pitch, b.as<bf16>(), b.pitch, View<C>(c), c.rows,
                                                    c.cols, a.cols, alpha, beta);
}

bool RowsOn16Bytes(Tensor t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.pitch % 8 == 0;  // whatever the number of rows: not by m
}

bool RowsOn4Bytes(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 4 == 0 && t.pitch % 2 == 0; }

}  // namespace

bool SkinnyFits(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  return a.dtype == DType::kBF16 && ta == Transpose::kNo && c.cols <= kMaxColumns && a.cols % 8 == 0 &&
         RowsOn16Bytes(a) && (tb == Transpose::kYes ? RowsOn16Bytes(b) : RowsOn4Bytes(b) && c.cols % 2 == 0);
}

void SkinnyMatmul(Tensor a, Tensor b, Transpose tb, Tensor c, float alpha, float beta, cudaStream_t stream) {
  WithType(c.dtype, [&](auto t) {
    using C = decltype(t);
    if (c.cols <= 8) return Launch<1, C>(a, b, tb, c, alpha, beta, stream);
    if (c.cols <= 16) return Launch<2, C>(a, b, tb, c, alpha, beta, stream);
    if (c.cols <= 32) return Launch<4, C>(a, b, tb, c, alpha, beta, stream);
    return Launch<8, C>(a, b, tb, c, alpha, beta, stream);
  });
}

}  // namespace hone::cuda
