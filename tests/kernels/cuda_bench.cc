// Times the CUDA back end through Ops at the shapes of an 8B model and prints each as a share of ceilings measured in
// the same run: a large bf16 product and a large device copy (cuda_bench.h). Random data throughout.
#include "tests/kernels/cuda_bench.h"
#include <cuda_runtime_api.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "kernels/arena.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

void BenchNorm(Bench& bench, const Ceilings& c, int64_t tokens, int64_t hidden) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t size = BlockBytes(bench.act());
  const int sets = SetsFor(2 * tokens * hidden * size);
  std::vector<Tensor> x, y, rstd;
  const Tensor w = bench.Noise(DType::kF32, 1, hidden);
  for (int i = 0; i < sets; ++i) {
    x.push_back(bench.Noise(bench.act(), tokens, hidden));
    y.push_back(bench.Noise(bench.act(), tokens, hidden));
    rstd.push_back(bench.arena().AllocateTensor(DType::kF32, tokens, 1));
  }
  const double bytes = static_cast<double>(tokens) * hidden * size;
  const std::string shape = StrCat(" [", tokens, ", ", hidden, "]");
  Row(StrCat("RmsNorm", shape).c_str(), bench.Time(sets, [&](int i) { ops.RmsNorm(x[i], w, 1e-5f, y[i], rstd[i]); }), 0,
      2 * bytes, c);
  std::vector<Tensor> dx;
  for (int i = 0; i < sets; ++i) dx.push_back(bench.Noise(bench.act(), tokens, hidden));
  Row(StrCat("RmsNormBackward", shape).c_str(),
      bench.Time(sets, [&](int i) { ops.RmsNormBackward(y[i], x[i], w, rstd[i], dx[i], 0); }), 0, 3 * bytes, c);
  Row(StrCat("RmsNormBackward, accumulating", shape).c_str(),
      bench.Time(sets, [&](int i) { ops.RmsNormBackward(y[i], x[i], w, rstd[i], dx[i], 1); }), 0, 4 * bytes, c);
}

WeightView Weight(Bench& bench, DType dtype, int64_t rows, int64_t cols) {
  WeightView w;
  w.dtype = dtype, w.rows = rows, w.cols = cols;
  w.data = bench.Bytes(static_cast<int64_t>(*StorageBytes(dtype, static_cast<uint64_t>(rows * cols))));
  if (dtype == DType::kNf4) {
    const int64_t blocks = rows * cols / kNf4BlockSize;
    w.absmax_codes = static_cast<const uint8_t*>(bench.Bytes(blocks));
    w.nested_code = bench.Noise(DType::kF32, 1, 256).as<float>();
    w.nested_absmax = bench.Noise(DType::kF32, 1, (blocks + kNf4NestedBlockSize - 1) / kNf4NestedBlockSize).as<float>();
    w.nested_offset = 0.5f;
  }
  return w;
}

double WeightBytes(const WeightView& w) {
  const double elements = static_cast<double>(w.rows) * w.cols;
  const double scales = w.dtype == DType::kNf4 ? elements / 64 + elements / 64 / 256 * 4 : 0;
  return scales + static_cast<double>(*StorageBytes(w.dtype, static_cast<uint64_t>(w.rows * w.cols)));
}

void BenchDecode(Bench& bench, const Ceilings& c, const char* name, DType dtype, int64_t rows, int64_t cols,
                 int64_t spare) {
  ArenaScope scope(bench.arena());
  const int sets = SetsFor(rows * cols * 2);
  std::vector<WeightView> weights;
  std::vector<Tensor> outs;
  for (int i = 0; i < sets; ++i) {
    weights.push_back(Weight(bench, dtype, rows, cols));
    outs.push_back(bench.arena().AllocateTensor(bench.act(), rows, cols, cols + spare));
  }
  const double us = bench.Time(sets, [&](int i) { bench.ops().DecodeWeight(weights[i], outs[i]); });
  const double bytes = WeightBytes(weights[0]) + static_cast<double>(rows) * cols * BlockBytes(bench.act());
  Row(StrCat("DecodeWeight ", name, " [", rows, ", ", cols, "] pitch +", spare).c_str(), us, 0, bytes, c);
}

