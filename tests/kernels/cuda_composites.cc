#include "tests/kernels/cuda_composites.h"

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "kernels/arena.h"
#include "kernels/cuda/cuda_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr Transpose kN = Transpose::kNo, kT = Transpose::kYes;

float RoundBf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return x;
  bits += 0x7fffu + (bits >> 16 & 1);
  bits &= 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

// A host matrix in double. `Rounded` is what the back end's activation dtype keeps of it.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> v;
  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), cols(c), v(static_cast<size_t>(r * c)) {}
  double& At(int64_t i, int64_t j) { return v[static_cast<size_t>(i * cols + j)]; }
  double At(int64_t i, int64_t j) const { return v[static_cast<size_t>(i * cols + j)]; }
};

Matrix Rounded(Matrix m, DType dtype) {
  for (double& x : m.v) {
    const float f = static_cast<float>(x);
    x = dtype == DType::kBF16 ? RoundBf16(f) : f;
  }
  return m;
}

// alpha * op(a) op(b) in double.
Matrix Product(const Matrix& a, Transpose ta, const Matrix& b, Transpose tb, double alpha = 1) {
  const int64_t m = ta == kN ? a.rows : a.cols, k = ta == kN ? a.cols : a.rows, n = tb == kN ? b.cols : b.rows;
  Matrix c(m, n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p)
        sum += (ta == kN ? a.At(i, p) : a.At(p, i)) * (tb == kN ? b.At(p, j) : b.At(j, p));
      c.At(i, j) = alpha * sum;
    }
  }
  return c;
}

Matrix Plus(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] += b.v[i];
  return a;
}

double RelativeError(const Matrix& got, const Matrix& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.v.size(); ++i) {
    error += (got.v[i] - want.v[i]) * (got.v[i] - want.v[i]);
    norm += want.v[i] * want.v[i];
  }
  return std::sqrt(error / norm);  // NaN if got holds one
}

class Rig {
 public:
  explicit Rig(Backend& backend) : ops(backend.ops()), act(backend.ops().activation_dtype()) {
    auto block = backend.Reserve(uint64_t{256} << 20);
    HONE_CHECK(block.ok(), block.status().message());
    block_ = *std::move(block);
    arena_ = std::make_unique<Arena>("composites", block_->data(), block_->size());
    // Poison: an unwritten output is NaN.
    const Tensor all = arena_->AllocateTensor(DType::kF32, 1, static_cast<int64_t>(block_->size() / 4));
    ops.Fill(all, std::nanf(""));
    arena_->Release(0);
  }

  Tensor New(DType dtype, int64_t rows, int64_t cols, int64_t pitch = 0) {
    return arena_->AllocateTensor(dtype, rows, cols, pitch);
  }
  Tensor Put(const Matrix& m, DType dtype, int64_t pitch = 0) {
    std::vector<float> host(m.v.begin(), m.v.end());
    const Tensor dense = New(DType::kF32, m.rows, m.cols), out = New(dtype, m.rows, m.cols, pitch);
    ops.Upload(host.data(), dense);
    ops.Copy(dense, out);
    ops.Synchronize();
    return out;
  }
  template <typename T>
  Tensor PutRaw(const std::vector<T>& values, DType dtype, int64_t rows, int64_t cols) {
    const Tensor out = New(dtype, rows, cols);
    ops.Upload(values.data(), out);
    ops.Synchronize();
    return out;
  }
  Matrix Get(Tensor t) {
    const Tensor dense = New(DType::kF32, t.rows, t.cols);
    ops.Copy(t, dense);
    std::vector<float> host(static_cast<size_t>(t.elements()));
    ops.Download(dense, host.data());
    Matrix m(t.rows, t.cols);
    m.v.assign(host.begin(), host.end());
    return m;
  }
  Matrix Random(int64_t rows, int64_t cols, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    Matrix m(rows, cols);
    for (double& x : m.v) x = normal(rng);
    return m;
  }

