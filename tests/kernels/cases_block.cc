// Norm, rotary position and gated unit.
#include <array>
#include <cmath>

#include "kernels/reference/glu.h"
#include "kernels/reference/norm.h"
#include "kernels/reference/rope.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

using reference::Matrix;
constexpr float kEps = 1e-5f;

// rstd as a forward pass would have stored it.
Values ForwardRstd(CaseTensors& t, Tensor x, int64_t width) {
  const int64_t groups = x.cols / width;
  Matrix<double> y(x.rows, x.cols), rstd(x.rows, groups);
  reference::RmsNorm(t.MatrixBefore(x), std::vector<double>(static_cast<size_t>(width), 1), kEps, y, rstd);
  return rstd.values;
}

}  // namespace

OpCase RmsNormCase(int64_t rows, int64_t width, int64_t groups, bool in_place) {
  return {StrCat("rms_norm/t=", rows, ",w=", width, ",g=", groups, in_place ? ",in_place" : ""), [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), rows, width * groups, 2, 16);
            const Tensor weight = t.Random(DType::kF32, 1, width);
            const Tensor y = in_place ? x : t.Output(t.act(), rows, width * groups, 48);
            const Tensor rstd = t.Output(DType::kF32, rows, groups);
            return PreparedCase{[=](Ops& ops) { ops.RmsNorm(x, weight, kEps, y, rstd); },
                                [=](CaseTensors& c) {
                                  Matrix<double> exact(rows, width * groups), exact_rstd(rows, groups);
                                  reference::RmsNorm(c.MatrixBefore(x), c.Before(weight), kEps, exact, exact_rstd);
                                  c.Expect("y", y, exact.values, kTight);
                                  c.Expect("rstd", rstd, exact_rstd.values, kTight);
                                },
                                0, static_cast<double>(2 * rows * width * groups * BlockBytes(x.dtype))};
          }};
}

OpCase RmsNormBackwardCase(int64_t rows, int64_t width, int64_t groups, float beta) {
  return {StrCat("rms_norm_backward/t=", rows, ",w=", width, ",g=", groups, ",beta=", beta), [=](CaseTensors& t) {
            const int64_t cols = width * groups;
            const Tensor x = t.Random(t.act(), rows, cols, 2, 16), dy = t.Random(t.act(), rows, cols, 1, 16);
            const Tensor weight = t.Random(DType::kF32, 1, width);
            const Tensor rstd = t.From(DType::kF32, rows, groups, ForwardRstd(t, x, width));
            const Tensor dx = beta == 0 ? t.Output(t.act(), rows, cols, 16) : t.Random(t.act(), rows, cols, 1, 16);
            return PreparedCase{[=](Ops& ops) { ops.RmsNormBackward(dy, x, weight, rstd, dx, beta); },
                                [=](CaseTensors& c) {
                                  auto exact = c.MatrixBefore(dx);
                                  reference::RmsNormBackward(c.MatrixBefore(dy), c.MatrixBefore(x), c.Before(weight),
                                                             c.MatrixBefore(rstd), exact, beta);
                                  c.Expect("dx", dx, exact.values, kGradient);
                                },
                                0, static_cast<double>((beta == 0 ? 3 : 4) * rows * cols * BlockBytes(x.dtype))};
          }};
}

