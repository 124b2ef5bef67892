// Matrix products and the small row operations beside them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels/reference/decode.h"
#include "kernels/reference/matmul.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {

namespace {

// fp32 sums err by about the square root of their length.
Bound BoundFor(int64_t k) { return {std::max(kUsual.nmse, 5e-16 * static_cast<double>(k)), kUsual.bf16_factor}; }

}  // namespace

OpCase MatmulCase(const MatmulShape& s) {
  const std::string name =
      StrCat("matmul/", s.ta == Transpose::kYes ? "t" : "n", s.tb == Transpose::kYes ? "t" : "n", ",m=", s.m,
             ",n=", s.n, ",k=", s.k, ",alpha=", s.alpha, ",beta=", s.beta, s.fp32_out ? ",to_f32" : "");
  return {name, [=](CaseTensors& t) {
            const bool ta = s.ta == Transpose::kYes, tb = s.tb == Transpose::kYes;
            const Tensor a = ta ? t.Random(t.act(), s.k, s.m, 1, 16) : t.Random(t.act(), s.m, s.k, 1, 16);
            const Tensor b = tb ? t.Random(t.act(), s.n, s.k, 0.1, 8) : t.Random(t.act(), s.k, s.n, 0.1, 8);
            const DType out = s.fp32_out ? DType::kF32 : t.act();
            const Tensor c = s.beta == 0 ? t.Output(out, s.m, s.n, 8) : t.Random(out, s.m, s.n, 1, 8);
            return PreparedCase{[=](Ops& ops) { ops.Matmul(a, s.ta, b, s.tb, c, s.alpha, s.beta); },
                                [=](CaseTensors& tensors) {
                                  auto exact = tensors.MatrixBefore(c);
                                  reference::Matmul(tensors.MatrixBefore(a), s.ta, tensors.MatrixBefore(b), s.tb, exact,
                                                    s.alpha, s.beta);
                                  tensors.Expect("c", c, exact.values, BoundFor(s.k));
                                },
                                2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k),
                                0};
          }};
}

OpCase WeightMatmulCase(const WeightMatmulShape& s) {
  std::string rows;
  for (int64_t n : s.n) rows += StrCat(rows.empty() ? "" : "+", n);
  const char* addend_name = s.addend == Addend::kNone ? "" : s.addend == Addend::kApart ? ",add" : ",add_in_place";
  const std::string name = StrCat("weight_matmul/", DTypeName(s.stored), s.nested ? "" : "_plain", ",m=", s.m,
                                  ",n=", rows, ",k=", s.k, addend_name, s.fp32_out ? ",to_f32" : "", ",gap=", s.gap);
  return {name, [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), s.m, s.k, 1, s.gap);
            std::vector<WeightView> views, hosts;
            int64_t all = 0;
            for (int64_t n : s.n) {
              const CaseTensors::Weight w = t.RandomWeight(s.stored, n, s.k, s.nested);
              views.push_back(w.device), hosts.push_back(w.host);
              all += n;
            }
            const DType out = s.fp32_out ? DType::kF32 : t.act();
            const Tensor y = s.addend == Addend::kInPlace ? t.Random(out, s.m, all, 1, 8) : t.Output(out, s.m, all, 8);
            const Tensor addend = s.addend == Addend::kNone      ? Tensor{}
                                  : s.addend == Addend::kInPlace ? y
                                                                 : t.Random(out, s.m, all, 1, 3);
            const bool half = t.act() == DType::kBF16;
            return PreparedCase{[=](Ops& ops) { ops.WeightMatmul(x, views, y, addend); },
                                [=](CaseTensors& tensors) {
                                  reference::Matrix<double> exact(s.m, all);
                                  if (!addend.empty()) exact = tensors.MatrixBefore(addend);
                                  reference::Matrix<double> weight(all, s.k);
                                  size_t at = 0;
                                  for (const WeightView& host : hosts) {
                                    for (int64_t i = 0; i < host.rows * s.k; ++i) {
                                      weight.values[at++] = reference::DecodeElement(host, i);
                                    }
                                  }
                                  auto rounded = exact;
                                  const auto before = tensors.MatrixBefore(x);
                                  const float beta = addend.empty() ? 0 : 1;
                                  reference::Matmul(before, Transpose::kNo, weight, Transpose::kYes, exact, 1.0f, beta);
                                  if (half) {
                                    for (double& v : weight.values) v = reference::RoundToBf16(static_cast<float>(v));
                                  }
                                  reference::Matmul(before, Transpose::kNo, weight, Transpose::kYes, rounded, 1.0f,
                                                    beta);
                                  if (out == DType::kBF16) {
                                    for (double& v : rounded.values) v = reference::RoundToBf16(static_cast<float>(v));
                                  }
                                  // A bf16 weight's rounding shows in an fp32 result too: (2^-9)^2 / 3, twice the norm
                                  // of it allowed.
                                  const Bound bound = half && s.fp32_out ? Bound{5.1e-6, 2} : kUsual;
                                  tensors.Expect("y", y, exact.values, rounded.values, bound);
                                },
                                2.0 * static_cast<double>(s.m * all * s.k), 0};
          }};
}