  // fp32: error at most 1e-6 relative. bf16: at most `factor` times the error of the reference rounded where operations
  // round.
  CompositeResult Judge(std::string name, const Matrix& got, const Matrix& exact, const Matrix& rounded,
                        double factor) const {
    const double error = RelativeError(got, exact);
    const double bound = act == DType::kF32 ? 1e-6 : factor * RelativeError(rounded, exact);
    char detail[96];
    std::snprintf(detail, sizeof(detail), "error %.3g, bound %.3g", error, bound);
    return {std::move(name), error <= bound, detail};
  }

  Ops& ops;
  DType act;
  std::mt19937_64 rng{7};

 private:
  std::unique_ptr<MemoryBlock> block_;
  std::unique_ptr<Arena> arena_;
};

constexpr double kNf4[16] = {-1.0,
                             -0.6961928009986877,
                             -0.5250730514526367,
                             -0.39491748809814453,
                             -0.28444138169288635,
                             -0.18477343022823334,
                             -0.09105003625154495,
                             0.0,
                             0.07958029955625534,
                             0.16093020141124725,
                             0.24611230194568634,
                             0.33791524171829224,
                             0.44070982933044434,
                             0.5626170039176941,
                             0.7229568362236023,
                             1.0};

struct Quantised {
  WeightView view;
  Matrix values;
};

Quantised RandomNf4(Rig& rig, int64_t rows, int64_t cols) {
  const int64_t count = rows * cols, blocks = (count + kNf4BlockSize - 1) / kNf4BlockSize;
  const int64_t nested = (blocks + kNf4NestedBlockSize - 1) / kNf4NestedBlockSize;
  std::vector<uint8_t> codes(static_cast<size_t>(count / 2)), absmax(static_cast<size_t>(blocks));
  for (uint8_t& c : codes) c = static_cast<uint8_t>(rig.rng());
  for (uint8_t& c : absmax) c = static_cast<uint8_t>(rig.rng());
  std::vector<float> table(256), nested_absmax(static_cast<size_t>(nested));
  for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = static_cast<float>((i - 128) / 128.0);
  std::uniform_real_distribution<float> uniform(0.005f, 0.02f);
  for (float& x : nested_absmax) x = uniform(rig.rng);
  Quantised q;
  WeightView& w = q.view;
  w.dtype = DType::kNf4, w.rows = rows, w.cols = cols, w.nested_offset = 0.06f;
  w.data = rig.PutRaw(codes, DType::kU8, 1, count / 2).data;
  w.absmax_codes = rig.PutRaw(absmax, DType::kU8, 1, blocks).as<uint8_t>();
  w.nested_code = rig.PutRaw(table, DType::kF32, 1, 256).as<float>();
  w.nested_absmax = rig.PutRaw(nested_absmax, DType::kF32, 1, nested).as<float>();
  q.values = Matrix(rows, cols);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = i / kNf4BlockSize;
    const float product =
        table[absmax[static_cast<size_t>(block)]] * nested_absmax[static_cast<size_t>(block / kNf4NestedBlockSize)];
    const float scale = product + w.nested_offset;
    const int code = i % 2 == 0 ? codes[static_cast<size_t>(i / 2)] >> 4 : codes[static_cast<size_t>(i / 2)] & 15;
    q.values.v[static_cast<size_t>(i)] = static_cast<float>(kNf4[code]) * scale;
  }
  return q;
}

