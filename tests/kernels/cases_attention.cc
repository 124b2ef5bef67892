// Attention over packed documents, shared prompts and cached keys.
#include <algorithm>
#include <cmath>

#include "kernels/reference/attention.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

using reference::Matrix;

std::string Name(const char* op, const AttentionLayout& layout, const AttentionShape& shape) {
  return StrCat(op, "/", layout.name, ",heads=", shape.heads, ",kv=", shape.kv_heads, ",d=", shape.head_dim,
                ",window=", shape.window, ",softcap=", shape.softcap);
}

double Pairs(const AttentionLayout& layout, const AttentionShape& shape) {
  double pairs = 0;
  for (const Segment& s : layout.segments) {
    for (int64_t i = 0; i < s.q_len; ++i) {
      const int64_t seen = int64_t{s.prefix_len} + s.kv_len - s.q_len + i + 1;
      pairs += static_cast<double>(shape.window > 0 ? std::min(seen, shape.window) : seen);
    }
  }
  return pairs * static_cast<double>(shape.heads);
}

// `queries` each, the last positions of so many keys in a cache.
AttentionLayout CacheRuns(const std::vector<int64_t>& lengths, int64_t queries) {
  AttentionLayout layout{"cache", 0, 0, {}};
  if (queries > 1) layout.name += StrCat("_", queries, "_of");
  for (int64_t n : lengths) {
    layout.segments.push_back({static_cast<int32_t>(layout.q_rows), static_cast<int32_t>(queries),
                               static_cast<int32_t>(layout.kv_rows), static_cast<int32_t>(n), 0, 0});
    layout.q_rows += queries;
    layout.kv_rows += n + 3;  // room to grow
    layout.name += StrCat("_", n);
  }
  return layout;
}

// The same documents, named from the last to the first.
AttentionLayout Backwards(AttentionLayout layout) {
  std::reverse(layout.segments.begin(), layout.segments.end());
  layout.name += "_backwards";
  return layout;
}

struct Forward {
  Matrix<double> out, lse;
};

template <typename Round>
Forward RunForward(const CaseTensors& t, Tensor q, Tensor k, Tensor v, const AttentionLayout& layout,
                   const AttentionShape& shape, Round round) {
  if (t.timing()) return {Matrix<double>(q.rows, q.cols), Matrix<double>(q.rows, shape.heads, 5)};
  // Rows that no segment names keep what they had: NaN is "as before".
  Forward f{Matrix<double>(q.rows, q.cols, NAN), Matrix<double>(q.rows, shape.heads, NAN)};
  reference::Attention(t.MatrixBefore(q), t.MatrixBefore(k), t.MatrixBefore(v), layout.segments, shape, f.out, f.lse,
                       round);
  return f;
}

}  // namespace

AttentionLayout Documents(const std::vector<int64_t>& lengths, int64_t unused_rows) {
  AttentionLayout layout{"docs", 0, 0, {}};
  for (int64_t n : lengths) {
    const auto start = static_cast<int32_t>(layout.q_rows), length = static_cast<int32_t>(n);
    layout.segments.push_back({start, length, start, length, 0, 0});
    layout.q_rows += n;
    layout.name += StrCat("_", n);
  }
  layout.q_rows += unused_rows;
  layout.kv_rows = layout.q_rows;
  if (unused_rows > 0) layout.name += StrCat("_unused_", unused_rows);
  return layout;
}

AttentionLayout SharedPrompt(int64_t prompt, const std::vector<int64_t>& completions) {
  AttentionLayout layout = Documents({prompt});
  layout.name = StrCat("prompt_", prompt, "_shared_by");
  for (int64_t n : completions) {
    const auto start = static_cast<int32_t>(layout.q_rows), length = static_cast<int32_t>(n);
    layout.segments.push_back({start, length, start, length, 0, static_cast<int32_t>(prompt)});
    layout.q_rows += n;
    layout.name += StrCat("_", n);
  }
  layout.kv_rows = layout.q_rows;
  return layout;
}

AttentionLayout CacheDecode(const std::vector<int64_t>& lengths) { return CacheRuns(lengths, 1); }

