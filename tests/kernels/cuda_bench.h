// What the programs that time the CUDA back end share: buffers of noise, a clock, the ceilings of the card. Every
// figure is the median of 15 batches; a batch visits enough buffers that at least 256 MB lie between two uses of the
// same bytes. Shares of "floor": the product's time at the GEMM ceiling plus the other bytes' time at the copy ceiling,
// over the measured time.
#pragma once

#include <cuda_runtime_api.h>
#include <algorithm>
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

inline constexpr Transpose kN = Transpose::kNo, kT = Transpose::kYes;
inline constexpr int64_t kRotateBytes = 256 << 20;
inline constexpr int kBatches = 15;

inline uint64_t Next(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

class Bench {
 public:
  Bench(DType act, uint64_t bytes) {
    auto opened = OpenCuda({.device = 0, .activation_dtype = act});
    HONE_CHECK(opened.ok(), opened.status().message());
    backend_ = *std::move(opened);
    auto block = backend_->Reserve(bytes);
    HONE_CHECK(block.ok(), block.status().message());
    block_ = *std::move(block);
    arena_ = std::make_unique<Arena>("bench", block_->data(), block_->size());
    act_ = act;
    HONE_CHECK(cudaEventCreate(&begin_) == cudaSuccess && cudaEventCreate(&end_) == cudaSuccess);
    FillNoise();
  }
  ~Bench() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  Ops& ops() { return backend_->ops(); }
  Backend& backend() { return *backend_; }
  Arena& arena() { return *arena_; }
  DType act() const { return act_; }

  // A matrix of noise in [-scale, scale).
  Tensor Noise(DType dtype, int64_t rows, int64_t cols, int64_t pitch = 0, float scale = 1) {
    Tensor t = arena_->AllocateTensor(dtype, rows, cols, pitch);
    const int64_t width = t.pitch;  // the spare columns too
    const Tensor whole{t.data, dtype, rows, width, width};
    const int64_t chunk = std::max<int64_t>(1, noise_.cols / width);
    for (int64_t row = 0; row < rows; row += chunk) {
      const int64_t count = std::min(chunk, rows - row);
      ops().Copy(Tensor{noise_.data, DType::kF32, count, width, width}, whole.Rows(row, count));
    }
    if (scale != 1) {
      const Tensor factors = arena_->AllocateTensor(DType::kF32, 1, rows);
      ops().Fill(factors, scale);
      if (dtype == act_) ops().ScaleRows(whole, factors);
    }
    return t;
  }
  // Raw random bytes.
  void* Bytes(int64_t bytes) {
    const Tensor t = arena_->AllocateTensor(DType::kF32, 1, (bytes + 3) / 4);
    for (int64_t at = 0; at < t.cols; at += noise_.cols) {
      const int64_t count = std::min(noise_.cols, t.cols - at);
      ops().Copy(bits_.Cols(0, count), t.Cols(at, count));
    }
    return t.data;
  }

  // Median microseconds of one call; `sets`: how many buffer sets call(i) rotates over.
  double Time(int sets, const std::function<void(int)>& call) {
    const cudaStream_t stream = static_cast<CudaOps&>(ops()).stream();
    for (int i = 0; i < std::max(3, sets); ++i) call(i % sets);
    std::vector<double> times;
    const int calls = std::max(sets, 4);
    for (int batch = 0; batch < kBatches; ++batch) {
      cudaEventRecord(begin_, stream);
      for (int i = 0; i < calls; ++i) call(i % sets);
      cudaEventRecord(end_, stream);
      HONE_CHECK(cudaEventSynchronize(end_) == cudaSuccess, "a kernel failed");
      float milliseconds = 0;
      cudaEventElapsedTime(&milliseconds, begin_, end_);
      times.push_back(milliseconds * 1000.0 / calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  void FillNoise() {
    constexpr int64_t kCount = int64_t{16} << 20;
    noise_ = arena_->AllocateTensor(DType::kF32, 1, kCount);
    bits_ = arena_->AllocateTensor(DType::kF32, 1, kCount);
    std::vector<float> host(kCount);
    uint64_t state = 1;
    for (float& x : host) x = static_cast<float>(static_cast<int64_t>(Next(state)) >> 40) * 0x1p-23f;
    ops().Upload(host.data(), noise_);
    ops().Synchronize();
    for (float& x : host) {
      const uint32_t bits = static_cast<uint32_t>(Next(state) >> 32);
      std::memcpy(&x, &bits, 4);
    }
    ops().Upload(host.data(), bits_);
    ops().Synchronize();
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryBlock> block_;
  std::unique_ptr<Arena> arena_;
  DType act_ = DType::kBF16;
  Tensor noise_, bits_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

inline int SetsFor(int64_t bytes) {
  return static_cast<int>(std::clamp<int64_t>((kRotateBytes + bytes - 1) / bytes + 1, 2, 64));
}

struct Ceilings {
  double tflops = 0, gbps = 0;
};

inline void Row(const char* what, double us, double flops, double bytes, const Ceilings& c) {
  const double floor_us = (flops > 0 ? flops / (c.tflops * 1e6) : 0) + bytes / (c.gbps * 1e3);
  std::printf("%-68s %8.1f us", what, us);
  if (flops > 0) std::printf(" %7.1f TFLOP/s", flops / us / 1e6);
  if (flops == 0) std::printf(" %7.0f GB/s   ", bytes / us / 1e3);
  std::printf("  %5.1f%% of floor\n", 100 * floor_us / us);
  std::fflush(stdout);
}

// products: measure the GEMM ceiling too.
inline Ceilings Measure(Bench& bench, bool products = true) {
  Ceilings c;
  ArenaScope scope(bench.arena());
  const DType act = bench.act();
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape s : {Shape{4096, 4096, 14336}, Shape{4096, 14336, 4096}, Shape{8192, 8192, 8192}}) {
    if (!products || (act == DType::kF32 && s.m == 8192)) continue;
    ArenaScope inner(bench.arena());
    const Tensor a = bench.Noise(act, s.m, s.k), b = bench.Noise(act, s.n, s.k);
    const Tensor out = bench.arena().AllocateTensor(act, s.m, s.n);
    const double us = bench.Time(1, [&](int) { bench.ops().Matmul(a, kN, b, kT, out); });
    const double tflops = 2.0 * s.m * s.n * s.k / us / 1e6;
    std::printf("ceiling: %s product %ld x %ld x %ld: %.1f TFLOP/s\n", act == DType::kF32 ? "fp32" : "bf16", s.m, s.n,
                s.k, tflops);
    c.tflops = std::max(c.tflops, tflops);
  }
  const int64_t bytes = int64_t{1} << 30;
  const Tensor from = bench.arena().AllocateTensor(DType::kF32, 1, bytes / 4);
  const Tensor to = bench.arena().AllocateTensor(DType::kF32, 1, bytes / 4);
  bench.ops().Fill(from, 0.7f);
  const cudaStream_t stream = static_cast<CudaOps&>(bench.ops()).stream();
  const double driver =
      bench.Time(1, [&](int) { cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream); });
  const double ours = bench.Time(1, [&](int) { bench.ops().Copy(from, to); });
  std::printf("ceiling: copy of 1 GiB, read + write: driver %.0f GB/s, Ops::Copy %.0f GB/s\n",
              2.0 * bytes / driver / 1e3, 2.0 * bytes / ours / 1e3);
  const double fill = bench.Time(1, [&](int) { bench.ops().Fill(to, 0.3f); });
  std::printf("writing alone (Fill of 1 GiB): %.0f GB/s\n", bytes / fill / 1e3);
  c.gbps = 2.0 * bytes / std::min(driver, ours) / 1e3;
  return c;
}

}  // namespace hone