// y = x W^T + s (x A^T) B^T, dX = dY W + s (dY B) A, dA = s (dY B)^T x, dB = s dY^T (x A^T), with the scratch [W | B ;
// A] and the spare columns of x and dY as DESIGN.md lays them out.
void FoldedLinear(Rig& rig, int64_t m, int64_t n, int64_t k, int64_t r, std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  const DType act = rig.act;
  const float s = 2.0f;
  const int64_t spare = ops.AdapterColumns(r);
  const Quantised w = RandomNf4(rig, n, k);
  const Matrix x = Rounded(rig.Random(m, k), act), dy = Rounded(rig.Random(m, n), act);
  const Matrix a = Rounded(rig.Random(r, k, 0.1), DType::kF32), b = Rounded(rig.Random(n, r, 0.1), DType::kF32);

  const Tensor x_buffer = rig.New(act, m, k + spare), dy_buffer = rig.New(act, m, n + spare);
  const Tensor y = rig.New(act, m, n), dx = rig.New(act, m, k);
  const Tensor scratch = rig.New(act, n + spare, k + spare);
  const Tensor a_device = rig.Put(a, DType::kF32), b_device = rig.Put(b, DType::kF32);
  const Tensor da = rig.New(DType::kF32, r, k), db = rig.New(DType::kF32, n, r);
  const Tensor x_device = rig.Put(x, act), dy_device = rig.Put(dy, act);
  ops.Fill(scratch, 0), ops.Fill(x_buffer, 0), ops.Fill(dy_buffer, 0);
  ops.Copy(x_device, x_buffer.Cols(0, k));
  ops.Copy(dy_device, dy_buffer.Cols(0, n));

  const Tensor a_rows = scratch.Sub(n, r, 0, k), b_cols = scratch.Sub(0, n, k, r);
  ops.DecodeWeight(w.view, scratch.Sub(0, n, 0, k));
  ops.Copy(a_device, a_rows);
  ops.Copy(b_device, b_cols);
  ops.Matmul(x_buffer.Cols(0, k), kN, a_rows, kT, x_buffer.Cols(k, r), s, 0);
  ops.Matmul(x_buffer, kN, scratch.Rows(0, n), kT, y);
  ops.Matmul(dy_buffer.Cols(0, n), kN, b_cols, kN, dy_buffer.Cols(n, r), s, 0);
  ops.Matmul(dy_buffer, kN, scratch.Cols(0, k), kN, dx);
  ops.Matmul(dy_buffer.Cols(n, r), kT, x_buffer.Cols(0, k), kN, da, 1, 0);
  ops.Matmul(dy_buffer.Cols(0, n), kT, x_buffer.Cols(k, r), kN, db, 1, 0);
  const Matrix decoded = rig.Get(scratch.Sub(0, n, 0, k));

  const std::string shape = StrCat(" ", m, " x ", k, " -> ", n, ", r ", r);
  results.push_back({StrCat("folded linear: decode exact", shape), decoded.v == Rounded(w.values, act).v, ""});
  const auto reference = [&](DType rounding, Matrix out[4]) {
    const bool exact = rounding == DType::kF16;  // stands for "do not round"
    const auto round = [&](Matrix value) { return exact ? value : Rounded(std::move(value), rounding); };
    const Matrix wr = round(w.values), ar = round(a), br = round(b);
    const Matrix xa = round(Product(x, kN, ar, kT, s)), dyb = round(Product(dy, kN, br, kN, s));
    out[0] = round(Plus(Product(x, kN, wr, kT), Product(xa, kN, br, kT)));
    out[1] = round(Plus(Product(dy, kN, wr, kN), Product(dyb, kN, ar, kN)));
    out[2] = Product(dyb, kT, x, kN);
    out[3] = Product(dy, kT, xa, kN);
  };
  Matrix exact[4], rounded[4];
  reference(DType::kF16, exact);
  reference(act, rounded);
  results.push_back(rig.Judge(StrCat("folded linear: y", shape), rig.Get(y), exact[0], rounded[0], 2));
  results.push_back(rig.Judge(StrCat("folded linear: dX", shape), rig.Get(dx), exact[1], rounded[1], 3));
  results.push_back(rig.Judge(StrCat("folded linear: dA", shape), rig.Get(da), exact[2], rounded[2], 3));
  results.push_back(rig.Judge(StrCat("folded linear: dB", shape), rig.Get(db), exact[3], rounded[3], 3));
}