namespace {

// c <- alpha op(a) op(b) + addend, which lies elsewhere with a pitch of its own.
OpCase MatmulAddCase(const MatmulShape& s) {
  const std::string name = StrCat("matmul_add/", s.ta == Transpose::kYes ? "t" : "n",
                                  s.tb == Transpose::kYes ? "t" : "n", ",m=", s.m, ",n=", s.n, ",k=", s.k);
  return {name, [=](CaseTensors& t) {
            const Tensor a =
                s.ta == Transpose::kYes ? t.Random(t.act(), s.k, s.m, 1, 16) : t.Random(t.act(), s.m, s.k, 1, 16);
            const Tensor b =
                s.tb == Transpose::kYes ? t.Random(t.act(), s.n, s.k, 0.1, 8) : t.Random(t.act(), s.k, s.n, 0.1, 8);
            const Tensor addend = t.Random(t.act(), s.m, s.n, 1, 24), c = t.Output(t.act(), s.m, s.n, 8);
            return PreparedCase{
                [=](Ops& ops) { ops.MatmulAdd(a, s.ta, b, s.tb, addend, c, s.alpha); },
                [=](CaseTensors& tensors) {
                  auto exact = tensors.MatrixBefore(addend);
                  reference::Matmul(tensors.MatrixBefore(a), s.ta, tensors.MatrixBefore(b), s.tb, exact, s.alpha, 1.0);
                  tensors.Expect("c", c, exact.values, BoundFor(s.k));
                },
                2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k), 0};
          }};
}

struct AugmentedPart {
  DType stored;
  int64_t rows, rank, column;  // rank 0: no adapter
};

