#include "kernels/cpu/gemm.h"

#include <cblas.h>

#include <algorithm>

#include "proto/base/status.h"

namespace hone {
namespace {

// Below this many multiply-adds waking a thread costs more than it saves.
constexpr int64_t kSmallProduct = 1 << 18;
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
  const int64_t threads = pool.threads();
  if (threads == 1 || s.m * s.n * s.k < kSmallProduct) return Sgemm(s, alpha, a, lda, b, ldb, beta, c, ldc);
  // Every part packs all of the operand that is not cut: cut the longer side of c.
  const bool by_rows = s.m >= s.n;
  const int64_t length = by_rows ? s.m : s.n;
  const int64_t unit = length >= 2 * kCut * threads ? kCut : length >= 32 * threads ? 16 : 1;
  const int64_t units = (length + unit - 1) / unit;
  pool.Parts([&](int part) {
    const int64_t begin = std::min(length, units * part / threads * unit);
    const int64_t end = std::min(length, units * (part + 1) / threads * unit);
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