void HeadChunk(Rig& rig, int64_t m, int64_t hidden, int64_t vocab, LogitTransform transform,
               std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  const DType act = rig.act;
  const Matrix h = Rounded(rig.Random(m, hidden), act), w = Rounded(rig.Random(vocab, hidden, 0.2), act);
  std::vector<int32_t> targets(static_cast<size_t>(m));
  for (int32_t& t : targets) t = static_cast<int32_t>(rig.rng() % static_cast<uint64_t>(vocab));
  const Tensor logits = rig.New(act, m, vocab), log_probs = rig.New(DType::kF32, 1, m), dh = rig.New(act, m, hidden);
  const Tensor h_device = rig.Put(h, act), w_device = rig.Put(w, act);
  const Tensor targets_device = rig.PutRaw(targets, DType::kI32, 1, m);
  ops.Matmul(h_device, kN, w_device, kT, logits);
  ops.LogProb(logits, targets_device, transform, LogProbMode::kUnitGradient, log_probs);
  ops.Matmul(logits, kN, w_device, kN, dh);

  const auto reference = [&](bool exact, Matrix& log_p, Matrix& gradient) {
    const auto round = [&](Matrix value) { return exact ? value : Rounded(std::move(value), act); };
    Matrix z = round(Product(h, kN, w, kT));
    log_p = Matrix(1, m);
    for (int64_t i = 0; i < m; ++i) {
      double max = -1e300, sum = 0;
      const auto value = [&](double x) {
        x *= transform.scale;
        return transform.softcap > 0 ? transform.softcap * std::tanh(x / transform.softcap) : x;
      };
      for (int64_t j = 0; j < vocab; ++j) max = std::max(max, value(z.At(i, j)));
      for (int64_t j = 0; j < vocab; ++j) sum += std::exp(value(z.At(i, j)) - max);
      const int64_t target = targets[static_cast<size_t>(i)];
      log_p.At(0, i) = value(z.At(i, target)) - max - std::log(sum);
      for (int64_t j = 0; j < vocab; ++j) {
        const double v = value(z.At(i, j)), t = transform.softcap > 0 ? v / transform.softcap : 0;
        z.At(i, j) = ((j == target) - std::exp(v - max) / sum) * transform.scale * (1 - t * t);
      }
    }
    gradient = round(Product(round(z), kN, w, kN));
  };
  Matrix exact[2], rounded[2];
  reference(true, exact[0], exact[1]);
  reference(false, rounded[0], rounded[1]);
  const std::string shape = StrCat(" ", m, " x ", hidden, " -> ", vocab, transform.softcap > 0 ? " softcap" : "");
  results.push_back(rig.Judge(StrCat("head chunk: log p", shape), rig.Get(log_probs), exact[0], rounded[0], 2));
  results.push_back(rig.Judge(StrCat("head chunk: dH", shape), rig.Get(dh), exact[1], rounded[1], 3));
}