// W' of a linear group: parts above one another, B in its columns, zeros, A's rows; the corner below B is left alone.
OpCase AugmentCase(const std::string& name, const std::vector<AugmentedPart>& parts, int64_t k, int64_t a_rows,
                   int64_t spare, bool nested = true) {
  return {"augment/" + name, [=](CaseTensors& t) {
            std::vector<AugmentPart> views;
            std::vector<WeightView> host;
            int64_t n = 0;
            for (const AugmentedPart& part : parts) {
              const auto weight = t.RandomWeight(part.stored, part.rows, k, nested);
              const Tensor b = part.rank == 0 ? Tensor{} : t.Random(DType::kF32, part.rows, part.rank);
              views.push_back({weight.device, b, part.column});
              host.push_back(weight.host);
              n += part.rows;
            }
            const Tensor a = a_rows == 0 ? Tensor{} : t.Random(DType::kF32, a_rows, k);
            const Tensor out = t.Output(t.act(), n + spare, k + spare, 8);
            const auto check = [=](CaseTensors& c) {
              const int64_t width = k + spare;
              Values exact(static_cast<size_t>((n + spare) * width), 0);
              int64_t row = 0;
              for (size_t i = 0; i < host.size(); ++i) {
                const Values b = views[i].b.empty() ? Values() : c.Before(views[i].b);
                for (int64_t r = 0; r < host[i].rows; ++r, ++row) {
                  for (int64_t j = 0; j < k; ++j) {
                    exact[row * width + j] = reference::DecodeElement(host[i], r * k + j);
                  }
                  for (int64_t j = 0; j < views[i].b.cols; ++j) {
                    exact[row * width + k + views[i].column + j] = b[r * views[i].b.cols + j];
                  }
                }
              }
              const Values below = a.empty() ? Values() : c.Before(a);
              for (int64_t r = 0; r < spare; ++r, ++row) {
                for (int64_t j = 0; j < k && r < a_rows; ++j) exact[row * width + j] = below[r * k + j];
                for (int64_t j = k; j < width; ++j) exact[row * width + j] = NAN;
              }
              c.ExpectExactly("out", out, exact);
            };
            return PreparedCase{[=](Ops& ops) { ops.AugmentWeight(views, a, out); }, check, 0, 0};
          }};
}

// What AugmentWeight made gets other values of A and B; decoded columns stay.
OpCase RefreshCase(const std::string& name, const std::vector<AugmentedPart>& parts, int64_t k, int64_t a_rows,
                   int64_t spare) {
  return {"refresh_adapters/" + name, [=](CaseTensors& t) {
            std::vector<AugmentPart> views;
            int64_t n = 0;
            for (const AugmentedPart& part : parts) n += part.rows;
            Values before(static_cast<size_t>((n + spare) * (k + spare)), 0);
            for (int64_t i = 0; i < n * (k + spare); ++i) {
              if (i % (k + spare) < k) before[i] = t.Normal();
            }
            Values exact(before.size(), NAN);
            const auto fill = [&](Tensor from, int64_t row, int64_t column) {
              const Values values = t.Before(from);
              for (size_t i = 0; i < values.size(); ++i) {
                const auto at = static_cast<int64_t>(i);
                exact[(row + at / from.cols) * (k + spare) + column + at % from.cols] = values[i];
              }
            };
            int64_t row = 0;
            for (const AugmentedPart& part : parts) {
              WeightView shape;
              shape.dtype = part.stored, shape.rows = part.rows, shape.cols = k;
              const Tensor b = part.rank == 0 ? Tensor{} : t.Random(DType::kF32, part.rows, part.rank);
              views.push_back({shape, b, part.column});
              if (!b.empty()) fill(b, row, k + part.column);
              row += part.rows;
            }
            const Tensor a = t.Random(DType::kF32, a_rows, k);
            fill(a, n, 0);
            const Tensor out = t.From(t.act(), n + spare, k + spare, before, 8);
            const Tensor second = t.From(t.act(), n + spare, k + spare, before);
            return PreparedCase{[=](Ops& ops) {
                                  const AdapterRefresh weights[] = {{views, a, out}, {views, a, second}};
                                  ops.RefreshAdapters(weights);
                                },
                                [=](CaseTensors& c) {
                                  c.ExpectExactly("out", out, exact);
                                  c.ExpectExactly("second", second, exact);
                                },
                                0, 0};
          }};
}

