// Matrix products and the small row operations beside them.
#include "kernels/reference/matmul.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {

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
                                  tensors.Expect("c", c, exact.values);
                                },
                                2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k),
                                0};
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
  cases.push_back(MatmulCase({97, 768, 200, no, no}));
  cases.push_back(MatmulCase({16, 592, 640, yes, no}));
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 33}, {65, 576}}) {
    cases.push_back(AddCase(rows, cols));
    cases.push_back(AddBiasCase(rows, cols, false));
    cases.push_back(AddBiasCase(rows, cols, true));
    cases.push_back(ScaleRowsCase(rows, cols));
  }
}

}  // namespace hone
