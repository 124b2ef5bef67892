// Times what is not a matrix product or attention: each operation as a share of the copy bandwidth measured in the same
// run (cuda_bench.h), and transfers as a share of the link's, alone and beside products. Argument: norm, rows, glu,
// log_prob, quantised or transfers for only that part.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/cuda_bench.h"

namespace hone {
namespace {

std::vector<Tensor> Many(Bench& bench, int count, DType dtype, int64_t rows, int64_t cols) {
  std::vector<Tensor> all;
  for (int i = 0; i < count; ++i) all.push_back(bench.Noise(dtype, rows, cols));
  return all;
}

std::string Name(const char* what, int64_t rows, int64_t cols) { return StrCat(what, " [", rows, ", ", cols, "]"); }

// Groups of `width` columns; one group is a block's norm, many are heads.
void BenchNorm(Bench& bench, const Ceilings& c, int64_t rows, int64_t width, int64_t groups) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t cols = width * groups;
  const double bytes = static_cast<double>(rows * cols * BlockBytes(bench.act()));
  const double stats = 4.0 * static_cast<double>(rows * groups);
  const int sets = SetsFor(static_cast<int64_t>(bytes));
  const auto x = Many(bench, sets, bench.act(), rows, cols), y = Many(bench, sets, bench.act(), rows, cols);
  const auto dx = Many(bench, sets, bench.act(), rows, cols), rstd = Many(bench, sets, DType::kF32, rows, groups);
  const Tensor w = bench.Noise(DType::kF32, 1, width);
  const std::string shape = StrCat(" [", rows, ", ", groups, " x ", width, "]");
  Row(StrCat("RmsNorm", shape).c_str(), bench.Time(sets, [&](int i) { ops.RmsNorm(x[i], w, 1e-5f, y[i], rstd[i]); }), 0,
      2 * bytes + stats, c);
  Row(StrCat("RmsNorm in place", shape).c_str(),
      bench.Time(sets, [&](int i) { ops.RmsNorm(y[i], w, 1e-5f, y[i], rstd[i]); }), 0, 2 * bytes + stats, c);
  Row(StrCat("RmsNormBackward", shape).c_str(),
      bench.Time(sets, [&](int i) { ops.RmsNormBackward(y[i], x[i], w, rstd[i], dx[i], 0); }), 0, 3 * bytes + stats, c);
  Row(StrCat("RmsNormBackward, added", shape).c_str(),
      bench.Time(sets, [&](int i) { ops.RmsNormBackward(y[i], x[i], w, rstd[i], dx[i], 1); }), 0, 4 * bytes + stats, c);
}

void BenchRows(Bench& bench, const Ceilings& c, int64_t rows, int64_t cols) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const DType act = bench.act();
  const double bytes = static_cast<double>(rows * cols * BlockBytes(act));
  const int sets = SetsFor(static_cast<int64_t>(bytes));
  const auto x = Many(bench, sets, act, rows, cols), y = Many(bench, sets, act, rows, cols);
  const Tensor bias = bench.Noise(DType::kF32, 1, cols), factors = bench.Noise(DType::kF32, 1, rows);
  ops.Fill(factors, 1.0f);
  Row(Name("AddBias fp32", rows, cols).c_str(), bench.Time(sets, [&](int i) { ops.AddBias(bias, y[i]); }), 0, 2 * bytes,
      c);
  Row(Name("ScaleRows", rows, cols).c_str(), bench.Time(sets, [&](int i) { ops.ScaleRows(y[i], factors); }), 0,
      2 * bytes, c);
  Row(Name("Add", rows, cols).c_str(), bench.Time(sets, [&](int i) { ops.Add(x[i], y[i]); }), 0, 3 * bytes, c);
  std::vector<int32_t> host(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) host[i] = static_cast<int32_t>((i * 4099) % rows);  // a permutation
  const Tensor ids = bench.arena().AllocateTensor(DType::kI32, 1, rows);
  ops.Upload(host.data(), ids);
  ops.Synchronize();
  Row(Name("GatherRows", rows, cols).c_str(), bench.Time(sets, [&](int i) { ops.GatherRows(x[i], ids, y[i]); }), 0,
      2 * bytes, c);
  Row(Name("ScatterRows", rows, cols).c_str(), bench.Time(sets, [&](int i) { ops.ScatterRows(x[i], ids, y[i]); }), 0,
      2 * bytes, c);
  const int64_t vocabulary = 128256;
  for (int64_t i = 0; i < rows; ++i) host[i] = static_cast<int32_t>((i * 7919 + 13) % vocabulary);
  ops.Upload(host.data(), ids);
  ops.Synchronize();
  WeightView table;
  table.data = bench.Noise(DType::kBF16, vocabulary, cols).data;
  table.dtype = DType::kBF16, table.rows = vocabulary, table.cols = cols;
  Row(Name("EmbeddingRows bf16", rows, cols).c_str(),
      bench.Time(sets, [&](int i) { ops.EmbeddingRows(table, ids, y[i]); }), 0,
      bytes + 2.0 * static_cast<double>(rows * cols), c);
}