void AddAugmentCases(std::vector<OpCase>& cases) {
  for (DType stored : {DType::kNf4, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kBF16, DType::kF16, DType::kF32}) {
    cases.push_back(AugmentCase(StrCat(DTypeName(stored), ",one"), {{stored, 40, 16, 0}}, 192, 16, 64));
    cases.push_back(AugmentCase(StrCat(DTypeName(stored), ",three"),
                                {{stored, 64, 8, 0}, {stored, 24, 0, 0}, {stored, 24, 16, 8}}, 64, 24, 64));
    cases.push_back(
        AugmentCase(StrCat(DTypeName(stored), ",wide"), {{stored, 300, 16, 0}, {stored, 300, 16, 16}}, 576, 32, 64));
  }
  cases.push_back(
      AugmentCase("nf4,plain_scales", {{DType::kNf4, 64, 4, 0}, {DType::kNf4, 32, 4, 4}}, 128, 8, 64, false));
  cases.push_back(
      AugmentCase("mixed", {{DType::kQ4_0, 33, 8, 0}, {DType::kQ8_0, 17, 8, 8}, {DType::kF16, 5, 0, 0}}, 96, 16, 64));
  cases.push_back(AugmentCase("no_adapter", {{DType::kQ4_1, 33, 0, 0}, {DType::kQ4_1, 9, 0, 0}}, 96, 0, 0));
  cases.push_back(AugmentCase("off", {{DType::kNf4, 33, 0, 0}}, 128, 0, 64));
  cases.push_back(RefreshCase("one", {{DType::kNf4, 40, 16, 0}}, 192, 16, 64));
  cases.push_back(
      RefreshCase("three", {{DType::kQ8_0, 64, 8, 0}, {DType::kNf4, 24, 0, 0}, {DType::kF16, 24, 16, 8}}, 64, 24, 64));
  cases.push_back(RefreshCase("narrow", {{DType::kBF16, 7, 3, 0}, {DType::kBF16, 6, 3, 3}}, 33, 6, 16));
  cases.push_back(AugmentCase("narrow", {{DType::kBF16, 7, 3, 0}, {DType::kBF16, 6, 3, 3}}, 33, 6, 16));
}

}  // namespace

// The same bits as the two operations that it joins, which have cases of their own.
OpCase WeightMatmulGluCase(DType stored, int64_t m, int64_t n, int64_t k, Activation activation) {
  const char* name = activation == Activation::kSilu ? ",silu" : ",gelu";
  return {StrCat("weight_matmul_glu/", DTypeName(stored), ",m=", m, ",n=", n, ",k=", k, name), [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), m, k, 1, 8);
            const WeightView gate = t.RandomWeight(stored, n, k).device, up = t.RandomWeight(stored, n, k).device;
            const std::vector<WeightView> weights = {gate, up};
            const Tensor scratch = t.Output(t.act(), m, 2 * n);
            const Tensor apart = t.Output(t.act(), m, n), out = t.Output(t.act(), m, n, 24);
            const auto bytes = std::make_shared<std::vector<uint8_t>>(m * n * BlockBytes(t.act()));
            return PreparedCase{[=](Ops& ops) {
                                  ops.WeightMatmul(x, weights, scratch);
                                  ops.Glu(scratch, activation, apart);
                                  ops.WeightMatmulGlu(x, weights, activation, scratch, out);
                                  ops.Download(apart, bytes->data());
                                },
                                [=](CaseTensors& c) {
                                  const auto wanted = [&](size_t i) -> double {
                                    if (apart.dtype == DType::kBF16) return reference::Bf16Value(bytes->data() + 2 * i);
                                    float value;
                                    std::memcpy(&value, bytes->data() + 4 * i, 4);
                                    return value;
                                  };
                                  c.ExpectEach("scratch", scratch, [](size_t, double) { return true; });
                                  c.ExpectEach("apart", apart, [](size_t, double got) { return std::isfinite(got); });
                                  c.ExpectEach("out", out, [&](size_t i, double got) { return got == wanted(i); });
                                },
                                4.0 * static_cast<double>(m * n * k), 0};
          }};
}

OpCase AddCase(int64_t rows, int64_t cols) {
  return {StrCat("add/", rows, "x", cols), [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), rows, cols, 1, 3), y = t.Random(t.act(), rows, cols, 1, 5);
            return PreparedCase{[=](Ops& ops) { ops.Add(x, y); },
                                [=](CaseTensors& c) {
                                  Values exact = c.Before(y);
                                  const Values added = c.Before(x);
                                  for (size_t i = 0; i < exact.size(); ++i) exact[i] += added[i];
                                  c.Expect("y", y, exact, kTight);
                                },
                                0, static_cast<double>(3 * rows * cols * BlockBytes(x.dtype))};
          }};
}