OpCase AttentionCase(const AttentionLayout& layout, const AttentionShape& shape) {
  return {Name("attention", layout, shape), [=](CaseTensors& t) {
            const int64_t d = shape.head_dim;
            const Tensor q = t.Random(t.act(), layout.q_rows, shape.heads * d, 1, 16);
            const Tensor k = t.Random(t.act(), layout.kv_rows, shape.kv_heads * d, 1, 16);
            const Tensor v = t.Random(t.act(), layout.kv_rows, shape.kv_heads * d, 1, 16);
            const Segments segments = t.MakeSegments(layout.segments);
            const Tensor out = t.Output(t.act(), layout.q_rows, shape.heads * d, 16);
            const Tensor lse = t.Output(DType::kF32, layout.q_rows, shape.heads);
            return PreparedCase{[=](Ops& ops) { ops.Attention(q, k, v, segments, shape, out, lse); },
                                [=](CaseTensors& c) {
                                  const Forward exact = RunForward(c, q, k, v, layout, shape, reference::NoRounding{});
                                  Forward rounded = exact;
                                  if (c.act() == DType::kBF16) {
                                    rounded = RunForward(c, q, k, v, layout, shape, reference::Bf16Rounding{});
                                    for (double& x : rounded.out.values) x = reference::Bf16Rounding{}(x);
                                  }
                                  c.Expect("out", out, exact.out.values, rounded.out.values, kUsual);
                                  c.Expect("lse", lse, exact.lse.values, kUsual);
                                },
                                4.0 * static_cast<double>(d) * Pairs(layout, shape), 0};
          }};
}

OpCase AttentionBackwardCase(const AttentionLayout& layout, const AttentionShape& shape) {
  return {Name("attention_backward", layout, shape), [=](CaseTensors& t) {
            const int64_t d = shape.head_dim;
            const Tensor q = t.Random(t.act(), layout.q_rows, shape.heads * d, 1, 16);
            const Tensor k = t.Random(t.act(), layout.kv_rows, shape.kv_heads * d, 1, 16);
            const Tensor v = t.Random(t.act(), layout.kv_rows, shape.kv_heads * d, 1, 16);
            const Tensor d_out = t.Random(t.act(), layout.q_rows, shape.heads * d, 1, 16);
            const Segments segments = t.MakeSegments(layout.segments);
            const Forward forward = RunForward(t, q, k, v, layout, shape, reference::NoRounding{});
            const Tensor out = t.From(t.act(), layout.q_rows, shape.heads * d, forward.out.values, 16);
            const Tensor lse = t.From(DType::kF32, layout.q_rows, shape.heads, forward.lse.values);
            const Tensor delta = t.Output(DType::kF32, layout.q_rows, shape.heads);
            const Tensor dq = t.Output(t.act(), q.rows, q.cols, 16);
            const Tensor dk = t.Output(t.act(), k.rows, k.cols, 16), dv = t.Output(t.act(), v.rows, v.cols, 16);
            const auto launch = [=](Ops& ops) {
              ops.AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv);
              ops.Fill(delta, 0);  // scratch: whatever it holds afterwards is no result
            };
            const auto check = [=](CaseTensors& c) {
              const auto run = [&](auto round, Matrix<double>* gq, Matrix<double>* gk, Matrix<double>* gv) {
                *gq = Matrix<double>(q.rows, q.cols);
                *gk = Matrix<double>(k.rows, k.cols);
                *gv = Matrix<double>(k.rows, k.cols);
                reference::AttentionBackward(c.MatrixBefore(d_out), c.MatrixBefore(q), c.MatrixBefore(k),
                                             c.MatrixBefore(v), c.MatrixBefore(out), c.MatrixBefore(lse),
                                             layout.segments, shape, *gq, *gk, *gv, round);
              };
              Matrix<double> gq, gk, gv;
              run(reference::NoRounding{}, &gq, &gk, &gv);
              Matrix<double> rq = gq, rk = gk, rv = gv;
              if (c.act() == DType::kBF16) {
                run(reference::Bf16Rounding{}, &rq, &rk, &rv);
                for (auto* m : {&rq, &rk, &rv}) {
                  for (double& x : m->values) x = reference::Bf16Rounding{}(x);
                }
              }
              c.Expect("dq", dq, gq.values, rq.values, kGradient);
              c.Expect("dk", dk, gk.values, rk.values, kGradient);
              c.Expect("dv", dv, gv.values, rv.values, kGradient);
              c.ExpectExactly("delta", delta, Values(static_cast<size_t>(delta.elements()), 0));
            };
            return PreparedCase{launch, check, 10.0 * static_cast<double>(d) * Pairs(layout, shape), 0};
          }};
}