// The linear of DESIGN.md with its adapter folded in: y = [x | s x A^T] [W | B]^T; dX = [dY | s dY B] [W ; A];
// dA = (s dY B)^T x; dB = dY^T (s x A^T).
void BenchLinear(Bench& bench, const Ceilings& c, int64_t m, int64_t n, int64_t k, int64_t r) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  const DType act = bench.act();
  const int64_t spare = ops.AdapterColumns(r), size = BlockBytes(act);
  constexpr int kSets = 3;
  std::vector<WeightView> weights;
  std::vector<Tensor> xs, ys;
  for (int i = 0; i < kSets; ++i) {
    weights.push_back(Weight(bench, DType::kNf4, n, k));
    xs.push_back(bench.Noise(act, m, k + spare));
    ys.push_back(bench.Noise(act, m, n + spare));
  }
  const Tensor scratch = bench.arena().AllocateTensor(act, n + spare, k + spare);
  ops.Fill(scratch, 0);
  const Tensor a = bench.Noise(DType::kF32, r, k), b = bench.Noise(DType::kF32, n, r);
  const Tensor da = bench.arena().AllocateTensor(DType::kF32, r, k),
               db = bench.arena().AllocateTensor(DType::kF32, n, r);
  const Tensor a_rows = scratch.Sub(n, r, 0, k), b_cols = scratch.Sub(0, n, k, r);
  const auto decode = [&](int i) {
    ops.DecodeWeight(weights[i], scratch.Sub(0, n, 0, k));
    ops.Copy(a, a_rows);
    ops.Copy(b, b_cols);
  };
  const auto forward = [&](int i) {
    const Tensor x = xs[i].Cols(0, k);
    ops.Matmul(x, kN, a_rows, kT, xs[i].Cols(k, r), 2.0f, 0);
    ops.Matmul(xs[i], kN, scratch.Rows(0, n), kT, ys[i].Cols(0, n));
  };
  const auto backward = [&](int i) {
    const Tensor dy = ys[i].Cols(0, n);
    ops.Matmul(dy, kN, b_cols, kN, ys[i].Cols(n, r), 2.0f, 0);
    ops.Matmul(ys[i], kN, scratch.Cols(0, k), kN, xs[i].Cols(0, k));
  };
  const auto gradients = [&](int i) {
    ops.Matmul(ys[i].Cols(n, r), kT, xs[i].Cols(0, k), kN, da, 1, 1);
    ops.Matmul(ys[i].Cols(0, n), kT, xs[i].Cols(k, r), kN, db, 1, 1);
  };
  const double gemm = 2.0 * m * n * k, decode_bytes = WeightBytes(weights[0]) + static_cast<double>(n) * k * size;
  const std::string shape = StrCat(" ", m, " x ", k, " -> ", n, ", r ", r);
  decode(0);  // a product of zeros would run faster
  const double plain = bench.Time(
      kSets, [&](int i) { ops.Matmul(xs[i].Cols(0, k), kN, scratch.Sub(0, n, 0, k), kT, ys[i].Cols(0, n)); });
  Row(StrCat("  base product alone", shape).c_str(), plain, gemm, 0, c);
  Row(StrCat("  product with the adapter's columns", shape).c_str(),
      bench.Time(kSets, [&](int i) { ops.Matmul(xs[i], kN, scratch.Rows(0, n), kT, ys[i].Cols(0, n)); }), gemm, 0, c);
  Row(StrCat("  dX product with the adapter's columns", shape).c_str(),
      bench.Time(kSets, [&](int i) { ops.Matmul(ys[i], kN, scratch.Cols(0, k), kN, xs[i].Cols(0, k)); }), gemm, 0, c);
  Row(StrCat("  decode + A, B into the spare", shape).c_str(), bench.Time(kSets, decode), 0, decode_bytes, c);
  Row(StrCat("  x A^T", shape).c_str(),
      bench.Time(kSets, [&](int i) { ops.Matmul(xs[i].Cols(0, k), kN, a_rows, kT, xs[i].Cols(k, r), 2.0f, 0); }), 0,
      static_cast<double>(m) * k * size, c);
  Row(StrCat("  dY B", shape).c_str(),
      bench.Time(kSets, [&](int i) { ops.Matmul(ys[i].Cols(0, n), kN, b_cols, kN, ys[i].Cols(n, r), 2.0f, 0); }), 0,
      static_cast<double>(m) * n * size, c);
  Row(StrCat("folded linear forward", shape).c_str(), bench.Time(kSets, [&](int i) { decode(i), forward(i); }), gemm,
      decode_bytes, c);
  Row(StrCat("folded linear backward, dX", shape).c_str(), bench.Time(kSets, [&](int i) { decode(i), backward(i); }),
      gemm, decode_bytes, c);
  const double read_both = static_cast<double>(m) * (k + n) * size;
  Row(StrCat("dA, dB in fp32", shape).c_str(), bench.Time(kSets, gradients), 0, read_both, c);
}