OpCase AddBiasCase(int64_t rows, int64_t cols, bool fp32_bias) {
  return {StrCat("add_bias/", rows, "x", cols, fp32_bias ? ",f32" : ""), [=](CaseTensors& t) {
            const Tensor bias = t.Random(fp32_bias ? DType::kF32 : t.act(), 1, cols),
                         y = t.Random(t.act(), rows, cols, 1, 5);
            return PreparedCase{[=](Ops& ops) { ops.AddBias(bias, y); },
                                [=](CaseTensors& c) {
                                  Values exact = c.Before(y);
                                  const Values added = c.Before(bias);
                                  for (size_t i = 0; i < exact.size(); ++i) exact[i] += added[i % added.size()];
                                  c.Expect("y", y, exact, kTight);
                                },
                                0, static_cast<double>(2 * rows * cols * BlockBytes(y.dtype))};
          }};
}

OpCase ScaleRowsCase(int64_t rows, int64_t cols) {
  return {StrCat("scale_rows/", rows, "x", cols), [=](CaseTensors& t) {
            const Tensor x = t.Random(t.act(), rows, cols, 1, 3), factors = t.Random(DType::kF32, 1, rows);
            return PreparedCase{[=](Ops& ops) { ops.ScaleRows(x, factors); },
                                [=](CaseTensors& c) {
                                  auto exact = c.MatrixBefore(x);
                                  const Values f = c.Before(factors);
                                  for (int64_t r = 0; r < rows; ++r) {
                                    for (int64_t j = 0; j < cols; ++j) exact(r, j) *= f[r];
                                  }
                                  c.Expect("x", x, exact.values, kTight);
                                },
                                0, static_cast<double>(2 * rows * cols * BlockBytes(x.dtype))};
          }};
}

