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

}  // namespace

void UseOneBlasThread() { openblas_set_num_threads(1); }

void Sgemm(const GemmShape& s, float alpha, const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
           int64_t ldc) {
  if (s.m == 0 || s.n == 0) return;
  if (s.m == 1 && s.tb && !s.ta && s.k > 0) {
    // One row: a matrix-vector product reads b once and packs nothing.
    if (beta == 0) std::fill_n(c, s.n, 0.0f);
    cblas_sgemv(CblasRowMajor, CblasNoTrans, ToInt(s.n), ToInt(s.k), alpha, b, ToInt(ldb), a, 1, beta == 0 ? 1.0f : beta,
                c, 1);
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

}  // namespace hone
