#include "kernels/checks.h"

#include "proto/base/status.h"

namespace hone::checks {
namespace {

std::string Describe(Tensor t) { return StrCat(DTypeName(t.dtype), " [", t.rows, ", ", t.cols, "] pitch ", t.pitch); }

void Valid(Tensor t) {
  HONE_CHECK(t.rows >= 0 && t.cols >= 0 && (t.pitch >= t.cols || t.rows <= 1), Describe(t));
  HONE_CHECK(t.data != nullptr || t.empty(), Describe(t), " without data");
  HONE_CHECK(BlockElements(t.dtype) == 1, Describe(t));
}

void Is(Tensor t, DType dtype) {
  Valid(t);
  HONE_CHECK(t.dtype == dtype, Describe(t), ", expected ", DTypeName(dtype));
}

void Is(Tensor t, DType dtype, int64_t rows, int64_t cols) {
  Is(t, dtype);
  HONE_CHECK(t.rows == rows && t.cols == cols, Describe(t), ", expected [", rows, ", ", cols, "]");
}

void Table(const WeightView& w) {
  HONE_CHECK(w.rows >= 0 && w.cols >= 0, "weight [", w.rows, ", ", w.cols, "]");
  HONE_CHECK(w.dtype != DType::kI32 && w.dtype != DType::kU8, "weight of ", DTypeName(w.dtype));
  if (w.dtype == DType::kNf4) {
    HONE_CHECK(w.rows * w.cols % 2 == 0, "nf4 weight [", w.rows, ", ", w.cols, "]");
    return;
  }
  HONE_CHECK(w.cols % BlockElements(w.dtype) == 0, DTypeName(w.dtype), " weight with ", w.cols, " columns");
}

void CheckSegments(const Segments& segments, int64_t q_rows, int64_t kv_rows) {
  for (const Segment& s : segments.host) {
    HONE_CHECK(s.q_len >= 0 && s.kv_len >= s.q_len && s.prefix_len >= 0, "segment lengths ", s.q_len, " ", s.kv_len,
               " ", s.prefix_len);
    HONE_CHECK(s.q0 >= 0 && int64_t{s.q0} + s.q_len <= q_rows, "segment queries [", s.q0, ", +", s.q_len, ") of ",
               q_rows);
    HONE_CHECK(s.kv0 >= 0 && int64_t{s.kv0} + s.kv_len <= kv_rows, "segment keys [", s.kv0, ", +", s.kv_len, ") of ",
               kv_rows);
    HONE_CHECK(s.prefix0 >= 0 && int64_t{s.prefix0} + s.prefix_len <= kv_rows, "segment prefix [", s.prefix0, ", +",
               s.prefix_len, ") of ", kv_rows);
  }
}

}  // namespace

void Fill(Tensor out) {
  Valid(out);
  HONE_CHECK(out.dtype != DType::kU8, Describe(out));
}

void Copy(Tensor in, Tensor out) {
  Valid(in);
  Is(out, out.dtype, in.rows, in.cols);
  const auto convertible = [](DType d) { return d == DType::kF32 || d == DType::kBF16; };
  HONE_CHECK((convertible(in.dtype) && convertible(out.dtype)) || (in.dtype == DType::kI32 && out.dtype == DType::kI32),
             Describe(in), " to ", Describe(out));
}

void Dense(Tensor t) {
  Valid(t);
  HONE_CHECK(t.pitch == t.cols, Describe(t), " is not dense");
}

void HasData(const WeightView& w) {
  if (w.rows * w.cols == 0) return;
  HONE_CHECK(w.data != nullptr, "weight [", w.rows, ", ", w.cols, "] without data");
  if (w.dtype != DType::kNf4) return;
  const bool nested = w.absmax_codes != nullptr && w.nested_code != nullptr && w.nested_absmax != nullptr;
  HONE_CHECK(nested || (w.absmax_codes == nullptr && w.absmax != nullptr), "nf4 weight without scales");
}

void DecodeWeight(const WeightView& weight, Tensor out) {
  Table(weight);
  Is(out, out.dtype, weight.rows, weight.cols);
  HONE_CHECK(out.dtype == DType::kF32 || out.dtype == DType::kBF16, Describe(out));
}

void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out, DType act) {
  Is(out, act);
  HONE_CHECK(!parts.empty() && parts.size() <= 4, parts.size(), " parts");
  const int64_t k = parts[0].weight.cols, spare = out.cols - k;
  int64_t rows = 0;
  for (const AugmentPart& part : parts) {
    Table(part.weight);
    HONE_CHECK(part.weight.cols == k, "weights of ", k, " and ", part.weight.cols, " columns");
    rows += part.weight.rows;
    if (part.b.empty()) continue;
    Is(part.b, DType::kF32, part.weight.rows, part.b.cols);
    HONE_CHECK(part.column >= 0 && part.column + part.b.cols <= spare, "B at ", part.column, " + ", part.b.cols, " of ",
               spare, " spare columns");
  }
  HONE_CHECK(spare >= 0 && out.rows == rows + spare, Describe(out), " for ", rows, " rows and ", spare,
             " spare columns");
  if (!a.empty()) {
    Is(a, DType::kF32, a.rows, k);
    HONE_CHECK(a.rows <= spare, Describe(a), " for ", spare, " spare columns");
  }
}

void EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch) {
  Dense(in);
  const int64_t elements = in.elements(), blocks = (elements + kNf4BlockSize - 1) / kNf4BlockSize;
  HONE_CHECK(elements % 2 == 0, Describe(in));
  HONE_CHECK(in.dtype == DType::kF32 || in.dtype == DType::kBF16 || in.dtype == DType::kF16, Describe(in));
  HONE_CHECK(out.codes != nullptr && out.absmax_codes != nullptr && out.nested_absmax != nullptr);
  Is(scratch, DType::kF32, 1, blocks);
}

void Transfer(Tensor t, const void* pinned, int slot) {
  Dense(t);
  HONE_CHECK(pinned != nullptr || t.empty());
  HONE_CHECK(slot >= 0 && slot < kTransferSlots, "transfer slot ", slot);
}

void EmbeddingRows(const WeightView& table, Tensor ids, Tensor out) {
  Table(table);
  Is(ids, DType::kI32, 1, out.rows);
  Is(out, out.dtype, ids.cols, table.cols);
  HONE_CHECK(out.dtype == DType::kF32 || out.dtype == DType::kBF16, Describe(out));
}

void GatherRows(Tensor in, Tensor row_ids, Tensor out) {
  Valid(in);
  Is(row_ids, DType::kI32, 1, out.rows);
  Is(out, in.dtype, row_ids.cols, in.cols);
}

void ScatterRows(Tensor in, Tensor row_ids, Tensor out) {
  Valid(in);
  Is(row_ids, DType::kI32, 1, in.rows);
  Is(out, in.dtype, out.rows, in.cols);
}

void Matmul(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor c) {
  Valid(a);
  Is(b, a.dtype);
  Valid(c);
  const int64_t m = ta == Transpose::kNo ? a.rows : a.cols, k = ta == Transpose::kNo ? a.cols : a.rows;
  const int64_t kb = tb == Transpose::kNo ? b.rows : b.cols, n = tb == Transpose::kNo ? b.cols : b.rows;
  HONE_CHECK(m == c.rows && n == c.cols && k == kb, Describe(a), ta == Transpose::kYes ? "^T" : "", " x ", Describe(b),
             tb == Transpose::kYes ? "^T" : "", " into ", Describe(c));
  HONE_CHECK(a.dtype == DType::kF32 || a.dtype == DType::kBF16, Describe(a));
  HONE_CHECK(c.dtype == a.dtype || c.dtype == DType::kF32, Describe(a), " into ", Describe(c));
}

void MatmulAdd(Tensor a, Transpose ta, Tensor b, Transpose tb, Tensor addend, Tensor c) {
  Matmul(a, ta, b, tb, c);
  Is(addend, c.dtype, c.rows, c.cols);
}