OpCase RopeTableCase(int64_t rows, int64_t head_dim) {
  return {StrCat("rope_table/t=", rows, ",d=", head_dim), [=](CaseTensors& t) {
            std::vector<int32_t> positions;
            for (int64_t i = 0; i < rows; ++i)
              positions.push_back(static_cast<int32_t>(i < rows / 2 ? i : t.Below(8192)));
            Values frequencies;
            for (int64_t i = 0; i < head_dim / 2; ++i) {
              frequencies.push_back(std::pow(100000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
            }
            const Tensor position_tensor = t.Ints(positions);
            const Tensor inv_freq = t.From(DType::kF32, 1, head_dim / 2, frequencies);
            const Tensor cos = t.Output(DType::kF32, rows, head_dim / 2),
                         sin = t.Output(DType::kF32, rows, head_dim / 2);
            const float scaling = 1.25f;
            return PreparedCase{[=](Ops& ops) { ops.RopeTable(position_tensor, inv_freq, scaling, cos, sin); },
                                [=](CaseTensors& c) {
                                  const Values f = c.Before(inv_freq);
                                  Matrix<double> exact_cos(rows, head_dim / 2), exact_sin(rows, head_dim / 2);
                                  reference::RopeTable(positions, std::vector<float>(f.begin(), f.end()), scaling,
                                                       exact_cos, exact_sin);
                                  c.Expect("cos", cos, exact_cos.values, kTight);
                                  c.Expect("sin", sin, exact_sin.values, kTight);
                                },
                                0, static_cast<double>(rows * head_dim * 4)};
          }};
}

OpCase RopeCase(int64_t rows, int64_t heads, int64_t head_dim, RopeDirection direction) {
  return {StrCat("rope/t=", rows, ",heads=", heads, ",d=", head_dim,
                 direction == RopeDirection::kBackward ? ",backward" : ""),
          [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), rows, heads * head_dim, 1, 64);
            const Tensor cos = t.Random(DType::kF32, rows, head_dim / 2),
                         sin = t.Random(DType::kF32, rows, head_dim / 2);
            return PreparedCase{[=](Ops& ops) { ops.Rope(x, head_dim, cos, sin, direction); },
                                [=](CaseTensors& c) {
                                  auto exact = c.MatrixBefore(x);
                                  reference::Rope(exact, head_dim, c.MatrixBefore(cos), c.MatrixBefore(sin), direction);
                                  c.Expect("x", x, exact.values, kTight);
                                },
                                0, static_cast<double>(2 * rows * heads * head_dim * BlockBytes(x.dtype))};
          }};
}

OpCase RopeToCacheCase(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t cache_rows) {
  return {StrCat("rope_to_cache/t=", rows, ",heads=", heads, ",kv=", kv_heads, ",d=", head_dim), [=](CaseTensors& t) {
            const int64_t nq = heads * head_dim, nk = kv_heads * head_dim;
            const Tensor qkv = t.Random(t.act(), rows, nq + 2 * nk, 1, 16);
            const Tensor cos = t.Random(DType::kF32, rows, head_dim / 2),
                         sin = t.Random(DType::kF32, rows, head_dim / 2);
            std::vector<int32_t> ids;
            for (int64_t i = 0; i < rows; ++i) ids.push_back(static_cast<int32_t>((i * 7 + 3) % cache_rows));
            const Tensor row_ids = t.Ints(ids);
            const Tensor cache = t.Output(t.act(), cache_rows, 2 * nk, 8);
            return PreparedCase{[=](Ops& ops) { ops.RopeToCache(qkv, head_dim, cos, sin, row_ids, cache); },
                                [=](CaseTensors& c) {
                                  auto exact = c.MatrixBefore(qkv);
                                  Matrix<double> qk(rows, nq + nk), kept(cache_rows, 2 * nk, NAN);
                                  for (int64_t i = 0; i < rows; ++i) {
                                    for (int64_t j = 0; j < nq + nk; ++j) qk(i, j) = exact(i, j);
                                  }
                                  reference::Rope(qk, head_dim, c.MatrixBefore(cos), c.MatrixBefore(sin),
                                                  RopeDirection::kForward);
                                  for (int64_t i = 0; i < rows; ++i) {
                                    for (int64_t j = 0; j < nq + nk; ++j) exact(i, j) = qk(i, j);
                                    for (int64_t j = 0; j < 2 * nk; ++j) kept(ids[i], j) = exact(i, nq + j);
                                  }
                                  c.Expect("qkv", qkv, exact.values, kTight);
                                  c.Expect("cache", cache, kept.values, kTight);
                                },
                                0, static_cast<double>(2 * rows * (nq + 3 * nk) * BlockBytes(qkv.dtype))};
          }};
}

namespace {
std::string ActivationName(Activation a) {
  return a == Activation::kSilu ? "silu" : a == Activation::kGelu ? "gelu" : "gelu_tanh";
}
}  // namespace