void BenchHead(Bench& bench, const Ceilings& c, int64_t m, int64_t hidden, int64_t vocab) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  const DType act = bench.act();
  const double size = BlockBytes(act);
  const Tensor w = bench.Noise(act, vocab, hidden, 0, 0.05f), h = bench.Noise(act, m, hidden),
               dh = bench.Noise(act, m, hidden);
  const Tensor logits = bench.Noise(act, m, vocab), log_probs = bench.arena().AllocateTensor(DType::kF32, 1, m);
  std::vector<int32_t> ids(static_cast<size_t>(m));
  uint64_t state = 5;
  for (int32_t& id : ids) id = static_cast<int32_t>(Next(state) % static_cast<uint64_t>(vocab));
  const Tensor targets = bench.arena().AllocateTensor(DType::kI32, 1, m);
  ops.Upload(ids.data(), targets);
  ops.Synchronize();
  const std::string shape = StrCat(" ", m, " x ", hidden, " -> ", vocab);
  const double logit_bytes = size * m * vocab, gemm = 2.0 * m * hidden * vocab;
  Row(StrCat("  LogProb, log p only", shape).c_str(),
      bench.Time(1, [&](int) { ops.LogProb(logits, targets, {}, LogProbMode::kLogProbOnly, log_probs); }), 0,
      logit_bytes, c);
  Row(StrCat("  LogProb, unit gradient", shape).c_str(),
      bench.Time(1, [&](int) { ops.LogProb(logits, targets, {}, LogProbMode::kUnitGradient, log_probs); }), 0,
      2 * logit_bytes, c);
  Row(StrCat("  head product", shape).c_str(), bench.Time(1, [&](int) { ops.Matmul(h, kN, w, kT, logits); }), gemm, 0,
      c);
  Row(StrCat("  head product, dH", shape).c_str(), bench.Time(1, [&](int) { ops.Matmul(logits, kN, w, kN, dh); }), gemm,
      0, c);
  Row(StrCat("head chunk, unit mode", shape).c_str(),
      bench.Time(1,
                 [&](int) {
                   ops.Matmul(h, kN, w, kT, logits);
                   ops.LogProb(logits, targets, {}, LogProbMode::kUnitGradient, log_probs);
                   ops.Matmul(logits, kN, w, kN, dh);
                 }),
      2 * gemm, 2 * logit_bytes, c);
}

void BenchElementwise(Bench& bench, const Ceilings& c, int64_t tokens) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  const DType act = bench.act();
  const double size = BlockBytes(act);
  constexpr int64_t kFf = 14336, kHidden = 4096, kHeadDim = 128;
  constexpr int kSets = 3;
  std::vector<Tensor> gate_up, out;
  for (int i = 0; i < kSets; ++i) {
    gate_up.push_back(bench.Noise(act, tokens, 2 * kFf));
    out.push_back(bench.Noise(act, tokens, kFf));
  }
  const double ff_bytes = size * tokens * kFf, h_bytes = size * tokens * kHidden;
  Row(StrCat("Glu silu [", tokens, ", ", kFf, "]").c_str(),
      bench.Time(kSets, [&](int i) { ops.Glu(gate_up[i], Activation::kSilu, out[i]); }), 0, 3 * ff_bytes, c);
  Row(StrCat("GluBackward silu, in place [", tokens, ", ", kFf, "]").c_str(),
      bench.Time(kSets, [&](int i) { ops.GluBackward(out[i], gate_up[i], Activation::kSilu, gate_up[i]); }), 0,
      5 * ff_bytes, c);
  const int sets = SetsFor(static_cast<int64_t>(h_bytes));
  std::vector<Tensor> x, y;
  for (int i = 0; i < sets; ++i) {
    x.push_back(bench.Noise(act, tokens, kHidden));
    y.push_back(bench.Noise(act, tokens, kHidden));
  }
  Row(StrCat("Add [", tokens, ", ", kHidden, "]").c_str(), bench.Time(sets, [&](int i) { ops.Add(x[i], y[i]); }), 0,
      3 * h_bytes, c);
  const Tensor cos = bench.Noise(DType::kF32, tokens, kHeadDim / 2),
               sin = bench.Noise(DType::kF32, tokens, kHeadDim / 2);
  Row(StrCat("Rope [", tokens, ", ", kHidden, "]").c_str(),
      bench.Time(sets, [&](int i) { ops.Rope(x[i], kHeadDim, cos, sin, RopeDirection::kForward); }), 0, 2 * h_bytes, c);
}

