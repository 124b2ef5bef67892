// The makers of cases, by family; the registry and the micro-benchmarks choose the shapes.
#pragma once

#include "tests/kernels/op_case.h"

namespace hone {

// --- cases_data.cc
OpCase FillCase(DType dtype, int64_t rows, int64_t cols, float value);
OpCase CopyCase(DType from, DType to, int64_t rows, int64_t cols);
OpCase DecodeCase(DType stored, bool nested, DType out, int64_t rows, int64_t cols, int64_t gap);
OpCase EmbeddingCase(DType stored, int64_t vocabulary, int64_t hidden, int64_t tokens);
OpCase GatherCase(int64_t rows, int64_t cols, int64_t picked);
OpCase ScatterCase(int64_t rows, int64_t cols, int64_t placed);
// --- cases_linear.cc
struct MatmulShape {
  int64_t m = 0, n = 0, k = 0;
  Transpose ta = Transpose::kNo, tb = Transpose::kYes;
  float alpha = 1, beta = 0;
  bool fp32_out = false;
};
OpCase MatmulCase(const MatmulShape& shape);
enum class Addend : uint8_t { kNone, kApart, kInPlace };
struct WeightMatmulShape {
  DType stored = DType::kNf4;
  int64_t m = 0;
  std::vector<int64_t> n;
  int64_t k = 0;
  Addend addend = Addend::kNone;
  bool fp32_out = false, nested = true;
  int64_t gap = 8;  // of x
};
OpCase WeightMatmulCase(const WeightMatmulShape& shape);
OpCase WeightMatmulGluCase(DType stored, int64_t m, int64_t n, int64_t k, Activation activation);
OpCase AddCase(int64_t rows, int64_t cols);
OpCase AddBiasCase(int64_t rows, int64_t cols, bool fp32_bias);
OpCase ScaleRowsCase(int64_t rows, int64_t cols);
// --- cases_block.cc
OpCase RmsNormCase(int64_t rows, int64_t width, int64_t groups, bool in_place);
OpCase RmsNormBackwardCase(int64_t rows, int64_t width, int64_t groups, float beta);
OpCase RopeTableCase(int64_t rows, int64_t head_dim);
OpCase RopeCase(int64_t rows, int64_t heads, int64_t head_dim, RopeDirection direction);
OpCase RopeToCacheCase(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t cache_rows);
OpCase GluCase(int64_t rows, int64_t width, Activation activation);
OpCase GluBackwardCase(int64_t rows, int64_t width, Activation activation, bool in_place, bool with_out = false);
// --- cases_attention.cc
struct AttentionLayout {
  std::string name;
  int64_t q_rows = 0, kv_rows = 0;
  std::vector<Segment> segments;
};
AttentionLayout Documents(const std::vector<int64_t>& lengths, int64_t unused_rows = 0);
AttentionLayout SharedPrompt(int64_t prompt, const std::vector<int64_t>& completions);
AttentionLayout CacheDecode(const std::vector<int64_t>& lengths);  // one query each
OpCase AttentionCase(const AttentionLayout& layout, const AttentionShape& shape);
OpCase AttentionBackwardCase(const AttentionLayout& layout, const AttentionShape& shape);
// --- cases_head.cc
OpCase LogProbCase(int64_t rows, int64_t vocabulary, LogitTransform transform, LogProbMode mode, bool fp32_logits);
OpCase LogProbModesCase(int64_t rows, int64_t vocabulary, LogitTransform transform);
OpCase ArgMaxCase(int64_t rows, int64_t vocabulary, bool with_nan);
OpCase SumSquaresCase(int64_t count);
OpCase AdamWCase(int64_t count, float max_grad_norm, float weight_decay);

// --- cases_quantised.cc
OpCase EncodeNf4Case(DType dtype, int64_t rows, int64_t cols);
OpCase AdamW8bitCase(int64_t count, float max_grad_norm, float weight_decay);
OpCase TransferCase(int64_t rows, int64_t cols);

void AddDataCases(std::vector<OpCase>& cases);
void AddLinearCases(std::vector<OpCase>& cases);
void AddAdapterCases(std::vector<OpCase>& cases);
void AddBlockCases(std::vector<OpCase>& cases);
void AddAttentionCases(std::vector<OpCase>& cases);
void AddHeadCases(std::vector<OpCase>& cases);
void AddQuantisedCases(std::vector<OpCase>& cases);

}  // namespace hone