OpCase GluCase(int64_t rows, int64_t width, Activation activation) {
  return {StrCat("glu/", ActivationName(activation), ",t=", rows, ",f=", width), [=](CaseTensors& t) {
            const Tensor gate_up = t.Random(t.act(), rows, 2 * width, 3, 16), out = t.Output(t.act(), rows, width, 48);
            return PreparedCase{[=](Ops& ops) { ops.Glu(gate_up, activation, out); },
                                [=](CaseTensors& c) {
                                  Matrix<double> exact(rows, width);
                                  reference::Glu(c.MatrixBefore(gate_up), activation, exact);
                                  c.Expect("out", out, exact.values);
                                },
                                0, static_cast<double>(3 * rows * width * BlockBytes(out.dtype))};
          }};
}

OpCase GluBackwardCase(int64_t rows, int64_t width, Activation activation, bool in_place, bool with_out) {
  return {StrCat("glu_backward/", ActivationName(activation), ",t=", rows, ",f=", width, in_place ? ",in_place" : "",
                 with_out ? ",out" : ""),
          [=](CaseTensors& t) {
            const Tensor d_out = t.Random(t.act(), rows, width, 1, 16);
            const Tensor gate_up = t.Random(t.act(), rows, 2 * width, 3, 16);
            const Tensor d_gate_up = in_place ? gate_up : t.Output(t.act(), rows, 2 * width, 16);
            const Tensor out = with_out ? t.Output(t.act(), rows, width, 32) : Tensor{};
            return PreparedCase{[=](Ops& ops) { ops.GluBackward(d_out, gate_up, activation, d_gate_up, out); },
                                [=](CaseTensors& c) {
                                  Matrix<double> exact(rows, 2 * width), forward(rows, width);
                                  reference::GluBackward(c.MatrixBefore(d_out), c.MatrixBefore(gate_up), activation,
                                                         exact);
                                  c.Expect("d_gate_up", d_gate_up, exact.values, kGradient);
                                  if (!with_out) return;
                                  reference::Glu(c.MatrixBefore(gate_up), activation, forward);
                                  c.Expect("out", out, forward.values);
                                },
                                0, static_cast<double>((with_out ? 6 : 5) * rows * width * BlockBytes(d_out.dtype))};
          }};
}

void AddBlockCases(std::vector<OpCase>& cases) {
  cases.push_back(RopeToCacheCase(1, 4, 2, 64, 9));
  cases.push_back(RopeToCacheCase(5, 3, 3, 6, 11));
  cases.push_back(RopeToCacheCase(40, 32, 8, 128, 100));
  for (auto [rows, width, groups] :
       {std::array<int64_t, 3>{1, 3, 1}, {7, 33, 1}, {5, 100, 3}, {13, 64, 9}, {67, 576, 1}, {3, 2048, 1}}) {
    cases.push_back(RmsNormCase(rows, width, groups, false));
    cases.push_back(RmsNormCase(rows, width, groups, true));
    cases.push_back(RmsNormBackwardCase(rows, width, groups, 0));
    cases.push_back(RmsNormBackwardCase(rows, width, groups, 1));
  }
  cases.push_back(RopeTableCase(5, 6));
  cases.push_back(RopeTableCase(100, 64));
  for (RopeDirection direction : {RopeDirection::kForward, RopeDirection::kBackward}) {
    cases.push_back(RopeCase(3, 2, 6, direction));
    cases.push_back(RopeCase(70, 9, 64, direction));
    cases.push_back(RopeCase(5, 3, 80, direction));
  }
  for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    for (auto [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {5, 37}, {33, 1536}}) {
      cases.push_back(GluCase(rows, width, activation));
      cases.push_back(GluBackwardCase(rows, width, activation, false));
      cases.push_back(GluBackwardCase(rows, width, activation, true));
      if (width == 1) continue;  // one value says little of an error's mean
      cases.push_back(GluBackwardCase(rows, width, activation, false, true));
      cases.push_back(GluBackwardCase(rows, width, activation, true, true));
    }
  }
}

}  // namespace hone