void BenchGlu(Bench& bench, const Ceilings& c, int64_t rows, int64_t width, Activation activation, const char* name) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const double bytes = static_cast<double>(rows * width * BlockBytes(bench.act()));
  const int sets = SetsFor(static_cast<int64_t>(bytes));
  const auto gate_up = Many(bench, sets, bench.act(), rows, 2 * width), d = Many(bench, sets, bench.act(), rows, width);
  const auto out = Many(bench, sets, bench.act(), rows, width);
  Row(Name(StrCat("Glu ", name).c_str(), rows, width).c_str(),
      bench.Time(sets, [&](int i) { ops.Glu(gate_up[i], activation, out[i]); }), 0, 3 * bytes, c);
  Row(Name(StrCat("GluBackward in place ", name).c_str(), rows, width).c_str(),
      bench.Time(sets, [&](int i) { ops.GluBackward(d[i], gate_up[i], activation, gate_up[i]); }), 0, 5 * bytes, c);
  Row(Name(StrCat("GluBackward in place with out ", name).c_str(), rows, width).c_str(),
      bench.Time(sets, [&](int i) { ops.GluBackward(d[i], gate_up[i], activation, gate_up[i], out[i]); }), 0, 6 * bytes,
      c);
}

void BenchLogProb(Bench& bench, const Ceilings& c, int64_t rows, int64_t vocabulary, LogitTransform transform) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const double bytes = static_cast<double>(rows * vocabulary * BlockBytes(bench.act()));
  const int sets = SetsFor(static_cast<int64_t>(bytes));
  const auto logits = Many(bench, sets, bench.act(), rows, vocabulary);
  std::vector<int32_t> host(static_cast<size_t>(rows), 77);
  const Tensor targets = bench.arena().AllocateTensor(DType::kI32, 1, rows);
  const Tensor log_probs = bench.arena().AllocateTensor(DType::kF32, 1, rows);
  ops.Upload(host.data(), targets);
  ops.Synchronize();
  const std::string softcap = transform.softcap > 0 ? ", softcap" : "";
  Row(Name("LogProb, log p only", rows, vocabulary).append(softcap).c_str(),
      bench.Time(sets,
                 [&](int i) { ops.LogProb(logits[i], targets, transform, LogProbMode::kLogProbOnly, log_probs); }),
      0, bytes, c);
  Row(Name("LogProb, unit gradient", rows, vocabulary).append(softcap).c_str(),
      bench.Time(sets,
                 [&](int i) { ops.LogProb(logits[i], targets, transform, LogProbMode::kUnitGradient, log_probs); }),
      0, 2 * bytes, c);
}

void BenchEncode(Bench& bench, const Ceilings& c, DType dtype, int64_t rows, int64_t cols) {
  ArenaScope scope(bench.arena());
  const int64_t n = rows * cols, blocks = n / kNf4BlockSize;
  const int sets = SetsFor(n * BlockBytes(dtype));
  const auto in = Many(bench, sets, dtype, rows, cols);
  const Nf4Buffers out{static_cast<uint8_t*>(bench.arena().Allocate(n / 2)),
                       static_cast<uint8_t*>(bench.arena().Allocate(blocks)),
                       static_cast<float*>(bench.arena().Allocate(blocks / 64 + 4))};
  const Tensor scratch = bench.arena().AllocateTensor(DType::kF32, 1, blocks);
  Row(Name(StrCat("EncodeNf4 ", DTypeName(dtype), ", host waits").c_str(), rows, cols).c_str(),
      bench.Time(sets, [&](int i) { bench.ops().EncodeNf4(in[i], out, scratch); }), 0,
      static_cast<double>(n * BlockBytes(dtype)) + 0.5 * static_cast<double>(n), c);
}