// DESIGN.md, determinism tier 2: a row of a product depends on its row and the other operand, not on how many rows
// there are or where it stands.
void RowsIndependentOfM(Rig& rig, int64_t n, int64_t k, Transpose tb, std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  constexpr int64_t kRows = 256, kMost = 2048;
  const Tensor a = rig.Put(rig.Random(kMost, k), rig.act, k + 64);
  const Tensor b = tb == kT ? rig.Put(rig.Random(n, k), rig.act) : rig.Put(rig.Random(k, n), rig.act);
  const Tensor c = rig.New(rig.act, kMost, n);
  ops.Matmul(a.Rows(0, kRows), kN, b, tb, c.Rows(0, kRows));
  const Matrix base = rig.Get(c.Rows(0, kRows));
  std::string differing;
  for (const int64_t m : {int64_t{264}, int64_t{512}, int64_t{1024}, kMost}) {
    ops.Matmul(a.Rows(0, m), kN, b, tb, c.Rows(0, m));
    if (rig.Get(c.Rows(0, kRows)).v != base.v) differing += StrCat(" M=", m);
  }
  for (const int64_t shift : {37, 256}) {  // the same rows further down
    const Tensor moved = rig.New(rig.act, kRows + shift, k, k + 64);
    ops.Copy(a.Rows(500, kRows + shift), moved);
    ops.Copy(a.Rows(0, kRows), moved.Rows(shift, kRows));
    ops.Matmul(moved, kN, b, tb, c.Rows(0, kRows + shift));
    if (rig.Get(c.Rows(shift, kRows)).v != base.v) differing += StrCat(" shift=", shift);
  }
  results.push_back(
      {StrCat("rows of a product independent of M: n ", n, ", k ", k, tb == kT ? "" : ", b not transposed"),
       differing.empty(), differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

// A token's product with a stored weight does not depend on how many tokens are generated beside it, nor on the weights
// that share the launch.
void WeightRowsIndependentOfM(Rig& rig, DType stored, int64_t n, int64_t k, std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  const Tensor x = rig.Put(rig.Random(kWeightMatmulRows, k), rig.act);
  WeightView w{.dtype = stored, .rows = n, .cols = k};
  std::vector<uint8_t> bytes(*StorageBytes(stored, static_cast<uint64_t>(n * k)) / 4 * 4);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(rig.rng() & 0x3f);  // any scale stays finite
  const auto put = [&](const auto& values) {
    const auto count = static_cast<int64_t>(values.size() * sizeof(values[0]) / 4);
    return rig.PutRaw(values, DType::kI32, 1, count).data;
  };
  w.data = put(bytes);
  if (stored == DType::kNf4) {
    std::vector<uint8_t> codes(static_cast<size_t>((n * k / kNf4BlockSize + 3) / 4 * 4));
    for (uint8_t& c : codes) c = static_cast<uint8_t>(rig.rng());
    std::vector<float> code(256), nested(codes.size() / kNf4NestedBlockSize + 1);
    for (float& f : code) f = std::ldexp(static_cast<float>(rig.rng() % 1024), -10);
    for (float& f : nested) f = std::ldexp(static_cast<float>(rig.rng() % 1024), -10);
    w.absmax_codes = static_cast<const uint8_t*>(put(codes));
    w.nested_code = static_cast<const float*>(put(code));
    w.nested_absmax = static_cast<const float*>(put(nested));
  }
  const Tensor y = rig.New(DType::kF32, kWeightMatmulRows, n);
  ops.WeightMatmul(x, {&w, 1}, y);
  const Matrix all = rig.Get(y);
  std::string differing;
  for (const auto& [first, m] :
       {std::pair<int64_t, int64_t>{0, 1}, {5, 1}, {3, 8}, {7, 9}, {30, 16}, {1, 17}, {20, 33}}) {
    ops.WeightMatmul(x.Rows(first, m), {&w, 1}, y.Rows(0, m));
    const Matrix some = rig.Get(y.Rows(0, m));
    for (int64_t i = 0; i < m * n; ++i) {
      if (some.v[static_cast<size_t>(i)] == all.v[static_cast<size_t>(first * n + i)]) continue;
      differing += StrCat(" m=", m);
      break;
    }
  }
  const std::vector<WeightView> thrice(3, w);
  const Tensor wide = rig.New(DType::kF32, kWeightMatmulRows, 3 * n);
  for (const int64_t m : {1, 12, 33}) {
    ops.WeightMatmul(x.Rows(0, m), thrice, wide.Rows(0, m));
    const Matrix some = rig.Get(wide.Rows(0, m));
    bool same = true;
    for (int64_t i = 0; i < 3 * m * n; ++i) {
      same &= some.v[static_cast<size_t>(i)] == all.v[static_cast<size_t>(i / (3 * n) * n + i % n)];
    }
    if (!same) differing += StrCat(" three weights, m=", m);
  }
  results.push_back(
      {StrCat("rows of a stored weight's product independent of m: ", DTypeName(stored), " n ", n, ", k ", k),
       differing.empty(), differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

// The same for narrow products, at numbers of rows that share out k differently (skinny.cu).
void NarrowRowsIndependentOfM(Rig& rig, int64_t n, int64_t k, Transpose tb, std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  constexpr int64_t kRows = 256, kMost = 16384;
  const Tensor first = rig.Put(rig.Random(kRows, k), rig.act);
  const Tensor a = rig.New(rig.act, kMost, k, k + 64);
  for (int64_t row = 0; row < kMost; row += kRows) ops.Copy(first, a.Rows(row, kRows));
  const Tensor b = tb == kT ? rig.Put(rig.Random(n, k), rig.act) : rig.Put(rig.Random(k, n), rig.act);
  const Tensor c = rig.New(DType::kF32, kMost, n);  // the sums themselves
  std::vector<double> base;
  std::string differing;
  for (const int64_t m : {kRows, int64_t{2048}, int64_t{4096}, int64_t{8192}, kMost}) {
    ops.Matmul(a.Rows(0, m), kN, b, tb, c.Rows(0, m));
    for (const int64_t row : {int64_t{0}, m - kRows}) {
      const std::vector<double> got = rig.Get(c.Rows(row, kRows)).v;
      if (base.empty()) base = got;
      if (got != base) differing += StrCat(" M=", m, " row ", row);
    }
  }
  results.push_back(
      {StrCat("rows of a product independent of M, narrow: n ", n, ", k ", k, tb == kT ? "" : ", b not transposed"),
       differing.empty(), differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

// du of AdapterBackward at numbers of rows that are shared out differently; alone; and in fp32 sums of dB alone.
void AdapterRowsIndependentOfM(Rig& rig, const std::vector<int64_t>& parts, int64_t r,
                               std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  constexpr int64_t kRows = 192, kMost = 4608, kSpare = 128;
  int64_t n = 0;
  for (int64_t part : parts) n += part;
  const Tensor first = rig.Put(rig.Random(kRows, n), rig.act), first_u = rig.Put(rig.Random(kRows, kSpare), rig.act);
  const Tensor dy = rig.New(rig.act, kMost, n), u = rig.New(rig.act, kMost, kSpare);
  for (int64_t row = 0; row < kMost; row += kRows) {
    ops.Copy(first, dy.Rows(row, kRows)), ops.Copy(first_u, u.Rows(row, kRows));
  }
  const Tensor b = rig.New(rig.act, n, kSpare), du = rig.New(rig.act, kMost, kSpare), db = rig.New(DType::kF32, n, r);
  ops.Fill(b, 0);
  std::vector<AdapterPart> all;
  int64_t at = 0, column = 0;
  for (int64_t part : parts) {
    ops.Copy(rig.Put(rig.Random(part, r), rig.act), b.Sub(at, part, column, r));
    all.push_back({part, db.Rows(at, part), column});
    at += part, column += r;
  }
  std::vector<double> base;
  std::string differing;
  for (const int64_t m : {kRows, int64_t{1152}, kMost}) {
    ops.Fill(db, 0);
    ops.AdapterBackward(all, dy.Rows(0, m), b, u.Rows(0, m), 2, 0, du.Rows(0, m));
    const std::vector<double> both = rig.Get(db).v;
    for (const int64_t row : {int64_t{0}, m - kRows}) {
      const std::vector<double> got = rig.Get(du.Rows(row, kRows)).v;
      if (base.empty()) base = got;
      if (got != base) differing += StrCat(" du, M=", m, " row ", row);
    }
    ops.Fill(db, 0), ops.Fill(du, 0);
    ops.AdapterBackward(all, dy.Rows(0, m), b, {}, 2, 0, du.Rows(0, m));
    ops.AdapterBackward(all, dy.Rows(0, m), b, u.Rows(0, m), 2, 0, {});
    if (rig.Get(du.Rows(0, kRows)).v != base) differing += StrCat(" du alone, M=", m);
    if (rig.Get(db).v != both) differing += StrCat(" dB alone, M=", m);
  }
  results.push_back({StrCat("adapter's backward products independent of M and of each other: n ", n, ", r ", r),
                     differing.empty(), differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

// The same where each number of rows has the algorithm that was fastest for it, and after the file that keeps them was
// read by another Ops: bits do not depend on what timing chose.
void TunedRowsIndependentOfM(DType act, int64_t n, int64_t k, Transpose tb, const std::string& cache,
                             std::vector<CompositeResult>& results) {
  std::string differing;
  std::vector<double> base;
  for (const bool timed : {true, false}) {
    auto opened = OpenCuda({.device = 0, .activation_dtype = act, .tuning_cache = cache});
    HONE_CHECK(opened.ok(), opened.status().message());
    Rig rig(**opened);
    const auto& gemm = static_cast<CudaOps&>(rig.ops).gemm();
    constexpr int64_t kRows = 256, kMost = 2048;
    const Tensor a = rig.Put(rig.Random(kMost, k), act, k + 64);
    const Tensor b = tb == kT ? rig.Put(rig.Random(n, k), act) : rig.Put(rig.Random(k, n), act);
    const Tensor c = rig.New(act, kMost, n);
    const int64_t rows[] = {kRows, 512, 1024, kMost};
    (*opened)->BeginWarmUp();
    for (const int64_t m : rows) rig.ops.Matmul(a.Rows(0, m), kN, b, tb, c.Rows(0, m));
    (*opened)->EndWarmUp();
    if (timed ? gemm.tuning().timed_shapes != 4 : gemm.tuning().cached_shapes != 4 || gemm.tuning().timed_shapes != 0) {
      differing += StrCat(" timed=", gemm.tuning().timed_shapes, " cached=", gemm.tuning().cached_shapes);
    }
    for (const int64_t m : {kRows, int64_t{512}, int64_t{776}, int64_t{1024}, kMost}) {  // 776: takes its neighbour's
      rig.ops.Matmul(a.Rows(0, m), kN, b, tb, c.Rows(0, m));
      const std::vector<double> got = rig.Get(c.Rows(0, kRows)).v;
      if (base.empty()) base = got;
      if (got != base) differing += StrCat(" M=", m, timed ? "" : " from the file");
    }
  }
  results.push_back(
      {StrCat("rows of a product independent of M, timed: n ", n, ", k ", k, tb == kT ? "" : ", b not transposed"),
       differing.empty(), differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

// Out, lse, dq, dk and dv of a document are bit-equal alone, before and after another one, and on repetition.
void PackingInvariance(Rig& rig, int64_t head_dim, std::vector<CompositeResult>& results) {
  Ops& ops = rig.ops;
  const AttentionShape shape{.heads = 4, .kv_heads = 2, .head_dim = head_dim, .scale = 0.125f};
  constexpr int32_t kDocument = 271, kOther = 45, kAll = kDocument + kOther;
  const int64_t width = 8 * head_dim;  // q | k | v
  const Tensor document = rig.Put(rig.Random(kDocument, width), rig.act),
               other = rig.Put(rig.Random(kOther, width), rig.act);
  const Tensor d_document = rig.Put(rig.Random(kDocument, 4 * head_dim), rig.act);
  const Tensor d_other = rig.Put(rig.Random(kOther, 4 * head_dim), rig.act);
  const auto run = [&](int32_t at, bool alone) {
    const int32_t rows = alone ? kDocument : kAll, other_at = at == 0 ? kDocument : 0;
    const Tensor qkv = rig.New(rig.act, rows, width), d_out = rig.New(rig.act, rows, 4 * head_dim);
    ops.Copy(document, qkv.Rows(at, kDocument));
    ops.Copy(d_document, d_out.Rows(at, kDocument));
    std::vector<Segment> host = {{at, kDocument, at, kDocument, 0, 0}};
    if (!alone) {
      ops.Copy(other, qkv.Rows(other_at, kOther));
      ops.Copy(d_other, d_out.Rows(other_at, kOther));
      host.insert(other_at == 0 ? host.begin() : host.end(), Segment{other_at, kOther, other_at, kOther, 0, 0});
    }
    Segments segments;
    segments.host = host;
    segments.device = rig.PutRaw(host, DType::kI32, static_cast<int64_t>(host.size()), 6);
    const Tensor q = qkv.Cols(0, 4 * head_dim), k = qkv.Cols(4 * head_dim, 2 * head_dim),
                 v = qkv.Cols(6 * head_dim, 2 * head_dim);
    const Tensor out = rig.New(rig.act, rows, 4 * head_dim), d_qkv = rig.New(rig.act, rows, width);
    const Tensor lse = rig.New(DType::kF32, rows, 4), delta = rig.New(DType::kF32, rows, 4);
    ops.Attention(q, k, v, segments, shape, out, lse);
    ops.AttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, d_qkv.Cols(0, 4 * head_dim),
                          d_qkv.Cols(4 * head_dim, 2 * head_dim), d_qkv.Cols(6 * head_dim, 2 * head_dim));
    std::vector<double> all = rig.Get(out.Rows(at, kDocument)).v;
    for (const Tensor t : {lse, d_qkv}) {
      const Matrix m = rig.Get(t.Rows(at, kDocument));
      all.insert(all.end(), m.v.begin(), m.v.end());
    }
    return all;
  };
  const std::vector<double> base = run(0, true);
  std::string differing;
  if (run(0, true) != base) differing += " repeated";
  if (run(0, false) != base) differing += " first-of-two";
  if (run(kOther, false) != base) differing += " second-of-two";
  results.push_back({StrCat("attention independent of packing: head_dim ", head_dim), differing.empty(),
                     differing.empty() ? "bit-equal" : StrCat("differ:", differing)});
}

}  // namespace

std::vector<CompositeResult> RunComposites(Backend& backend, const std::string& part) {
  std::vector<CompositeResult> results;
  const auto with_rig = [&](const char* family, auto&& body) {
    if (std::string(family).find(part) == std::string::npos && part.find(family) == std::string::npos) return;
    Rig rig(backend);
    body(rig);
  };
  const auto linear = [&](int64_t m, int64_t n, int64_t k, int64_t r) {
    with_rig("folded linear", [&](Rig& rig) { FoldedLinear(rig, m, n, k, r, results); });
  };
  linear(37, 72, 64, 8);
  linear(130, 192, 256, 16);
  linear(64, 56, 88, 3);
  linear(19, 1320, 1096, 24);
  linear(40, 136, 72, 64);
  with_rig("head chunk", [&](Rig& rig) { HeadChunk(rig, 33, 64, 1000, {}, results); });
  with_rig("head chunk", [&](Rig& rig) { HeadChunk(rig, 16, 48, 1003, {.scale = 0.5f, .softcap = 3.0f}, results); });
  const auto rows = [&](int64_t n, int64_t k, Transpose tb) {
    with_rig("rows of a product", [&](Rig& rig) { RowsIndependentOfM(rig, n, k, tb, results); });
  };
  rows(1024, 1088, kT);
  rows(1024, 1088, kN);
  rows(576, 576, kT);
  rows(16, 1088, kT);
  rows(16, 1088, kN);
  rows(64, 4096, kT);
  rows(64, 4096, kN);
  for (const Transpose tb : {kT, kN}) {
    for (const int64_t n : {16, 64, 96}) {
      with_rig("rows of a product", [&](Rig& rig) { NarrowRowsIndependentOfM(rig, n, 1088, tb, results); });
    }
  }
  for (const int64_t r : {8, 16, 32}) {
    with_rig("adapter's backward products", [&](Rig& rig) {
      AdapterRowsIndependentOfM(rig, {896, 128, 128}, r, results);
    });
    with_rig("adapter's backward products", [&](Rig& rig) {
      AdapterRowsIndependentOfM(rig, {4864, 4864}, r, results);
    });
  }
  const std::string cache = StrCat("/tmp/hone_tuning_test_", static_cast<int64_t>(getpid()), ".txt");
  for (const Transpose tb : {kT, kN}) {
    std::remove(cache.c_str());
    with_rig("rows of a product", [&](Rig& rig) { TunedRowsIndependentOfM(rig.act, 1024, 1088, tb, cache, results); });
  }
  std::remove(cache.c_str());
  for (const DType stored : {DType::kNf4, DType::kBF16, DType::kQ8_0, DType::kQ4_1}) {
    for (const int64_t k : {512, 576}) {
      with_rig("rows of a stored weight's product", [&](Rig& rig) {
        WeightRowsIndependentOfM(rig, stored, 200, k, results);
        WeightRowsIndependentOfM(rig, stored, 192, k, results);  // whole tiles: several weights in one launch
      });
    }
  }
  for (const int64_t head_dim : {20, 64, 96, 128, 256}) {
    with_rig("attention independent of packing", [&](Rig& rig) { PackingInvariance(rig, head_dim, results); });
  }
  return results;
}

}  // namespace hone