void BenchOptimizer(Bench& bench, const Ceilings& c) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  const int64_t count = int64_t{42} << 20;  // LoRA r = 16 on an 8B
  const Tensor p = bench.Noise(DType::kF32, 1, count), g = bench.Noise(DType::kF32, 1, count);
  const Tensor m = bench.Noise(DType::kF32, 1, count), v = bench.Noise(DType::kF32, 1, count);
  ops.Fill(v, 1.0f);
  const Tensor sum = bench.arena().AllocateTensor(DType::kF32, 1, 1),
               step = bench.arena().AllocateTensor(DType::kF32, 1, 4);
  ops.Fill(step, 0.001f);
  Row("SumSquares of 42 Mi", bench.Time(2, [&](int i) { ops.SumSquares(i == 0 ? g : m, sum); }), 0, 4.0 * count, c);
  Row("AdamW of 42 Mi", bench.Time(1, [&](int) { ops.AdamW(p, g, m, v, sum, step, {}); }), 0, 28.0 * count, c);
}

// Segments on both sides.
Segments Upload(Bench& bench, const std::vector<Segment>& host) {
  Segments segments;
  segments.host = host;
  segments.device = bench.arena().AllocateTensor(DType::kI32, static_cast<int64_t>(host.size()), 6);
  bench.ops().Upload(host.data(), segments.device);
  bench.ops().Synchronize();
  return segments;
}

// Packed documents; q, k and v as the engine lays them out, columns of one buffer with 64 spare ones. A pair of query
// and key that sees one another counts as 4 head_dim (backward: 10) floating point operations.
void BenchAttention(Bench& bench, const char* name, const std::vector<int32_t>& lengths, int64_t heads,
                    int64_t kv_heads, int64_t head_dim) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  const DType act = bench.act();
  std::vector<Segment> host;
  int32_t tokens = 0;
  double pairs = 0;
  for (int32_t n : lengths) {
    host.push_back({tokens, n, tokens, n, 0, 0});
    tokens += n;
    pairs += 0.5 * n * (n + 1.0) * static_cast<double>(heads);
  }
  const Segments segments = Upload(bench, host);
  const AttentionShape shape{
      .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .scale = 1 / std::sqrt(static_cast<float>(head_dim))};
  const int64_t nq = heads * head_dim, nk = kv_heads * head_dim;
  const Tensor qkv = bench.Noise(act, tokens, nq + 2 * nk + 64), d_qkv = bench.Noise(act, tokens, nq + 2 * nk + 64);
  const Tensor out = bench.Noise(act, tokens, nq + 64), d_out = bench.Noise(act, tokens, nq + 64);
  const Tensor q = qkv.Cols(0, nq), k = qkv.Cols(nq, nk), v = qkv.Cols(nq + nk, nk);
  const Tensor lse = bench.arena().AllocateTensor(DType::kF32, tokens, heads);
  const Tensor delta = bench.arena().AllocateTensor(DType::kF32, tokens, heads);
  const double forward = bench.Time(1, [&](int) { ops.Attention(q, k, v, segments, shape, out.Cols(0, nq), lse); });
  const double backward = bench.Time(1, [&](int) {
    ops.AttentionBackward(d_out.Cols(0, nq), q, k, v, out.Cols(0, nq), lse, segments, shape, delta, d_qkv.Cols(0, nq),
                          d_qkv.Cols(nq, nk), d_qkv.Cols(nq + nk, nk));
  });
  const double flops = static_cast<double>(head_dim) * pairs / 1e6;
  std::printf("Attention %s, %ld/%ld heads, d %ld: forward %.1f us %.1f, backward %.1f us %.1f, both %.1f TFLOP/s\n",
              name, heads, kv_heads, head_dim, forward, 4 * flops / forward, backward, 10 * flops / backward,
              14 * flops / (forward + backward));
}

