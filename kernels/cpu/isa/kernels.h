// The inner loops of the CPU back end: one table of functions per instruction set, all from the same sources
// (kernels/cpu/isa/*.cc compiled once per set, HONE_ISA naming the copy). Every function works on a range of rows or
// elements, so that CpuOps can divide it among threads, and a row's result never depends on the range it came in.
// Sources of this folder may include only this header, vec.h and nf4_codes.h: a standard template compiled for AVX-512
// here could otherwise be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace hone {

// fp32 rows: row i starts at data + i * pitch.
struct RowsF32 {
  float* data;
  int64_t pitch;
};

struct AdamWScalars {
  float grad_scale, beta1, beta2, eps, lr, weight_decay, bias_correction1, bias_correction2;
};

// One tile of attention scores: `rows` queries against `cols` consecutive keys, row pitch `pitch`. Row i sees columns
// [max(0, lo + i) if windowed, min(cols, hi + i)): lo and hi are where row 0's range begins and ends (hi exclusive, may
// exceed cols; or be <= 0: nothing yet). causal == false: hi does not move with i.
struct ScoreTile {
  float* s;
  int64_t pitch;
  int64_t rows, cols;
  int64_t lo, hi;
  bool windowed, causal;
  float scale;    // on the raw products in s
  float softcap;  // 0: none
};

// c[m, n] <- alpha * sum over k of a(i, k) * b(k, j) + beta * c: element (i, k) of a at a + i * a_row + k * a_k (either
// way round), row k of b at b + k * b_k with whole vectors readable (n rounded up to `lanes`). beta 0 ignores what c
// held.
struct SkinnyProduct {
  const float* a;
  int64_t a_row, a_k;
  const float* b;
  int64_t b_k;
  float* c;
  int64_t c_row;
  int64_t n, k;
  float alpha, beta;
};

struct CpuKernels {
  const char* name;
  // --- decode.cc: elements [first, first + count) of the weight's flat order; first and count are multiples of the
  // block.
  void (*decode)(const WeightView& weight, int64_t first, int64_t count, float* out);
  void (*f32_to_bf16)(const float* in, int64_t count, uint16_t* out);
  void (*bf16_to_f32)(const uint16_t* in, int64_t count, float* out);
  // --- elementwise.cc, rows [begin, end)
  void (*add)(RowsF32 x, RowsF32 y, int64_t cols, int64_t begin, int64_t end);  // x.pitch 0: one row for all (bias)
  void (*scale_rows)(RowsF32 x, const float* factors, int64_t cols, int64_t begin, int64_t end);
  void (*rms_norm)(RowsF32 x, const float* weight, int64_t width, int64_t groups, float eps, RowsF32 y, RowsF32 rstd,
                   int64_t begin, int64_t end);
  void (*rms_norm_backward)(RowsF32 dy, RowsF32 x, const float* weight, int64_t width, int64_t groups, RowsF32 rstd,
                            RowsF32 dx, float beta, int64_t begin, int64_t end);
  void (*rope)(RowsF32 x, int64_t heads, int64_t head_dim, RowsF32 cos, RowsF32 sin, float sign, int64_t begin,
               int64_t end);
  // activation: hone::Activation as a number
  void (*glu)(RowsF32 gate_up, int64_t width, int activation, RowsF32 out, int64_t begin, int64_t end);
  void (*glu_backward)(RowsF32 d_out, RowsF32 gate_up, int64_t width, int activation, RowsF32 d_gate_up, int64_t begin,
                       int64_t end);
  float (*sum_squares)(const float* x, int64_t count);
  void (*adamw)(float* param, const float* grad, float* m, float* v, int64_t count, const AdamWScalars& scalars);
  // --- head.cc
  void (*log_prob)(RowsF32 logits, int64_t vocabulary, const int32_t* targets, float scale, float softcap,
                   bool unit_gradient, float* log_probs, int64_t begin, int64_t end);
  // --- attention.cc
  // Online softmax: s becomes exp(score - max) (0 where unseen), row_max and row_sum are brought up to date and the
  // rows of out (head_dim wide) multiplied by what the old maximum has become; first: no earlier tile.
  void (*softmax_tile)(const ScoreTile& tile, bool first, float* row_max, float* row_sum, RowsF32 out,
                       int64_t head_dim);
  void (*softmax_finish)(int64_t rows, const float* row_max, const float* row_sum, RowsF32 out, int64_t head_dim,
                         RowsF32 lse);
  // s (raw products) becomes p = exp(score - lse); dp becomes ds = p * (dp - delta) * scale, through the softcap.
  void (*softmax_backward_tile)(const ScoreTile& tile, float* dp, RowsF32 lse, RowsF32 delta);
  // out[i] <- sum over head_dim of a[i] * b[i], per row
  void (*row_dots)(RowsF32 a, RowsF32 b, int64_t head_dim, RowsF32 out, int64_t begin, int64_t end);
  // --- skinny.cc: rows [row_begin, row_end) and columns [col_begin, col_end) of c, col_begin a multiple of `lanes`
  int64_t lanes;
  void (*skinny)(const SkinnyProduct& product, int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end);
  // sums[i][j mod (2 lanes)] += piece[j] * x[i][j] for j < count: part of a weight's row against every row of x
  void (*piece_dots)(const float* piece, int64_t count, RowsF32 x, int64_t rows, float* sums);
};

// The sets that this processor runs, slowest first; and the best of them.
std::span<const CpuKernels> CpuKernelSets();
const CpuKernels& BestCpuKernels();

// Filled per instruction set by each source of this folder.
#define HONE_DECLARE_ISA(isa)               \
  namespace isa {                           \
  void AddDecode(CpuKernels& kernels);      \
  void AddElementwise(CpuKernels& kernels); \
  void AddHead(CpuKernels& kernels);        \
  void AddAttention(CpuKernels& kernels);   \
  void AddSkinny(CpuKernels& kernels);      \
  }
namespace isa {
HONE_DECLARE_ISA(base)
HONE_DECLARE_ISA(avx2)
HONE_DECLARE_ISA(avx512)
}  // namespace isa
#undef HONE_DECLARE_ISA

}  // namespace hone