void WeightMatmul(Tensor x, std::span<const WeightView> weights, Tensor y, Tensor addend, DType act) {
  HONE_CHECK(!weights.empty() && weights.size() <= kWeightMatmulParts, weights.size(), " weights");
  int64_t n = 0;
  for (const WeightView& weight : weights) {
    Table(weight);
    HONE_CHECK(weight.dtype == weights[0].dtype, DTypeName(weight.dtype), " beside ", DTypeName(weights[0].dtype));
    Is(x, act, x.rows, weight.cols);
    n += weight.rows;
  }
  HONE_CHECK(x.rows >= 1 && x.rows <= kWeightMatmulRows, Describe(x));
  Is(y, y.dtype, x.rows, n);
  HONE_CHECK(y.dtype == act || y.dtype == DType::kF32, Describe(y));
  if (!addend.empty()) Is(addend, y.dtype, y.rows, y.cols);
}

void AdapterBackward(std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, Tensor du, DType act) {
  Is(dy, act);
  Is(b, act, dy.cols, b.cols);
  for (const Tensor& t : {u, du}) {
    if (!t.empty()) Is(t, act, dy.rows, b.cols);
  }
  HONE_CHECK(!parts.empty() && parts.size() <= 4, parts.size(), " parts");
  int64_t columns = 0;
  for (const AdapterPart& part : parts) {
    columns += part.rows;
    if (part.db.empty()) continue;
    Is(part.db, DType::kF32, part.rows, part.db.cols);
    HONE_CHECK(part.column >= 0 && part.column + part.db.cols <= b.cols, "adapter at ", part.column, " + ",
               part.db.cols, " of ", b.cols, " spare columns");
  }
  HONE_CHECK(columns == dy.cols, Describe(dy), " in parts of ", columns, " columns");
}

void Add(Tensor x, Tensor y, DType act) {
  Is(y, act);
  Is(x, act, y.rows, y.cols);
}

void AddBias(Tensor bias, Tensor y, DType act) {
  Is(y, act);
  Valid(bias);
  Is(bias, bias.dtype, 1, y.cols);
  HONE_CHECK(bias.dtype == act || bias.dtype == DType::kF32, Describe(bias));
}

void ScaleRows(Tensor x, Tensor factors, DType act) {
  Is(x, act);
  Is(factors, DType::kF32, 1, x.rows);
}

void RmsNorm(Tensor x, Tensor weight, Tensor y, Tensor rstd, DType act) {
  Is(x, act);
  Is(weight, DType::kF32, 1, weight.cols);
  Is(y, act, x.rows, x.cols);
  HONE_CHECK(weight.cols > 0 && x.cols % weight.cols == 0, Describe(x), " in groups of ", weight.cols);
  Is(rstd, DType::kF32, x.rows, x.cols / weight.cols);
}

void RmsNormBackward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor dx, float beta, DType act) {
  RmsNorm(x, weight, dy, rstd, act);
  Is(dx, act, x.rows, x.cols);
  HONE_CHECK(beta == 0 || (beta == 1 && dx.data != dy.data), "beta ", beta);
}

void RopeTable(Tensor positions, Tensor inv_freq, Tensor cos, Tensor sin) {
  Is(positions, DType::kI32, 1, cos.rows);
  Is(inv_freq, DType::kF32, 1, cos.cols);
  Is(cos, DType::kF32);
  Is(sin, DType::kF32, cos.rows, cos.cols);
}

void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, DType act) {
  Is(x, act);
  HONE_CHECK(head_dim > 0 && head_dim % 2 == 0 && x.cols % head_dim == 0, Describe(x), " in heads of ", head_dim);
  Is(cos, DType::kF32, x.rows, head_dim / 2);
  Is(sin, DType::kF32, x.rows, head_dim / 2);
}

void Glu(Tensor gate_up, Tensor out, DType act) {
  Is(out, act);
  Is(gate_up, act, out.rows, 2 * out.cols);
}

void WeightMatmulGlu(Tensor x, std::span<const WeightView> weights, Tensor gate_up, Tensor out, DType act) {
  HONE_CHECK(weights.size() == 2 && weights[0].rows == weights[1].rows, weights.size(), " weights");
  Glu(gate_up, out, act);
  WeightMatmul(x, weights, gate_up, {}, act);
}

