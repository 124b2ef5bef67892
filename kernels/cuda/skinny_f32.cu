// The narrow products of skinny.cu in fp32, for the checking path: plain arithmetic, tiles of 64 x 16 or 64 x 64 of c,
// k in pieces for several blocks, added in their order by the one that ends last. For products over untransposed a the
// number of pieces follows from k alone, so that a row's result does not depend on m. Not here: tensor cores (no TF32
// anywhere).
#include <algorithm>

#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/skinny.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 64;
constexpr int kDepth = 32;

struct Product {
  const float* a;
  const float* b;
  float* c;
  int64_t a_row, a_k, b_column, b_k, c_row, c_column;  // strides
  int64_t rows, columns, k, depth;                     // depth: of a piece
  int pieces, column_tiles;
  float alpha, beta;
  float* partials;
  unsigned* tickets;
};

// [LINES, kDepth] of an operand to shared memory as [kDepth][LINES]; neighbouring threads read neighbouring elements.
template <int LINES>
__device__ inline void LoadTile(float (&tile)[kDepth][LINES + 1], const float* x, int64_t line_stride, int64_t k_stride,
                                int64_t line0, int64_t lines, int64_t k0, int64_t end) {
  const bool along_k = k_stride == 1;
  for (int i = threadIdx.x; i < LINES * kDepth; i += kThreads) {
    const int line = along_k ? i / kDepth : i % LINES, k = along_k ? i % kDepth : i / LINES;
    const bool inside = line0 + line < lines && k0 + k < end;
    tile[k][line] = inside ? x[(line0 + line) * line_stride + (k0 + k) * k_stride] : 0.0f;
  }
}

template <int COLUMNS>
__global__ void __launch_bounds__(kThreads) SkinnyF32(const __grid_constant__ Product p) {
  constexpr int kEach = COLUMNS / 16;  // columns of a thread; 4 rows
  __shared__ float a[kDepth][kRows + 1], b[kDepth][COLUMNS + 1];
  __shared__ bool last;
  const unsigned tile = blockIdx.x / p.pieces;
  const int piece = static_cast<int>(blockIdx.x % p.pieces), x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t row0 = int64_t{tile / p.column_tiles} * kRows, column0 = int64_t{tile % p.column_tiles} * COLUMNS;
  const int64_t end = min(piece * p.depth + p.depth, p.k);
  float sums[4][kEach] = {};
  for (int64_t k0 = piece * p.depth; k0 < end; k0 += kDepth) {
    LoadTile<kRows>(a, p.a, p.a_row, p.a_k, row0, p.rows, k0, end);
    LoadTile<COLUMNS>(b, p.b, p.b_column, p.b_k, column0, p.columns, k0, end);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] += a[k][y + i * 16] * b[k][x + j * 16];
      }
    }
    __syncthreads();
  }
  if (p.pieces > 1) {
    constexpr int kPartial = 4 * kEach * kThreads;
    float* partials = p.partials + int64_t{tile} * p.pieces * kPartial + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4 * kEach; ++i) __stcg(partials + piece * kPartial + i * kThreads, sums[i / kEach][i % kEach]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(p.tickets + tile, 1u) == static_cast<unsigned>(p.pieces - 1);
      if (last) p.tickets[tile] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
#pragma unroll
    for (int i = 0; i < 4 * kEach; ++i) {
      float sum = 0;
      for (int q = 0; q < p.pieces; ++q) sum += __ldcg(partials + q * kPartial + i * kThreads);
      sums[i / kEach][i % kEach] = sum;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t row = row0 + y + i * 16, column = column0 + x + j * 16;
      if (row >= p.rows || column >= p.columns) continue;
      float* c = p.c + row * p.c_row + column * p.c_column;
      *c = p.alpha * sums[i][j] + (p.beta != 0 ? p.beta * *c : 0.0f);
    }
  }
}

int64_t CeilDiv(int64_t x, int64_t y) { return (x + y - 1) / y; }

template <int COLUMNS>
void Launch(Product p, bool sum_over_tokens, const SkinnyWorkspace& workspace, cudaStream_t stream) {
  constexpr int64_t kTickets = kCudaTicketBytes / 4, kBlocks = 256, kLeastDepth = 256;
  p.column_tiles = static_cast<int>(CeilDiv(p.columns, COLUMNS));
  const int64_t tiles = CeilDiv(p.rows, kRows) * p.column_tiles, most = std::max<int64_t>(p.k / kLeastDepth, 1);
  p.pieces = static_cast<int>(std::min<int64_t>(sum_over_tokens ? CeilDiv(kBlocks, tiles) : 8, most));
  p.depth = CeilDiv(CeilDiv(p.k, p.pieces), kDepth) * kDepth;
  p.pieces = static_cast<int>(CeilDiv(p.k, p.depth));
  p.partials = workspace.partials, p.tickets = workspace.tickets;
  const int64_t fit = std::min(kTickets, workspace.partial_bytes / (int64_t{4} * kRows * COLUMNS * p.pieces));
  const int64_t part = fit / p.column_tiles * kRows, rows = p.rows;
  for (int64_t begin = 0; begin < rows; begin += part) {
    p.rows = std::min(part, rows - begin);
    const int64_t blocks = CeilDiv(p.rows, kRows) * p.column_tiles * p.pieces;
    SkinnyF32<COLUMNS><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
    p.a += part * p.a_row, p.c += part * p.c_row;
  }
}

}  // namespace

bool SkinnyFitsF32(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  if (a.dtype != DType::kF32 || b.dtype != DType::kF32 || c.dtype != DType::kF32) return false;
  if (ta == Transpose::kNo) return c.cols <= kSkinnyColumns;  // never by the number of rows
  return tb == Transpose::kNo && std::min(c.rows, c.cols) <= kSkinnyColumns;
}

void SkinnyMatmulF32(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c, float alpha, float beta,
                     const SkinnyWorkspace& workspace, cudaStream_t stream) {
  const bool over_tokens = ta == Transpose::kYes;
  Product p{};
  p.a = a.as<float>(), p.a_row = over_tokens ? 1 : a.pitch, p.a_k = over_tokens ? a.pitch : 1;
  p.b = b.as<float>(), p.b_column = tb == Transpose::kYes ? b.pitch : 1, p.b_k = tb == Transpose::kYes ? 1 : b.pitch;
  p.c = c.as<float>(), p.c_row = c.pitch, p.c_column = 1;
  p.rows = c.rows, p.columns = c.cols, p.k = over_tokens ? a.rows : a.cols;
  p.alpha = alpha, p.beta = beta;
  if (over_tokens && c.rows < c.cols) {  // tiles along the wide side
    std::swap(p.a, p.b), std::swap(p.a_row, p.b_column), std::swap(p.a_k, p.b_k);
    std::swap(p.c_row, p.c_column), std::swap(p.rows, p.columns);
  }
  if (p.columns <= 16) return Launch<16>(p, over_tokens, workspace, stream);
  Launch<64>(p, over_tokens, workspace, stream);
}

}  // namespace hone::cuda
