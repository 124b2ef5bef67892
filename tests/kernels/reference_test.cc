// The references themselves: forward values against small hand-checked facts, backward passes against derivatives by
// complex step (exact to rounding), decoding against golden values of bitsandbytes and gguf.
#include <gtest/gtest.h>

#include <complex>
#include <random>

#include "kernels/reference/attention.h"
#include "kernels/reference/glu.h"
#include "kernels/reference/head.h"
#include "kernels/reference/matmul.h"
#include "kernels/reference/norm.h"
#include "kernels/reference/optim.h"
#include "kernels/reference/rope.h"

namespace hone::reference {
namespace {

using Complex = std::complex<double>;
constexpr double kStep = 1e-100;

Matrix<double> Random(int64_t rows, int64_t cols, unsigned seed, double scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  Matrix<double> m(rows, cols);
  for (double& v : m.values) v = normal(generator);
  return m;
}

Matrix<Complex> Lift(const Matrix<double>& m) { return Matrix<Complex>(m.rows, m.cols, m.values); }

// loss(x) is a scalar of a complex matrix; its gradient is compared with `gradient` element by element.
template <typename Loss>
void ExpectGradient(const Matrix<double>& x, const Matrix<double>& gradient, Loss loss) {
  double scale = 1e-12;
  for (double g : gradient.values) scale = std::max(scale, std::abs(g));
  for (size_t i = 0; i < x.values.size(); ++i) {
    Matrix<Complex> moved = Lift(x);
    moved.values[i] += Complex(0, kStep);
    EXPECT_NEAR(std::imag(loss(moved)) / kStep, gradient.values[i], 1e-11 * scale) << "element " << i;
  }
}

Complex WeightedSum(const Matrix<Complex>& m, const Matrix<double>& weights) {
  Complex sum = 0;
  for (size_t i = 0; i < m.values.size(); ++i) sum += m.values[i] * weights.values[i];
  return sum;
}

TEST(Reference, MatmulTransposesAreOneProduct) {
  const Matrix<double> a = Random(3, 4, 1), b = Random(4, 5, 2);
  Matrix<double> c(3, 5, 7), d(3, 5, 7);
  Matmul(a, Transpose::kNo, b, Transpose::kNo, c, 2, 0.5);
  Matmul(Transposed(a), Transpose::kYes, Transposed(b), Transpose::kYes, d, 2, 0.5);
  EXPECT_EQ(c.values, d.values);
  double sum = 3.5;
  for (int64_t k = 0; k < 4; ++k) sum += 2 * a(1, k) * b(k, 2);
  EXPECT_NEAR(c(1, 2), sum, 1e-14);
}

TEST(Reference, RmsNormBackward) {
  const Matrix<double> x = Random(3, 10, 1, 2), dy = Random(3, 10, 2), w = Random(1, 5, 3);
  Matrix<double> y(3, 10), rstd(3, 2), dx = Random(3, 10, 4);
  RmsNorm(x, w.values, 1e-5, y, rstd);
  const Matrix<double> before = dx;
  RmsNormBackward(dy, x, w.values, rstd, dx, 1);
  for (size_t i = 0; i < dx.values.size(); ++i) dx.values[i] -= before.values[i];
  ExpectGradient(x, dx, [&](const Matrix<Complex>& z) {
    Matrix<Complex> out(3, 10), r(3, 2);
    RmsNorm(z, Lift(w).values, 1e-5, out, r);
    return WeightedSum(out, dy);
  });
}

TEST(Reference, RopeRotatesBackAndIsItsOwnTranspose) {
  const Matrix<double> x = Random(4, 12, 1), dy = Random(4, 12, 2);
  Matrix<double> cos(4, 3), sin(4, 3);
  RopeTable({0, 1, 5, 100}, {1.0f, 0.1f, 0.01f}, 1, cos, sin);
  EXPECT_EQ(cos(0, 1), 1);
  EXPECT_NEAR(sin(2, 1), std::sin(0.5), 1e-7);
  Matrix<double> dx = dy;
  Rope(dx, 6, cos, sin, RopeDirection::kBackward);
  ExpectGradient(x, dx, [&](Matrix<Complex> z) {
    Rope(z, 6, Lift(cos), Lift(sin), RopeDirection::kForward);
    return WeightedSum(z, dy);
  });
}

TEST(Reference, GluBackward) {
  for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    const Matrix<double> x = Random(2, 14, 1, 2), d_out = Random(2, 7, 2);
    Matrix<double> dx(2, 14);
    GluBackward(d_out, x, activation, dx);
    ExpectGradient(x, dx, [&](const Matrix<Complex>& z) {
      Matrix<Complex> out(2, 7);
      Glu(z, activation, out);
      return WeightedSum(out, d_out);
    });
  }
  EXPECT_NEAR(Activate(Activation::kGelu, 1.0), 0.8413447460685429, 1e-15);      // the normal distribution at one sigma
  EXPECT_NEAR(Activate(Activation::kSilu, 1.0), 0.7310585786300049, 1e-15);      // 1 / (1 + 1/e)
  EXPECT_NEAR(Activate(Activation::kGeluTanh, 1.0), 0.8411919906082768, 1e-12);  // torch's tanh approximation
}

void CheckAttentionBackward(const AttentionShape& shape, const std::vector<Segment>& segments, int64_t rows) {
  const int64_t d = shape.head_dim;
  const Matrix<double> q = Random(rows, shape.heads * d, 1), k = Random(rows, shape.kv_heads * d, 2);
  const Matrix<double> v = Random(rows, shape.kv_heads * d, 3), d_out = Random(rows, shape.heads * d, 4);
  Matrix<double> out(q.rows, q.cols), lse(q.rows, shape.heads), dq(q.rows, q.cols), dk(k.rows, k.cols),
      dv(k.rows, k.cols);
  Attention(q, k, v, segments, shape, out, lse);
  AttentionBackward(d_out, q, k, v, out, lse, segments, shape, dq, dk, dv);
  const auto loss = [&](const Matrix<Complex>& zq, const Matrix<Complex>& zk, const Matrix<Complex>& zv) {
    Matrix<Complex> z(q.rows, q.cols), l(q.rows, shape.heads);
    Attention(zq, zk, zv, segments, shape, z, l);
    return WeightedSum(z, d_out);
  };
  ExpectGradient(q, dq, [&](const Matrix<Complex>& z) { return loss(z, Lift(k), Lift(v)); });
  ExpectGradient(k, dk, [&](const Matrix<Complex>& z) { return loss(Lift(q), z, Lift(v)); });
  ExpectGradient(v, dv, [&](const Matrix<Complex>& z) { return loss(Lift(q), Lift(k), z); });
}

TEST(Reference, AttentionBackward) {
  const std::vector<Segment> documents = {{0, 4, 0, 4, 0, 0}, {4, 3, 4, 3, 0, 0}};
  const std::vector<Segment> shared = {{0, 3, 0, 3, 0, 0}, {3, 2, 3, 2, 0, 3}, {5, 2, 5, 2, 0, 3}};
  CheckAttentionBackward({4, 2, 3, 0.6f, 0, 0}, documents, 8);
  CheckAttentionBackward({2, 1, 3, 0.6f, 0, 0}, shared, 7);
  CheckAttentionBackward({2, 1, 3, 0.6f, 2.5f, 0}, documents, 7);
  CheckAttentionBackward({2, 2, 3, 0.6f, 2.5f, 3}, shared, 7);
}

TEST(Reference, AttentionSeesWhatItShould) {
  EXPECT_EQ(VisibleRows({0, 3, 0, 3, 0, 0}, 1, 0), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(VisibleRows({7, 2, 10, 5, 2, 3}, 0, 0), (std::vector<int64_t>{2, 3, 4, 10, 11, 12, 13}));
  EXPECT_EQ(VisibleRows({7, 2, 10, 5, 2, 3}, 0, 5), (std::vector<int64_t>{4, 10, 11, 12, 13}));
  EXPECT_EQ(VisibleRows({0, 3, 0, 3, 0, 0}, 2, 1), (std::vector<int64_t>{2}));
}

TEST(Reference, LogProbGradient) {
  const Matrix<double> logits = Random(3, 6, 1, 3);
  const std::vector<int32_t> targets = {5, 0, 2};
  const Matrix<double> ones(1, 3, 1);
  for (LogitTransform transform : {LogitTransform{}, LogitTransform{0.5f, 0}, LogitTransform{0.7f, 4}}) {
    ExpectGradient(logits, LogProbUnitGradient(logits, targets, transform), [&](const Matrix<Complex>& z) {
      Complex sum = 0;
      for (const Complex& p : LogProb(z, targets, transform)) sum += p;
      return sum;
    });
  }
  EXPECT_NEAR(LogProb(Matrix<double>(1, 4, 3.0), {1}, {})[0], -std::log(4), 1e-15);
}

// Two steps of torch.optim.AdamW in float64([1.0, -2.0], lr 0.1, weight_decay 0.01) with gradients (0.5, -1), then
// (0.25, 2).
TEST(Reference, AdamWIsPyTorchs) {
  std::vector<double> p = {1, -2}, m = {0, 0}, v = {0, 0};
  const AdamWConstants constants{0.9f, 0.999f, 1e-8f, 0.01f};
  for (int t = 1; t <= 2; ++t) {
    const StepParams step{0.1f, static_cast<float>(1 - std::pow(0.9, t)), static_cast<float>(1 - std::pow(0.999, t)),
                          0};
    AdamW(p, t == 1 ? std::vector<double>{0.5, -1} : std::vector<double>{0.25, 2}, m, v, 0.0, step, constants);
  }
  EXPECT_NEAR(p[0], 0.8048830404754623, 2e-6);
  EXPECT_NEAR(p[1], -1.9327123534710748, 2e-6);
}

TEST(Reference, AdamWClipsByTheGlobalNorm) {
  std::vector<double> p = {0}, m = {0}, v = {0};
  AdamW(p, {3.0}, m, v, 25.0, {0.1f, 1, 1, 1}, {0.9f, 0.999f, 1e-8f, 0});
  EXPECT_NEAR(m[0], 0.1 * 3 / 5, 1e-6);
}

}  // namespace
}  // namespace hone::reference