void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache, DType act) {
  const int64_t nk = cache.cols / 2;
  Is(cache, act);
  HONE_CHECK(cache.cols % 2 == 0 && head_dim > 0 && nk % head_dim == 0 && qkv.cols >= cache.cols, Describe(qkv),
             " beside a cache of ", Describe(cache));
  Rope(qkv.Cols(0, qkv.cols - nk), head_dim, cos, sin, act);
  ScatterRows(qkv.Cols(qkv.cols - 2 * nk, 2 * nk), row_ids, cache);
}

void GluBackward(Tensor d_out, Tensor gate_up, Tensor d_gate_up, Tensor out, DType act) {
  Glu(gate_up, d_out, act);
  Glu(d_gate_up, d_out, act);
  if (!out.empty()) Glu(gate_up, out, act);
}

void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
               Tensor lse, DType act) {
  HONE_CHECK(shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0, "heads ",
             shape.heads, " kv ", shape.kv_heads, " dim ", shape.head_dim);
  HONE_CHECK(shape.window >= 0 && shape.softcap >= 0, "window ", shape.window, " softcap ", shape.softcap);
  Is(q, act, q.rows, shape.heads * shape.head_dim);
  Is(k, act, k.rows, shape.kv_heads * shape.head_dim);
  Is(v, act, k.rows, k.cols);
  Is(out, act, q.rows, q.cols);
  Is(lse, DType::kF32, q.rows, shape.heads);
  CheckSegments(segments, q.rows, k.rows);
}

void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                       const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv, DType act) {
  Attention(q, k, v, segments, shape, out, lse, act);
  Is(d_out, act, q.rows, q.cols);
  Is(delta, DType::kF32, q.rows, shape.heads);
  Is(dq, act, q.rows, q.cols);
  Is(dk, act, k.rows, k.cols);
  Is(dv, act, k.rows, k.cols);
}

void ArgMax(Tensor logits, Tensor out) {
  Is(logits, DType::kF32);
  HONE_CHECK(logits.cols <= INT32_MAX, Describe(logits));
  Is(out, DType::kI32, 1, logits.rows);
}

void LogProb(Tensor logits, Tensor targets, Tensor log_probs, DType act) {
  Valid(logits);
  HONE_CHECK(logits.dtype == act || logits.dtype == DType::kF32, Describe(logits));
  HONE_CHECK(logits.cols > 0, Describe(logits));
  Is(targets, DType::kI32, 1, logits.rows);
  Is(log_probs, DType::kF32, 1, logits.rows);
}

void SumSquares(Tensor x, Tensor out) {
  Is(x, DType::kF32);
  HONE_CHECK(x.rows == 1 || x.pitch == x.cols, Describe(x), " is not flat");
  Is(out, DType::kF32, 1, 1);
}

void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step) {
  for (Tensor t : {param, grad, m, v}) {
    Is(t, DType::kF32, param.rows, param.cols);
    HONE_CHECK(t.rows == 1 || t.pitch == t.cols, Describe(t), " is not flat");
  }
  Is(sum_squares, DType::kF32, 1, 1);
  Is(step, DType::kF32, 1, 4);
}

void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
               Tensor step) {
  const int64_t n = param.cols, blocks = (n + kOptimizerBlockSize - 1) / kOptimizerBlockSize;
  for (Tensor t : {param, grad}) Is(t, DType::kF32, 1, n);
  for (Tensor t : {m, v}) Is(t, DType::kU8, 1, n);
  for (Tensor t : {m_absmax, v_absmax}) Is(t, DType::kF32, 1, blocks);
  Is(sum_squares, DType::kF32, 1, 1);
  Is(step, DType::kF32, 1, 4);
}

int64_t AdapterColumns(BackendKind backend, int64_t sum_r) {
  // CUDA: whole 64-column tiles of the GEMM. CPU: whole cache lines of fp32.
  const int64_t unit = backend == BackendKind::kCuda ? 64 : 16;
  return (sum_r + unit - 1) / unit * unit;
}

}  // namespace hone::checks
