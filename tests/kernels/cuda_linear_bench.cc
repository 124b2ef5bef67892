// Times the products of adapter-folded linears at the shapes of an 8B's training step, as the engine calls them, after
// a warm-up that timed cuBLASLt's candidates. The card is power-limited: a product alone on a cool card runs up to 15%
// faster than after others. So the product with the adapter's columns, the plain one and one fixed large product (the
// ceiling) are timed in turns, and shares are of what the ceiling did in the same turns. Narrow products and the
// augmented weight: shares of a large copy's bandwidth.
//   kernels_cuda_linear_bench [--narrow | --sweep] [TOKENS...]      default: 2048 4096 8192
// --narrow: the narrow products alone, and those of a 0.5B at 16,384 tokens. --sweep: also how to cut AdapterBackward.
#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "kernels/cuda/adapter_backward.h"
#include "tests/kernels/cuda_bench.h"

namespace hone {
namespace {

constexpr int64_t kSpare = 64;

struct Linear {
  const char* name;
  std::vector<int64_t> parts;  // output features
  int64_t k;
  int64_t n() const {
    int64_t sum = 0;
    for (int64_t part : parts) sum += part;
    return sum;
  }
};

const Linear kLinears[] = {
    {"qkv", {4096, 1024, 1024}, 4096}, {"o", {4096}, 4096}, {"gate+up", {14336, 14336}, 4096}, {"down", {4096}, 14336}};

const Linear kSmallLinears[] = {{"0.5B qkv", {896, 128, 128}, 896},
                                {"0.5B o", {896}, 896},
                                {"0.5B gate+up", {4864, 4864}, 896},
                                {"0.5B down", {896}, 4864}};

// Medians of each call, made in turns.
std::vector<double> InTurns(Bench& bench, const std::vector<std::function<void()>>& calls) {
  const cudaStream_t stream = static_cast<CudaOps&>(bench.ops()).stream();
  cudaEvent_t begin, end;
  HONE_CHECK(cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  std::vector<std::vector<double>> times(calls.size());
  for (int round = 0; round < 11; ++round) {
    for (size_t i = 0; i < calls.size(); ++i) {
      calls[i]();  // the caches and the clock as its own last run leaves them
      cudaEventRecord(begin, stream);
      calls[i]();
      cudaEventRecord(end, stream);
      HONE_CHECK(cudaEventSynchronize(end) == cudaSuccess, "a kernel failed");
      float milliseconds = 0;
      cudaEventElapsedTime(&milliseconds, begin, end);
      if (round > 0) times[i].push_back(1000.0 * milliseconds);
    }
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::vector<double> medians;
  for (std::vector<double>& t : times) {
    std::sort(t.begin(), t.end());
    medians.push_back(t[t.size() / 2]);
  }
  return medians;
}

void Products(Bench& bench, const Linear& l, int64_t m, double& worst) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t n = l.n(), k = l.k;
  const auto noise = [&](int64_t rows, int64_t cols, float scale = 1) {
    return bench.Noise(DType::kBF16, rows, cols, 0, scale);
  };
  const Tensor x = noise(m, k + kSpare), w = noise(n + kSpare, k + kSpare, 0.02f), y = noise(m, n + kSpare);
  const Tensor dx = noise(m, k), x_dense = noise(m, k), w_dense = noise(n, k, 0.02f);
  const Tensor y_dense = noise(m, n), big_a = noise(4096, 14336), big_b = noise(4096, 14336, 0.02f);
  const Tensor big_c = noise(4096, 4096);
  std::vector<std::function<void()>> calls = {
      [&] { ops.Matmul(big_a, kN, big_b, kT, big_c); },
      [&] { ops.Matmul(x_dense, kN, w_dense, kT, y_dense); },
      [&] { ops.Matmul(x, kN, w.Rows(0, n), kT, y.Cols(0, n)); },
      [&] { ops.Matmul(y_dense, kN, w_dense, kN, dx); },
      [&] { ops.Matmul(y, kN, w.Cols(0, k), kN, dx); },
  };
  if (n == 4096) {  // o, down: the residual is added
    calls.push_back([&] { ops.MatmulAdd(x, kN, w.Rows(0, n), kT, y_dense, y.Cols(0, n)); });
  }
  bench.backend().BeginWarmUp();
  for (const auto& call : calls) call();
  bench.backend().EndWarmUp();
  const std::vector<double> us = InTurns(bench, calls);
  const double ceiling = 2.0 * 4096 * 4096 * 14336 / us[0] / 1e6, flops = 2.0 * m * n * k;
  const char* names[] = {"",          "forward, plain", "forward, folded",
                         "dX, plain", "dX, folded",     "forward, folded, + residual"};
  for (size_t i = 1; i < us.size(); ++i) {
    const double rate = flops / us[i] / 1e6;
    if (i != 1 && i != 3) worst = std::min(worst, rate / ceiling);
    std::printf("%-8s T %5ld  %-28s %8.1f us %6.1f TFLOP/s  %5.1f%% of the ceiling's %.0f\n", l.name, m, names[i],
                us[i], rate, 100 * rate / ceiling, ceiling);
  }
  std::fflush(stdout);
}

void Narrow(Bench& bench, const Ceilings& c, const Linear& l, int64_t m, int64_t r, bool sweep = false) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t n = l.n(), k = l.k, sum_r = r * static_cast<int64_t>(l.parts.size());
  const int sets = static_cast<int>(std::clamp<int64_t>(kRotateBytes / (m * std::min(n, k) * 2) + 1, 2, 16));
  std::vector<Tensor> x, y;
  for (int i = 0; i < sets; ++i) {
    x.push_back(bench.Noise(DType::kBF16, m, k + kSpare));
    y.push_back(bench.Noise(DType::kBF16, m, n + kSpare));
  }
  const Tensor w = bench.Noise(DType::kBF16, n + kSpare, k + kSpare);
  const Tensor da = bench.arena().AllocateTensor(DType::kF32, sum_r, k);
  const Tensor db = bench.arena().AllocateTensor(DType::kF32, n, r);
  const double x_bytes = 2.0 * m * k, y_bytes = 2.0 * m * n, spare_bytes = 2.0 * m * kSpare;
  const auto row = [&](const char* what, double bytes, const std::function<void(int)>& call) {
    Row(StrCat(l.name, "  T ", m, "  ", what).c_str(), bench.Time(sets, call), 0, bytes, c);
  };
  row("x A^T, R 64", x_bytes + spare_bytes + 2.0 * kSpare * k,
      [&](int i) { ops.Matmul(x[i].Cols(0, k), kN, w.Sub(n, kSpare, 0, k), kT, x[i].Cols(k, kSpare), 2.0f); });
  row("dY B, R 64", y_bytes + spare_bytes + 2.0 * kSpare * n,
      [&](int i) { ops.Matmul(y[i].Cols(0, n), kN, w.Sub(0, n, k, kSpare), kN, y[i].Cols(n, kSpare), 2.0f); });
  row(StrCat("dA, sum r ", sum_r).c_str(), x_bytes + 2.0 * m * sum_r + 8.0 * sum_r * k,
      [&](int i) { ops.Matmul(y[i].Cols(n, sum_r), kT, x[i].Cols(0, k), kN, da, 1, 1); });
  row(StrCat("dB, r ", r, ", ", l.parts.size(), " parts").c_str(), y_bytes + 2.0 * m * sum_r + 8.0 * r * n, [&](int i) {
    int64_t at = 0, column = 0;
    for (int64_t part : l.parts) {
      ops.Matmul(y[i].Cols(at, part), kT, x[i].Cols(k + column, r), kN, db.Rows(at, part), 1, 1);
      at += part, column += r;
    }
  });
  std::vector<AdapterPart> parts;
  int64_t at = 0, column = 0;
  for (int64_t part : l.parts) {
    parts.push_back({part, db.Rows(at, part), column});
    at += part, column += r;
  }
  const double once = y_bytes + 2 * spare_bytes + 2.0 * n * r + 8.0 * r * n;
  const Tensor b = w.Sub(0, n, k, kSpare);
  row("dY B and dB in one", once,
      [&](int i) { ops.AdapterBackward(parts, y[i].Cols(0, n), b, x[i].Cols(k, kSpare), 2, 0, y[i].Cols(n, kSpare)); });
  if (!sweep) return;
  // How to cut them. Partial sums have memory of their own here.
  const Tensor partials = bench.arena().AllocateTensor(DType::kF32, 1, 8 << 20);
  const Tensor tickets = bench.arena().AllocateTensor(DType::kF32, 1, 16 << 10);
  ops.Fill(tickets, 0);
  const cuda::SkinnyWorkspace workspace{partials.as<float>(), 32 << 20, tickets.as<unsigned>()};
  const cudaStream_t stream = static_cast<CudaOps&>(ops).stream();
  for (int chunks = 1; chunks <= 6; ++chunks) {
    std::printf("  %d chunks:", chunks);
    for (int blocks : {128, 176, 264, 396, 528}) {
      const double us = bench.Time(sets, [&](int i) {
        cuda::AdapterBackward(parts, y[i].Cols(0, n), b, x[i].Cols(k, kSpare), 2, 0, y[i].Cols(n, kSpare),
                              {chunks, blocks}, workspace, stream);
      });
      std::printf("  %d blocks %.1f us", blocks, us);
    }
    std::printf("\n");
  }
  const auto narrow = [&](const char* what, const cuda::SkinnyShape& shape, auto product) {
    const double us = bench.Time(sets, [&](int i) { product(i, shape); });
    std::printf("  %s %d x %d / %d: %.1f us", what, shape.rows, shape.columns, shape.split, us);
  };
  const int64_t few = sum_r <= 32 ? 32 : 64;
  for (const int64_t columns : {int64_t{64}, few}) {
    for (const cuda::SkinnyShape shape : {cuda::SkinnyShape{64, static_cast<int>(columns), 1},
                                          {64, static_cast<int>(columns), 2},
                                          {64, static_cast<int>(columns), 4},
                                          {128, static_cast<int>(columns), 4}}) {
      if (k < 1024 && shape.split > 1) continue;
      narrow("x A^T", shape, [&](int i, const cuda::SkinnyShape& s) {
        cuda::SkinnyMatmul(x[i].Cols(0, k), kN, w.Sub(n, columns, 0, k), kT, x[i].Cols(k, columns), 2, 0, s, workspace,
                           stream);
      });
    }
    std::printf("\n");
  }
  for (const int rows : {64, 128}) {
    for (const int split : {2, 3, 4, 6, 8, 16, 32}) {
      narrow("dA",
             {rows,
              sum_r <= 16   ? 16
              : sum_r <= 32 ? 32
                            : 64,
              split},
             [&](int i, const cuda::SkinnyShape& s) {
               cuda::SkinnyMatmul(y[i].Cols(n, sum_r), kT, x[i].Cols(0, k), kN, da, 1, 1, s, workspace, stream);
             });
    }
    std::printf("\n");
  }
}

void Augment(Bench& bench, const Ceilings& c, const Linear& l, DType stored, const char* name) {
  ArenaScope scope(bench.arena());
  Ops& ops = bench.ops();
  const int64_t n = l.n(), k = l.k, r = 16;
  const int sets = static_cast<int>(std::clamp<int64_t>(kRotateBytes / (n * k * 2) + 1, 2, 10));
  std::vector<std::vector<AugmentPart>> parts(static_cast<size_t>(sets));
  std::vector<Tensor> a, out;
  double bytes = 0;
  for (auto& set : parts) {
    int64_t column = 0;
    bytes = 0;
    for (int64_t rows : l.parts) {
      AugmentPart part;
      part.weight.dtype = stored, part.weight.rows = rows, part.weight.cols = k;
      const auto size = static_cast<int64_t>(*StorageBytes(stored, static_cast<uint64_t>(rows * k)));
      part.weight.data = bench.Bytes(size);
      bytes += static_cast<double>(size);
      if (stored == DType::kNf4) {
        const int64_t blocks = rows * k / kNf4BlockSize, nested = blocks / kNf4NestedBlockSize;
        part.weight.absmax_codes = static_cast<const uint8_t*>(bench.Bytes(blocks));
        part.weight.nested_code = bench.Noise(DType::kF32, 1, 256).as<float>();
        part.weight.nested_absmax = bench.Noise(DType::kF32, 1, nested).as<float>();
        part.weight.nested_offset = 0.5f;
        bytes += static_cast<double>(blocks + 4 * nested);
      }
      part.b = bench.Noise(DType::kF32, rows, r), part.column = column;
      column += r;
      set.push_back(part);
    }
    a.push_back(bench.Noise(DType::kF32, column, k));
    out.push_back(bench.arena().AllocateTensor(DType::kBF16, n + kSpare, k + kSpare));
    bytes += 2.0 * n * (k + kSpare) + 2.0 * kSpare * k + 4.0 * n * r + 4.0 * column * k;
  }
  Row(StrCat("AugmentWeight ", name, " ", l.name, " [", n, ", ", k, "]").c_str(),
      bench.Time(sets, [&](int i) { ops.AugmentWeight(parts[static_cast<size_t>(i)], a[i], out[i]); }), 0, bytes, c);
}

// What a first start pays for the products of one training step, and what a second one does.
void TuningTime(int64_t m) {
  const std::string cache = StrCat("/tmp/hone_linear_bench_", static_cast<int64_t>(getpid()), ".txt");
  for (const char* start : {"first start", "second start"}) {
    auto opened = OpenCuda({.device = 0, .activation_dtype = DType::kBF16, .tuning_cache = cache});
    HONE_CHECK(opened.ok(), opened.status().message());
    Backend& backend = **opened;
    auto block = backend.Reserve(uint64_t{6} << 30);
    HONE_CHECK(block.ok(), block.status().message());
    Arena arena("tuning", (*block)->data(), (*block)->size());
    Ops& ops = backend.ops();
    const uint64_t free_before = backend.FreeBytes();
    const auto tensor = [&](int64_t rows, int64_t cols) { return arena.AllocateTensor(DType::kBF16, rows, cols); };
    const auto settle = [&](const char* what, const std::function<void()>& products) {
      const cuda::Gemm& gemm = static_cast<CudaOps&>(ops).gemm();
      const cuda::Gemm::Tuning before = gemm.tuning();
      const auto begin = std::chrono::steady_clock::now();
      backend.BeginWarmUp();
      products();
      ops.Synchronize();
      backend.EndWarmUp();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      std::printf("%s, %s: %.3f s (%d timed in %.3f s, %d from the file); card memory taken: %.0f MiB\n", start, what,
                  seconds, gemm.tuning().timed_shapes - before.timed_shapes, gemm.tuning().seconds - before.seconds,
                  gemm.tuning().cached_shapes - before.cached_shapes,
                  (static_cast<double>(free_before) - static_cast<double>(backend.FreeBytes())) / (1 << 20));
    };
    const auto linears = [&](int64_t rows) {
      for (const Linear& l : kLinears) {
        ArenaScope scope(arena);
        const int64_t n = l.n(), k = l.k;
        const Tensor x = tensor(rows, k + kSpare), w = tensor(n + kSpare, k + kSpare), y = tensor(rows, n + kSpare);
        const Tensor dx = tensor(rows, k);
        ops.Matmul(x, kN, w.Rows(0, n), kT, y.Cols(0, n));
        if (n == 4096) ops.MatmulAdd(x, kN, w.Rows(0, n), kT, y.Cols(0, n), dx.Cols(0, n));
        ops.Matmul(y, kN, w.Cols(0, k), kN, dx);
      }
    };
    settle(StrCat("a step of ", m, " tokens").c_str(), [&] {
      linears(m);
      ArenaScope scope(arena);
      const Tensor h = tensor(2048, 4096), w = tensor(128256, 4096), logits = tensor(2048, 128256);
      ops.Matmul(h, kN, w, kT, logits);
      ops.Matmul(logits, kN, w, kN, h);
    });
    settle("14 more numbers of tokens", [&] {
      for (int64_t rows = m - 256; rows >= 512; rows -= 256) linears(rows);
    });
  }
  std::remove(cache.c_str());
}

void RunNarrow(const std::vector<int64_t>& tokens, bool sweep) {
  Bench bench(DType::kBF16, uint64_t{24} << 30);
  std::printf("\n== %s ==\n", bench.backend().name().c_str());
  const Ceilings c = Measure(bench, false);
  for (int64_t m : tokens) {
    for (const Linear& l : kLinears) Narrow(bench, c, l, m, 16, sweep);
  }
  for (const Linear& l : kSmallLinears) Narrow(bench, c, l, 16384, 16, sweep);
}

void Run(const std::vector<int64_t>& tokens) {
  TuningTime(4096);
  Bench bench(DType::kBF16, uint64_t{24} << 30);
  std::printf("\n== %s ==\n", bench.backend().name().c_str());
  const Ceilings c = Measure(bench, false);
  double worst = 1;
  for (int64_t m : tokens) {
    for (const Linear& l : kLinears) Products(bench, l, m, worst);
  }
  std::printf("slowest folded product: %.1f%% of the ceiling\n", 100 * worst);
  for (const Linear& l : kLinears) Augment(bench, c, l, DType::kNf4, "nf4");
  for (const Linear& l : {kLinears[1], kLinears[2]}) {
    Augment(bench, c, l, DType::kQ8_0, "q8_0");
    Augment(bench, c, l, DType::kQ4_0, "q4_0");
    Augment(bench, c, l, DType::kQ4_1, "q4_1");
    Augment(bench, c, l, DType::kBF16, "bf16");
  }
  for (int64_t m : tokens) {
    for (const Linear& l : kLinears) Narrow(bench, c, l, m, 16);
  }
  std::printf("products that cuBLASLt declined: %ld\n", static_cast<CudaOps&>(bench.ops()).plain_matmuls());
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was measured is shown even if the rest is cut off
  std::vector<int64_t> tokens;
  const bool sweep = argc > 1 && std::strcmp(argv[1], "--sweep") == 0;
  const bool narrow = sweep || (argc > 1 && std::strcmp(argv[1], "--narrow") == 0);
  for (int i = narrow ? 2 : 1; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  if (tokens.empty()) tokens = {2048, 4096, 8192};
  try {
    narrow ? hone::RunNarrow(tokens, sweep) : hone::Run(tokens);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
