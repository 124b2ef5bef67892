// Every operation at the sizes of a training step, with its share of the ceiling measured in the same run: products
// against the best sgemm seen here, memory-bound operations against a plain copy. Instances of a case rotate over at
// least 256 MB, so that no cache of usual size is measured. In-place operations get their inputs back before every
// round, untimed.
//
//   hone_kernels_bench --threads=2 --rows=640 --clock=wall --rotate_mb=256 --benchmark_filter='decode|glu'
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>

#include "kernels/backend.h"
#include "proto/base/status.h"
#include "tests/kernels/cases.h"

namespace hone {
namespace {

struct Options {
  double rotate_bytes = 256e6;
  bool cpu_clock = false;  // processor time of the process instead of wall time: for a busy machine and one thread
};

double Now(bool cpu_clock) {
  timespec t{};
  clock_gettime(cpu_clock ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Ceilings {
  double flops = 0;  // per second
  double bytes = 0;
};

// Instances of one case, enough of them to fill the caches several times over.
class Rotation {
 public:
  Rotation(Backend& backend, const OpCase& op_case, const Options& options)
      : ops_(backend.ops()), cpu_clock_(options.cpu_clock) {
    double total = 0;
    do {
      tensors_.push_back(std::make_unique<CaseTensors>(backend, op_case.name, CaseTensors::Purpose::kTiming));
      prepared_.push_back(op_case.prepare(*tensors_.back()));
      total += std::max(prepared_.back().bytes, 1.0);
    } while (prepared_.back().bytes > 0 && total < options.rotate_bytes && tensors_.size() < 2000);
    for (auto& t : tensors_) t->UploadAll();
  }

  const PreparedCase& one() const { return prepared_.front(); }

  // Seconds of one launch.
  double Next() {
    if (next_ == prepared_.size()) {
      next_ = 0;
      for (auto& t : tensors_) t->UploadAll();
    }
    ops_.Synchronize();
    const double start = Now(cpu_clock_);
    prepared_[next_++].launch(ops_);
    ops_.Synchronize();
    return Now(cpu_clock_) - start;
  }

 private:
  Ops& ops_;
  bool cpu_clock_;
  std::vector<std::unique_ptr<CaseTensors>> tensors_;
  std::vector<PreparedCase> prepared_;
  size_t next_ = 0;
};

double BestSeconds(Backend& backend, const Options& options, const OpCase& op_case, int repetitions) {
  Rotation rotation(backend, op_case, options);
  double best = 1e9;
  for (int i = 0; i < repetitions; ++i) best = std::min(best, rotation.Next());
  return best;
}

Ceilings Measure(Backend& backend, const Options& options) {
  const int64_t n = 1536;
  const double product = 2.0 * static_cast<double>(n * n * n);
  const DType act = backend.ops().activation_dtype();
  const double copied = 2.0 * 8192 * 2048 * static_cast<double>(BlockBytes(act));
  return {product / BestSeconds(backend, options, MatmulCase({n, n, n}), 10),
          copied / BestSeconds(backend, options, CopyCase(act, act, 8192, 2048), 12)};
}

void Run(benchmark::State& state, Backend& backend, const Options& options, const Ceilings& ceilings,
         const OpCase& op_case) {
  Rotation rotation(backend, op_case, options);
  rotation.Next();
  double seconds = 0;
  for (auto _ : state) {
    const double s = rotation.Next();
    seconds += s;
    state.SetIterationTime(s);
  }
  const PreparedCase& one = rotation.one();
  const auto per_second = [&](double amount) { return amount * static_cast<double>(state.iterations()) / seconds; };
  if (one.flops > 0) {
    state.counters["GFLOP/s"] = per_second(one.flops) / 1e9;
    state.counters["share_%"] = 100 * per_second(one.flops) / ceilings.flops;
  } else {
    state.counters["GB/s"] = per_second(one.bytes) / 1e9;
    state.counters["share_%"] = 100 * per_second(one.bytes) / ceilings.bytes;
  }
}

// SmolLM2-135M's operations for `rows` packed tokens in documents of about 90, r = 16 beside every linear.
std::vector<OpCase> ModelCases(int64_t rows, bool cuda) {
  const int64_t hidden = 576, heads = 9, kv_heads = 3, d = 64, ffn = 1536, vocabulary = 49152, r = cuda ? 64 : 16;
  const Transpose no = Transpose::kNo, yes = Transpose::kYes;
  std::vector<OpCase> cases;
  const auto linear = [&](int64_t in, int64_t out, int64_t adapters) {
    const int64_t sum_r = cuda ? 64 : 16 * adapters;
    cases.push_back(MatmulCase({rows, out, in + sum_r, no, yes}));        // forward, adapter folded in
    cases.push_back(MatmulCase({rows, in, out + sum_r, no, no}));         // dX
    cases.push_back(MatmulCase({rows, sum_r, in, no, yes}));              // x A^T
    cases.push_back(MatmulCase({rows, 16, out, no, no}));                 // dY B
    cases.push_back(MatmulCase({sum_r, in, rows, yes, no, 1, 1, true}));  // dA
    cases.push_back(MatmulCase({out, 16, rows, yes, no, 1, 1, true}));    // dB
  };
  linear(hidden, hidden + 2 * kv_heads * d, 3);
  linear(hidden, hidden, 1);
  linear(hidden, 2 * ffn, 2);
  linear(ffn, hidden, 1);
  cases.push_back(MatmulCase({256, vocabulary, hidden, no, yes}));
  cases.push_back(MatmulCase({256, hidden, vocabulary, no, no}));
  cases.push_back(MatmulCase({1, 2 * ffn, hidden, no, yes}));
  cases.push_back(MatmulCase({16, 2 * ffn, hidden, no, yes}));
  const DType act = cuda ? DType::kBF16 : DType::kF32;
  for (DType stored : {DType::kQ4_1, DType::kQ8_0, DType::kNf4, DType::kF16, DType::kBF16}) {
    cases.push_back(DecodeCase(stored, true, act, 2 * ffn, hidden, r));
  }
  cases.push_back(DecodeCase(DType::kQ8_0, true, act, vocabulary, hidden, 0));
  cases.push_back(EmbeddingCase(DType::kQ8_0, vocabulary, hidden, rows));
  cases.push_back(AddCase(rows, hidden));
  cases.push_back(RmsNormCase(rows, hidden, 1, false));
  cases.push_back(RmsNormBackwardCase(rows, hidden, 1, 1));
  cases.push_back(RopeTableCase(rows, d));
  cases.push_back(RopeCase(rows, heads + kv_heads, d, RopeDirection::kForward));
  cases.push_back(GluCase(rows, ffn, Activation::kSilu));
  cases.push_back(GluBackwardCase(rows, ffn, Activation::kSilu, true));
  std::vector<int64_t> lengths;
  for (int64_t left = rows, i = 0; left > 0; ++i) {
    lengths.push_back(std::min<int64_t>(left, 60 + 17 * i % 61));
    left -= lengths.back();
  }
  const AttentionShape shape{heads, kv_heads, d, 0.125f, 0, 0};
  for (const AttentionLayout& layout : {Documents(lengths), Documents({rows})}) {
    cases.push_back(AttentionCase(layout, shape));
    cases.push_back(AttentionBackwardCase(layout, shape));
  }
  cases.push_back(LogProbCase(256, vocabulary, {}, LogProbMode::kLogProbOnly, false));
  cases.push_back(LogProbCase(256, vocabulary, {}, LogProbMode::kUnitGradient, false));
  cases.push_back(SumSquaresCase(4884480));
  cases.push_back(AdamWCase(4884480, 1, 0));
  return cases;
}

// "--name=value" of ours; removed from argv.
std::string TakeFlag(int& argc, char** argv, std::string_view name, std::string value) {
  const std::string prefix = StrCat("--", name, "=");
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]).substr(0, prefix.size()) != prefix) continue;
    value = argv[i] + prefix.size();
    std::copy(argv + i + 1, argv + argc, argv + i);
    --argc;
    break;
  }
  return value;
}