void BenchAdamW8bit(Bench& bench, const Ceilings& c) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t n = int64_t{16} << 20;
  const Tensor p = bench.Noise(DType::kF32, 1, n), g = bench.Noise(DType::kF32, 1, n);
  const Tensor m = {bench.Bytes(n), DType::kU8, 1, n, n}, v = {bench.Bytes(n), DType::kU8, 1, n, n};
  const Tensor m_absmax = bench.arena().AllocateTensor(DType::kF32, 1, n / kOptimizerBlockSize);
  const Tensor v_absmax = bench.arena().AllocateTensor(DType::kF32, 1, n / kOptimizerBlockSize);
  const Tensor sum = bench.arena().AllocateTensor(DType::kF32, 1, 1),
               step = bench.arena().AllocateTensor(DType::kF32, 1, 4);
  ops.Fill(m_absmax, 0.01f), ops.Fill(v_absmax, 0.01f), ops.Fill(step, 0.001f), ops.SumSquares(g, sum);
  Row("AdamW8bit of 16 Mi", bench.Time(1, [&](int) { ops.AdamW8bit(p, g, m, m_absmax, v, v_absmax, sum, step, {}); }),
      0, 16.0 * static_cast<double>(n), c);
}

// Offload and fetch, alone and beside products, and what the products take then.
void BenchTransfers(Bench& bench) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t bytes = int64_t{256} << 20, n = 8192;
  auto reserved = bench.backend().ReservePinned(static_cast<uint64_t>(bytes));
  HONE_CHECK(reserved.ok(), reserved.status().message());
  void* pinned = (*reserved)->data();
  const Tensor t = bench.arena().AllocateTensor(DType::kU8, 1, bytes);
  const Tensor a = bench.Noise(bench.act(), n, n), b = bench.Noise(bench.act(), n, n);
  const Tensor out = bench.arena().AllocateTensor(bench.act(), n, n);
  const int products = bench.act() == DType::kBF16 ? 8 : 1;
  const auto compute = [&] {
    for (int i = 0; i < products; ++i) ops.Matmul(a, kN, b, kT, out);
  };
  const double offload = bench.Time(1, [&](int) { ops.StartOffload(t, pinned, 0), ops.FinishTransfer(0); });
  const double fetch = bench.Time(1, [&](int) { ops.StartFetch(pinned, t, 0), ops.FinishTransfer(0); });
  const double alone = bench.Time(1, [&](int) { compute(); });
  const double both = bench.Time(1, [&](int) {
    ops.StartOffload(t, pinned, 1);
    compute();
    ops.FinishTransfer(1);
  });
  std::printf(
      "transfer of 256 MiB: offload %.1f GB/s, fetch %.1f GB/s; products alone %.0f us, offload alone %.0f us, "
      "beside each other %.0f us\n",
      static_cast<double>(bytes) / offload / 1e3, static_cast<double>(bytes) / fetch / 1e3, alone, offload, both);
}

void Run(DType act, const std::string& part) {
  Bench bench(act, uint64_t{16} << 30);
  std::printf("\n== %s, %s ==\n", bench.backend().name().c_str(), act == DType::kBF16 ? "bf16" : "fp32");
  const Ceilings c = Measure(bench, false);
  const bool bf16 = act == DType::kBF16;
  const int64_t rows = bf16 ? 8192 : 4096;
  const auto wanted = [&](std::string_view name) { return part.empty() || part == name; };
  if (wanted("norm")) {
    for (int64_t width : {576, 896, 1536, 2048, 4096, 5120}) BenchNorm(bench, c, rows, width, 1);
    BenchNorm(bench, c, rows, 128, 32);
    BenchNorm(bench, c, rows, 128, 8);
    BenchNorm(bench, c, rows, 64, 14);
  }
  if (wanted("rows")) {
    for (int64_t cols : {896, 4096}) BenchRows(bench, c, rows, cols);
  }
  if (wanted("glu")) {
    BenchGlu(bench, c, rows, 14336, Activation::kSilu, "silu");
    BenchGlu(bench, c, rows, 4864, Activation::kSilu, "silu");
    BenchGlu(bench, c, rows, 14336, Activation::kGelu, "gelu");
    BenchGlu(bench, c, rows, 14336, Activation::kGeluTanh, "gelu_tanh");
  }
  if (wanted("log_prob")) {
    BenchLogProb(bench, c, 1024, 128256, {});
    BenchLogProb(bench, c, 1024, 49152, {});
    BenchLogProb(bench, c, 1024, 151936, {});
    BenchLogProb(bench, c, 512, 262144, {1, 30});
  }
  if (bf16 && wanted("quantised")) {
    BenchEncode(bench, c, DType::kBF16, 14336, 4096);
    BenchEncode(bench, c, DType::kBF16, 1024, 4096);
    BenchEncode(bench, c, DType::kF32, 14336, 4096);
    BenchAdamW8bit(bench, c);
  }
  if (wanted("transfers")) BenchTransfers(bench);
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  const std::string part = argc > 1 ? argv[1] : "";
  try {
    hone::Run(hone::DType::kBF16, part);
    hone::Run(hone::DType::kF32, part);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