// One query a sequence against a cache.
void BenchDecoding(Bench& bench, const Ceilings& c, int32_t batch, int32_t keys) {
  Ops& ops = bench.ops();
  ArenaScope scope(bench.arena());
  constexpr int64_t kHeads = 32, kKvHeads = 8, kDim = 128;
  std::vector<Segment> host;
  for (int32_t i = 0; i < batch; ++i) host.push_back({i, 1, i * keys, keys, 0, 0});
  const Segments segments = Upload(bench, host);
  const AttentionShape shape{.heads = kHeads, .kv_heads = kKvHeads, .head_dim = kDim, .scale = 0.088388f};
  const int sets = SetsFor(int64_t{batch} * keys * kKvHeads * kDim * 2 * BlockBytes(bench.act()));
  std::vector<Tensor> k, v;
  for (int i = 0; i < sets; ++i) {
    k.push_back(bench.Noise(bench.act(), int64_t{batch} * keys, kKvHeads * kDim));
    v.push_back(bench.Noise(bench.act(), int64_t{batch} * keys, kKvHeads * kDim));
  }
  const Tensor q = bench.Noise(bench.act(), batch, kHeads * kDim), out = bench.Noise(bench.act(), batch, kHeads * kDim);
  const Tensor lse = bench.arena().AllocateTensor(DType::kF32, batch, kHeads);
  const double us = bench.Time(sets, [&](int i) { ops.Attention(q, k[i], v[i], segments, shape, out, lse); });
  Row(StrCat("Attention of ", batch, " cached sequences of ", keys, " keys").c_str(), us, 0,
      2.0 * batch * keys * kKvHeads * kDim * static_cast<double>(BlockBytes(bench.act())), c);
}

void BenchAttentions(Bench& bench, const Ceilings& c) {
  // Lognormal lengths, mean 390, sigma 0.6: what a preference data set packs into 8192 tokens.
  const std::vector<int32_t> lognormal = {319, 505, 324, 308, 212, 327, 725, 479, 693, 432, 471,
                                          415, 136, 621, 504, 501, 134, 130, 218, 280, 458};
  BenchAttention(bench, "4 x 2048", {2048, 2048, 2048, 2048}, 32, 8, 128);
  BenchAttention(bench, "1 x 8192", {8192}, 32, 8, 128);
  BenchAttention(bench, "8 x 1024", std::vector<int32_t>(8, 1024), 32, 8, 128);
  BenchAttention(bench, "21 lognormal documents of 8192 tokens", lognormal, 32, 8, 128);
  BenchAttention(bench, "8 x 1024", std::vector<int32_t>(8, 1024), 14, 2, 64);
  BenchAttention(bench, "2 x 2048", {2048, 2048}, 16, 8, 256);
  for (const int32_t batch : {1, 8, 32}) BenchDecoding(bench, c, batch, 2048);
}

void Run(DType act) {
  const bool bf16 = act == DType::kBF16;
  constexpr uint64_t kMemory = uint64_t{12} << 30;
  Bench bench(act, kMemory);
  std::printf("\n== %s, %s ==\n", bench.backend().name().c_str(), bf16 ? "bf16" : "fp32");
  const Ceilings c = Measure(bench);
  const int64_t tokens = bf16 ? 8192 : 4096;
  BenchNorm(bench, c, tokens, 4096);
  BenchNorm(bench, c, tokens, 576);
  BenchDecode(bench, c, "nf4", DType::kNf4, 14336, 4096, 64);
  BenchDecode(bench, c, "nf4", DType::kNf4, 4096, 14336, 64);
  BenchDecode(bench, c, "q4_1", DType::kQ4_1, 14336, 4096, 64);
  BenchDecode(bench, c, "q8_0", DType::kQ8_0, 14336, 4096, 64);
  BenchLinear(bench, c, bf16 ? 4096 : 2048, 14336, 4096, 16);
  BenchLinear(bench, c, bf16 ? 4096 : 2048, 4096, 14336, 16);
  if (bf16) BenchLinear(bench, c, 4096, 28672, 4096, 16);
  BenchHead(bench, c, bf16 ? 2048 : 512, 4096, 128256);
  BenchElementwise(bench, c, bf16 ? 8192 : 2048);
  BenchOptimizer(bench, c);
  if (bf16) BenchAttentions(bench, c);
  size_t free_bytes = 0, total = 0;
  cudaMemGetInfo(&free_bytes, &total);
  std::printf("memory of the card taken beside the arena: %.0f MiB\n",
              static_cast<double>(total - free_bytes - kMemory) / (1 << 20));
  std::printf("products that cuBLASLt declined: %ld\n", static_cast<CudaOps&>(bench.ops()).plain_matmuls());
}

}  // namespace
}  // namespace hone

int main() {
  try {
    hone::Run(hone::DType::kBF16);
    hone::Run(hone::DType::kF32);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
