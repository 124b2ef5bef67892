// The CPU as a Backend: memory by mmap, touched when it is reserved, so that a job which started has its pages.
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kernels/arena.h"
#include "kernels/backend.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/cpu/cpu_ops.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// What OpenBLAS may touch per calling thread for packed panels, 384 deep and as wide as the rows of a product: 1.3 MiB
// seen at SmolLM2's sizes; this covers 20,000 rows.
constexpr uint64_t kBlasBytesPerThread = uint64_t{32} << 20;
constexpr int kMaxThreads = 1024;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

class HostBlock final : public MemoryBlock {
 public:
  HostBlock(void* data, uint64_t size) : data_(data), size_(size) {}
  ~HostBlock() override { munmap(data_, size_); }
  void* data() const override { return data_; }
  uint64_t size() const override { return size_; }

 private:
  void* data_;
  uint64_t size_;
};

// Gives every page memory now. Kernels before 5.14 do not know MADV_POPULATE_WRITE: touch the pages.
bool Populate(void* data, uint64_t bytes) {
  if (madvise(data, bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (uint64_t i = 0; i < bytes; i += page) static_cast<volatile char*>(data)[i] = 0;
  return true;
}

int UsableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : ops_(threads) {}
  Ops& ops() override { return ops_; }
  std::string name() const override {
    return StrCat("cpu (", ops_.threads(), ops_.threads() == 1 ? " thread, " : " threads, ", BestCpuKernels().name,
                  ", OpenBLAS ", BlasCoreName(), ")");
  }

  uint64_t FreeBytes() const override {
    std::FILE* file = std::fopen("/proc/meminfo", "r");
    if (file == nullptr) return 0;
    char line[256];
    unsigned long long kibibytes = 0;
    while (std::fgets(line, sizeof(line), file) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %llu kB", &kibibytes) == 1) break;
    }
    std::fclose(file);
    return kibibytes * 1024;
  }

  absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) override {
    const uint64_t size = std::max<uint64_t>(bytes, kArenaAlignment);
    if (size > FreeBytes()) {
      return ResourceExhausted("reserving ", bytes, " bytes of memory: only ", FreeBytes(), " are available");
    }
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return ResourceExhausted("reserving ", bytes, " bytes of memory: ", std::strerror(errno));
    auto block = std::make_unique<HostBlock>(data, size);
    madvise(data, size, MADV_HUGEPAGE);  // advice; without huge pages it is only slower
    if (!Populate(data, size))
      return ResourceExhausted("reserving ", bytes, " bytes of memory: ", std::strerror(errno));
    return block;
  }

  absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) override { return Reserve(bytes); }

 private:
  CpuOps ops_;
};

}  // namespace

uint64_t CpuWorkspaceBytes(int threads) {
  if (threads == 0) threads = UsableProcessors();
  return CpuOps::WorkspaceBytes(threads) + static_cast<uint64_t>(threads) * kBlasBytesPerThread;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCpu(const CpuOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("threads: ", options.threads, " is not in 0 .. ", kMaxThreads);
  }
  if (CheckBlas() != BlasHealth::kGood) {
    return FailedPrecondition("OpenBLAS computes wrong products on this processor (core type ", BlasCoreName(),
                              "); run with OPENBLAS_CORETYPE=", SafeBlasCoreName());
  }
  return std::make_unique<CpuBackend>(options.threads == 0 ? UsableProcessors() : options.threads);
}

}  // namespace hone
