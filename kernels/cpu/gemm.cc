#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>

#include "proto/base/status.h"

namespace hone {
namespace {

// Multiply-adds that a part has at least: less would not pay for waking a thread, and OpenBLAS takes another path (with
// other roundings) up to 100^3, which must not depend on how many threads there are.
constexpr int64_t kPartProduct = 1500000;
// Blocks of c are cut at multiples of the widest micro-kernel, so that a cut adds no ragged edge.
constexpr int64_t kCut = 64;

int ToInt(int64_t x) {
  HONE_CHECK(x >= 0 && x <= INT32_MAX, x);
  return static_cast<int>(x);
}

// A side of c up to which the product counts as skinny; measured against sgemm at k = 192 ... 1536.
constexpr int64_t kShortSide = 64;
constexpr int64_t kSkinnyGrain = 1 << 19;  // multiply-adds per thread at least

// b[k, n] as rows of n rounded up to whole vectors, zeros after the end.
void PackB(const GemmShape& s, const float* b, int64_t ldb, int64_t padded, float* out) {
  for (int64_t k = 0; k < s.k; ++k) {
    for (int64_t j = 0; j < s.n; ++j) out[k * padded + j] = s.tb ? b[j * ldb + k] : b[k * ldb + j];
    for (int64_t j = s.n; j < padded; ++j) out[k * padded + j] = 0;
  }
}

}  // namespace

void UseOneBlasThread() { openblas_set_num_threads(1); }

void Sgemm(const GemmShape& s, float alpha, const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
           float* c, int64_t ldc) {
  if (s.m == 0 || s.n == 0) return;
  if (s.m == 1 && s.tb && !s.ta && s.k > 0) {
    // One row: a matrix-vector product reads b once and packs nothing.
    if (beta == 0) std::fill_n(c, s.n, 0.0f);
    cblas_sgemv(CblasRowMajor, CblasNoTrans, ToInt(s.n), ToInt(s.k), alpha, b, ToInt(ldb), a, 1,
                beta == 0 ? 1.0f : beta, c, 1);
    return;
  }
  cblas_sgemm(CblasRowMajor, s.ta ? CblasTrans : CblasNoTrans, s.tb ? CblasTrans : CblasNoTrans, ToInt(s.m), ToInt(s.n),
              ToInt(s.k), alpha, a, ToInt(std::max<int64_t>(lda, 1)), b, ToInt(std::max<int64_t>(ldb, 1)), beta, c,
              ToInt(std::max<int64_t>(ldc, 1)));
}

void ParallelSgemm(ThreadPool& pool, const GemmShape& s, float alpha, const float* a, int64_t lda, const float* b,
                   int64_t ldb, float beta, float* c, int64_t ldc) {
  for (int64_t size : {s.m, s.n, s.k, lda, ldb, ldc}) ToInt(size);
  const int64_t parts = std::min<int64_t>(pool.threads(), s.m * s.n * s.k / kPartProduct);
  if (parts <= 1) return Sgemm(s, alpha, a, lda, b, ldb, beta, c, ldc);
  // Every part packs all of the operand that is not cut: cut the longer side of c.
  const bool by_rows = s.m >= s.n;
  const int64_t length = by_rows ? s.m : s.n;
  const int64_t unit = length >= 2 * kCut * parts ? kCut : length >= 32 * parts ? 16 : 1;
  const int64_t units = (length + unit - 1) / unit;
  pool.Parts([&](int part) {
    if (part >= parts) return;
    const int64_t begin = std::min(length, units * part / parts * unit);
    const int64_t end = std::min(length, units * (part + 1) / parts * unit);
    if (begin == end) return;
    GemmShape block = s;
    (by_rows ? block.m : block.n) = end - begin;
    const float* a_block = by_rows ? a + (s.ta ? begin : begin * lda) : a;
    const float* b_block = by_rows ? b : b + (s.tb ? begin * ldb : begin);
    float* c_block = c + (by_rows ? begin * ldc : begin);
    Sgemm(block, alpha, a_block, lda, b_block, ldb, beta, c_block, ldc);
  });
}

bool ParallelSkinny(ThreadPool& pool, const CpuKernels& kernels, float* scratch, int64_t scratch_floats,
                    const GemmShape& s, float alpha, const float* a, int64_t lda, const float* b, int64_t ldb,
                    float beta, float* c, int64_t ldc) {
  const bool few_columns = s.n <= kShortSide, few_rows = s.m <= kShortSide && s.m > 1;
  const int64_t padded = (s.n + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  const bool pack = s.tb || padded != s.n;
  if (s.k == 0 || (!few_columns && !few_rows) || (few_columns && s.m == 1)) return false;
  if (pack && (!few_columns || padded * s.k > scratch_floats)) return false;
  if (pack) PackB(s, b, ldb, padded, scratch);
  const SkinnyProduct p{
      a, s.ta ? 1 : lda, s.ta ? lda : 1, pack ? scratch : b, pack ? padded : ldb, c, ldc, s.n, s.k, alpha, beta};
  if (few_columns) {
    constexpr int64_t kRows = 16;  // of a tile
    pool.Ranges(
        (s.m + kRows - 1) / kRows, std::max<int64_t>(1, kSkinnyGrain / (kRows * s.n * s.k)),
        [&](int64_t begin, int64_t end) { kernels.skinny(p, begin * kRows, std::min(end * kRows, s.m), 0, s.n); });
    return true;
  }
  const int64_t columns = 3 * kernels.lanes;  // of a tile
  pool.Ranges(
      (s.n + columns - 1) / columns, std::max<int64_t>(1, kSkinnyGrain / (columns * s.m * s.k)),
      [&](int64_t begin, int64_t end) { kernels.skinny(p, 0, s.m, begin * columns, std::min(end * columns, s.n)); });
  return true;
}

}  // namespace hone