void AddAttentionCases(std::vector<OpCase>& cases) {
  const auto shape = [](int64_t heads, int64_t kv_heads, int64_t d, int64_t window = 0, float softcap = 0) {
    return AttentionShape{heads, kv_heads, d, 1 / std::sqrt(static_cast<float>(d)), softcap, window};
  };
  const auto both = [&](const AttentionLayout& layout, const AttentionShape& s) {
    cases.push_back(AttentionCase(layout, s));
    cases.push_back(AttentionBackwardCase(layout, s));
  };
  both(Documents({1}), shape(1, 1, 8));
  both(Documents({5}), shape(2, 1, 16));
  both(Documents({3, 1, 40, 17}, 3), shape(3, 1, 64));
  both(Documents({100, 61, 90}), shape(9, 3, 64));
  both(Documents({33, 20}), shape(4, 4, 20));  // a head_dim of no particular kind
  both(Documents({70}), shape(2, 1, 128));
  both(Documents({600}), shape(1, 1, 32));  // more keys than one tile
  both(Documents({600}), shape(1, 1, 32, 100));
  both(Documents({40, 130}), shape(2, 2, 32, 7));
  both(Documents({40, 66}), shape(2, 1, 32, 0, 5));
  both(Documents({40, 66}), shape(2, 1, 32, 9, 5));
  both(SharedPrompt(30, {10, 1, 25}), shape(4, 2, 32));
  both(SharedPrompt(30, {10, 70}), shape(2, 1, 32, 20));
  both(SharedPrompt(540, {9}), shape(1, 1, 32));
  // Several tiles of queries and of keys, at each width of tile.
  both(Documents({200, 65, 130}, 5), shape(4, 1, 128));
  both(Documents({33, 150}), shape(2, 1, 80));
  both(Documents({150, 33}), shape(4, 2, 96));
  both(Documents({140, 70}), shape(2, 1, 256));
  both(Documents({66}), shape(2, 2, 192, 40, 6));
  both(Documents({190}), shape(2, 1, 128, 40));
  both(Documents({30, 170}), shape(2, 1, 128, 0, 5));
  both(SharedPrompt(150, {20, 1, 70}), shape(4, 2, 128));
  both(SharedPrompt(150, {40, 70}), shape(2, 1, 64, 60, 9));
  // Tiles of 128 queries and keys, with what masks and shares them.
  both(Documents({260, 129}), shape(4, 1, 128));
  both(Documents({130, 64}), shape(3, 3, 128));
  both(Documents({270}), shape(2, 1, 120, 150));
  both(SharedPrompt(190, {140, 1, 30}), shape(2, 1, 128));
  both(Backwards(Documents({40, 66})), shape(2, 1, 64));
  both(CacheRuns({90, 33, 170}, 33), shape(2, 1, 128));
  // One query against more keys than one block takes.
  cases.push_back(AttentionCase(CacheDecode({300, 5, 700}), shape(8, 2, 128)));
  cases.push_back(AttentionCase(CacheDecode({300, 530}), shape(4, 4, 96, 64, 7)));
  cases.push_back(AttentionCase(SharedPrompt(400, {1, 1}), shape(4, 1, 256)));
  cases.push_back(AttentionCase(CacheDecode({1, 7, 65, 530}), shape(9, 3, 64)));
  cases.push_back(AttentionCase(CacheDecode({7, 65, 200}), shape(2, 1, 64, 16)));
}

}  // namespace hone
