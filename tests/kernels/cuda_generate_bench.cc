// Times generation's products (Ops::WeightMatmul) at the shapes of an 8B model: m tokens at once, the weight in its
// stored form. A share is that of the copy bandwidth measured in the same run, over the weight's bytes alone.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tests/kernels/cuda_bench.h"

namespace hone {
namespace {

WeightView StoredWeight(Bench& bench, DType dtype, int64_t rows, int64_t cols) {
  WeightView w;
  w.dtype = dtype, w.rows = rows, w.cols = cols;
  if (dtype == DType::kBF16) {
    w.data = bench.Noise(dtype, rows, cols).data;
    return w;
  }
  w.data = bench.Bytes(static_cast<int64_t>(*StorageBytes(dtype, static_cast<uint64_t>(rows * cols))));
  if (dtype != DType::kNf4) return w;
  const int64_t blocks = rows * cols / kNf4BlockSize;
  w.absmax_codes = static_cast<const uint8_t*>(bench.Bytes(blocks));
  w.nested_code = bench.Noise(DType::kF32, 1, 256).as<float>();
  w.nested_absmax = bench.Noise(DType::kF32, 1, (blocks + kNf4NestedBlockSize - 1) / kNf4NestedBlockSize).as<float>();
  return w;
}

void BenchWeight(Bench& bench, const Ceilings& c, DType dtype, int64_t rows, int64_t cols) {
  ArenaScope scope(bench.arena());
  const double bytes = static_cast<double>(*StorageBytes(dtype, static_cast<uint64_t>(rows * cols))) +
                       (dtype == DType::kNf4 ? static_cast<double>(rows * cols / kNf4BlockSize) : 0.0);
  const int sets = SetsFor(static_cast<int64_t>(bytes));
  std::vector<WeightView> weights;
  for (int i = 0; i < sets; ++i) weights.push_back(StoredWeight(bench, dtype, rows, cols));
  const Tensor x = bench.Noise(bench.act(), kWeightMatmulRows, cols),
               y = bench.Noise(bench.act(), kWeightMatmulRows, rows);
  std::printf("WeightMatmul %-5s %6ld x %5ld:", std::string(DTypeName(dtype)).c_str(), static_cast<long>(rows),
              static_cast<long>(cols));
  for (int64_t m : {1, 4, 8, 16, 32, 64}) {
    const double us = bench.Time(sets, [&](int i) {
      bench.ops().WeightMatmul(x.Rows(0, m), {&weights[i], 1}, y.Rows(0, m));
    });
    std::printf("  m %ld %.1f us %.0f%%", static_cast<long>(m), us, 100 * bytes / us / 1e3 / c.gbps);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void Run() {
  Bench bench(DType::kBF16, uint64_t{12} << 30);
  std::printf("== %s ==\n", bench.backend().name().c_str());
  const Ceilings c = Measure(bench, false);
  for (DType dtype : {DType::kNf4, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    BenchWeight(bench, c, dtype, 4096, 4096);
    BenchWeight(bench, c, dtype, 1024, 4096);
    BenchWeight(bench, c, dtype, 14336, 4096);
    BenchWeight(bench, c, dtype, 4096, 14336);
  }
  BenchWeight(bench, c, DType::kBF16, 128256, 4096);
}

}  // namespace
}  // namespace hone

int main() {
  try {
    hone::Run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