int Main(int argc, char** argv) {
  const bool cuda = TakeFlag(argc, argv, "device", "cpu") == "cuda";
  const int threads = std::atoi(TakeFlag(argc, argv, "threads", "0").c_str());
  const int64_t rows = std::atoll(TakeFlag(argc, argv, "rows", "640").c_str());
  const Options options{std::atof(TakeFlag(argc, argv, "rotate_mb", "256").c_str()) * 1e6,
                        TakeFlag(argc, argv, "clock", "wall") == "cpu"};
  auto opened = cuda ? OpenCuda() : OpenCpu({.threads = threads});
  if (!opened.ok() || rows < 1) {
    std::fprintf(stderr, "%s\n", rows < 1 ? "--rows is not a positive number" : opened.status().ToString().c_str());
    return 1;
  }
  Backend& backend = **opened;
  const Ceilings ceilings = Measure(backend, options);
  std::printf("%s: matmul 1536^3 %.0f GFLOP/s, copy (read + write) %.1f GB/s\n", backend.name().c_str(),
              ceilings.flops / 1e9, ceilings.bytes / 1e9);
  for (const OpCase& op_case : ModelCases(rows, cuda)) {
    benchmark::RegisterBenchmark(op_case.name.c_str(),
                                 [&, op_case](benchmark::State& s) { Run(s, backend, options, ceilings, op_case); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(0.2);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) { return hone::Main(argc, argv); }
