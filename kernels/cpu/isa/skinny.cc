// Products with one short side, as adapters have them: c[m, n] with few columns or few rows. OpenBLAS would spend as
// long on packing the long operand as on multiplying; here a tile of c stays in registers while k runs, and nothing
// long is packed. Every element of c is one sum over k in order: the same bits however the rows are divided.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vec.h"

namespace hone::isa::HONE_ISA {
namespace {

// c[R, V * kLanes] at (row, col): registers for the sums, one broadcast of a and one multiply-add per row and vector.
template <int R, int V>
inline void Tile(const SkinnyProduct& p, int64_t row, int64_t col, int64_t k_begin, int64_t k_end, float beta) {
  VF sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = VF{};
  }
  const float* a = p.a + row * p.a_row + k_begin * p.a_k;
  const float* b = p.b + col + k_begin * p.b_k;
  for (int64_t k = k_begin; k < k_end; ++k, a += p.a_k, b += p.b_k) {
    VF bv[V];
    for (int v = 0; v < V; ++v) bv[v] = Load(b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const VF av = Splat(a[r * p.a_row]);
      for (int v = 0; v < V; ++v) sum[r][v] += av * bv[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    float* c = p.c + (row + r) * p.c_row + col;
    for (int v = 0; v < V; ++v) {
      const int64_t left = p.n - col - v * kLanes;
      if (left <= 0) break;
      VF value = sum[r][v] * p.alpha;
      float* at = c + v * kLanes;
      if (left >= kLanes) {
        if (beta != 0) value += beta * Load(at);
        Store(at, value);
      } else {
        if (beta != 0) value += beta * LoadPart(at, left);
        StorePart(at, value, left);
      }
    }
  }
}

template <int R, int V>
inline void RowsOf(const SkinnyProduct& p, int64_t col, int64_t begin, int64_t end, int64_t k_begin, int64_t k_end,
                   float beta) {
  int64_t row = begin;
  for (; row + R <= end; row += R) Tile<R, V>(p, row, col, k_begin, k_end, beta);
  for (; row < end; ++row) Tile<1, V>(p, row, col, k_begin, k_end, beta);
}

// As many sums as the registers hold: 32 of them with AVX-512, 16 before.
constexpr bool kManyRegisters = kLanes == 16;

void Columns(const SkinnyProduct& p, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end,
             int64_t k_begin, int64_t k_end, float beta) {
  for (int64_t col = col_begin; col < col_end;) {
    const int64_t vectors = (col_end - col + kLanes - 1) / kLanes;
    if (vectors >= 3) {
      RowsOf<kManyRegisters ? 8 : 4, 3>(p, col, row_begin, row_end, k_begin, k_end, beta);
      col += 3 * kLanes;
    } else if (vectors == 2) {
      RowsOf<kManyRegisters ? 8 : 4, 2>(p, col, row_begin, row_end, k_begin, k_end, beta);
      col += 2 * kLanes;
    } else {
      RowsOf<kManyRegisters ? 16 : 8, 1>(p, col, row_begin, row_end, k_begin, k_end, beta);
      col += kLanes;
    }
  }
}

// Where k walks down the columns of a long operand, every step lands on another page: a few rows of it at a time, so
// that neighbouring tiles find the rest of each cache line and the processor sees sequential streams.
constexpr int64_t kRowsAtATime = 32;

void Skinny(const SkinnyProduct& p, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
  const bool walks_rows = p.a_row == 1;
  const int64_t step = walks_rows ? kRowsAtATime : p.k;
  for (int64_t k = 0; k < p.k; k += step) {
    Columns(p, row_begin, row_end, col_begin, col_end, k, k + step < p.k ? k + step : p.k, k == 0 ? p.beta : 1.0f);
  }
}

// R rows of x at once; two sums a row, of the even and the odd vectors, so that one addition need not wait for another.
template <int R>
inline void PieceDots(const float* piece, int64_t count, RowsF32 x, int64_t row, float* sums) {
  VF sum[R][2];
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) sum[r][h] = Load(sums + ((row + r) * 2 + h) * kLanes);
  }
  const float* in = x.data + row * x.pitch;
  int64_t j = 0;
  for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
    for (int h = 0; h < 2; ++h) {
      const VF w = Load(piece + j + h * kLanes);
      for (int r = 0; r < R; ++r) sum[r][h] += w * Load(in + r * x.pitch + j + h * kLanes);
    }
  }
  for (int h = 0; h < 2 && j < count; ++h, j += kLanes) {
    const int64_t left = count - j < kLanes ? count - j : kLanes;
    const VF w = LoadPart(piece + j, left);
    for (int r = 0; r < R; ++r) sum[r][h] += w * LoadPart(in + r * x.pitch + j, left);
  }
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) Store(sums + ((row + r) * 2 + h) * kLanes, sum[r][h]);
  }
}

void AllPieceDots(const float* piece, int64_t count, RowsF32 x, int64_t rows, float* sums) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) PieceDots<4>(piece, count, x, row, sums);
  for (; row < rows; ++row) PieceDots<1>(piece, count, x, row, sums);
}

}  // namespace

void AddSkinny(CpuKernels& kernels) {
  kernels.lanes = kLanes;
  kernels.skinny = Skinny;
  kernels.piece_dots = AllPieceDots;
}

}  // namespace hone::isa::HONE_ISA
