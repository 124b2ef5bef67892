// Products: the only door to OpenBLAS (single-threaded sgemm, divided over our own threads), and the way past it for
// products with one short side. Row-major throughout.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/thread_pool.h"

namespace hone {

struct GemmShape {
  bool ta = false, tb = false;
  int64_t m = 0, n = 0, k = 0;
};

// OpenBLAS's own threads off, for the whole process.
void UseOneBlasThread();

// c[m, n] <- alpha * op(a) * op(b) + beta * c on the calling thread; beta 0 ignores what c held.
void Sgemm(const GemmShape& shape, float alpha, const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
           float* c, int64_t ldc);
// The same, divided over the pool by blocks of rows or columns of c, whichever repeats less packing. The same bits for
// the same number of threads; for another number only where OpenBLAS rounds alike wherever a block begins (seen with
// AVX-512, not before).
void ParallelSgemm(ThreadPool& pool, const GemmShape& shape, float alpha, const float* a, int64_t lda, const float* b,
                   int64_t ldb, float beta, float* c, int64_t ldc);
// Takes the product if one side of c is short (an adapter's rank) and no long operand needs packing; false: not done.
// scratch: scratch_floats for a transposed or ragged b.
bool ParallelSkinny(ThreadPool& pool, const CpuKernels& kernels, float* scratch, int64_t scratch_floats,
                    const GemmShape& shape, float alpha, const float* a, int64_t lda, const float* b, int64_t ldb,
                    float beta, float* c, int64_t ldc);

}  // namespace hone