void AddLinearCases(std::vector<OpCase>& cases) {
  const Transpose no = Transpose::kNo, yes = Transpose::kYes;
  struct Size {
    int64_t m, n, k;
  };
  const Size sizes[] = {{1, 1, 1}, {1, 37, 64}, {5, 3, 17}, {17, 33, 129}, {64, 16, 96}, {97, 130, 63}, {130, 66, 300}};
  for (Transpose ta : {no, yes}) {
    for (Transpose tb : {no, yes}) {
      for (const Size& s : sizes) cases.push_back(MatmulCase({s.m, s.n, s.k, ta, tb}));
    }
  }
  cases.push_back(MatmulCase({33, 48, 80, no, yes, 0.5f, 1}));
  cases.push_back(MatmulCase({1, 48, 80, no, yes, 2, 1}));
  cases.push_back(MatmulCase({1, 48, 80, no, yes, 1, 0.25f}));
  cases.push_back(MatmulCase({16, 200, 257, yes, no, 2, 0.5f}));
  cases.push_back(MatmulCase({40, 24, 72, no, no, -1, 1}));
  cases.push_back(MatmulCase({31, 65, 40, no, yes, 1, 0, true}));
  cases.push_back(MatmulCase({16, 64, 127, yes, no, 1, 1, true}));  // an adapter's gradient, accumulated
  cases.push_back(MatmulCase({320, 256, 576, no, yes}));
  cases.push_back(MatmulCase({1, 1536, 576, no, yes}));
  for (int64_t rank : {8, 16, 32, 48, 64}) {  // an adapter's products
    cases.push_back(MatmulCase({101, rank, 192, no, yes, 2}));
    cases.push_back(MatmulCase({101, rank, 200, no, no, 2}));
    cases.push_back(MatmulCase({200, rank, 101, yes, no, 1, 1}));
    cases.push_back(MatmulCase({rank, 208, 101, yes, no, 1, 1}));
  }
  for (int64_t sum_r : {96, 128, 192}) {
    cases.push_back(MatmulCase({101, sum_r, 1096, no, yes, 2}));
    cases.push_back(MatmulCase({101, sum_r, 2056, no, no, 2}));
    cases.push_back(MatmulCase({sum_r, 264, 600, yes, no, 1, 1, true}));
  }
  cases.push_back(MatmulCase({70, 64, 8256, no, yes, 2}));  // eight pieces of k
  cases.push_back(MatmulCase({200, 64, 4160, no, no, 0.5f, 1}));
  cases.push_back(MatmulCase({16, 520, 1025, yes, no, 1, 1, true}));
  cases.push_back(MatmulCase({520, 16, 1025, yes, no, 1, 1, true}));
  cases.push_back(MatmulCase({32, 1000, 515, yes, no, 2, 0, true}));
  for (const MatmulShape& s :
       {MatmulShape{33, 256, 192, no, yes, 1}, MatmulShape{64, 520, 328, no, no, 0.5f},
        MatmulShape{9, 16, 64, no, yes, 2}, MatmulShape{5, 7, 3, no, no, 1}, MatmulShape{17, 24, 0, no, yes, 1}}) {
    cases.push_back(MatmulAddCase(s));
  }
  AddAugmentCases(cases);
  cases.push_back(MatmulCase({97, 768, 200, no, no}));
  cases.push_back(MatmulCase({16, 592, 640, yes, no}));
  for (DType stored : {DType::kF32, DType::kF16, DType::kBF16, DType::kNf4, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 1, .n = {67}, .k = 512}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 8, .n = {32}, .k = 576, .addend = Addend::kInPlace}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 13, .n = {48}, .k = 256, .fp32_out = true}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 31, .n = {37}, .k = 1024, .addend = Addend::kApart}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 64, .n = {96}, .k = 768}));
    // Several weights: whole tiles, and what no tile divides.
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 1, .n = {96, 32, 64}, .k = 1024}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 37, .n = {64, 32}, .k = 512, .addend = Addend::kApart}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 12, .n = {48, 16, 16}, .k = 576}));
    cases.push_back(WeightMatmulCase(
        {.stored = stored, .m = 2, .n = {19, 40}, .k = 256, .addend = Addend::kInPlace, .fp32_out = true}));
    cases.push_back(WeightMatmulCase({.stored = stored, .m = 3, .n = {19}, .k = 96, .gap = 5}));  // rows off 16 bytes
  }
  for (DType stored : {DType::kNf4, DType::kBF16, DType::kQ8_0}) {
    cases.push_back(WeightMatmulGluCase(stored, 1, 64, 1024, Activation::kSilu));
    cases.push_back(WeightMatmulGluCase(stored, 11, 40, 512, Activation::kSilu));
    cases.push_back(WeightMatmulGluCase(stored, 45, 72, 256, Activation::kSilu));  // tiles that are not whole
    cases.push_back(WeightMatmulGluCase(stored, 3, 33, 256, Activation::kSilu));
    cases.push_back(WeightMatmulGluCase(stored, 3, 32, 576, Activation::kSilu));
  }
  cases.push_back(WeightMatmulGluCase(DType::kNf4, 2, 32, 512, Activation::kGelu));
  cases.push_back(WeightMatmulCase({.stored = DType::kNf4, .m = 5, .n = {33}, .k = 512, .nested = false}));
  cases.push_back(WeightMatmulCase({.stored = DType::kNf4, .m = 2, .n = {17}, .k = 94}));  // blocks that cross rows
  cases.push_back(WeightMatmulCase({.stored = DType::kNf4, .m = 4, .n = {6}, .k = 33}));   // rows from the low nibble
  cases.push_back(WeightMatmulCase({.stored = DType::kBF16, .m = 4, .n = {7}, .k = 77}));
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 33}, {65, 576}}) {
    cases.push_back(AddCase(rows, cols));
    cases.push_back(AddBiasCase(rows, cols, false));
    cases.push_back(AddBiasCase(rows, cols, true));
    cases.push_back(ScaleRowsCase(rows, cols));
  }
}

}  // namespace hone
