// Every operation case on the CPU back end, with one thread and with three, on every instruction set this machine has.
#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/count_allocations.h"
#include "tests/kernels/op_case.h"

namespace hone {
namespace {

// The CPU back end with a chosen instruction set.
class ChosenBackend final : public Backend {
 public:
  ChosenBackend(Backend& memory, int threads, const CpuKernels& kernels) : memory_(memory), ops_(threads, kernels) {}
  Ops& ops() override { return ops_; }
  std::string name() const override { return "cpu"; }
  uint64_t FreeBytes() const override { return memory_.FreeBytes(); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) override { return Reserve(bytes); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) override { return memory_.Reserve(bytes); }

 private:
  Backend& memory_;
  CpuOps ops_;
};

Backend& Cpu() {
  static std::unique_ptr<Backend> backend = OpenCpu({.threads = 3}).value();
  return *backend;
}

class CpuOpCase : public testing::TestWithParam<std::string> {};

TEST_P(CpuOpCase, MatchesReference) {
  for (const CpuKernels& kernels : CpuKernelSets()) {
    ChosenBackend backend(Cpu(), 3, kernels);
    std::string figures;
    EXPECT_EQ(CheckOpCase(backend, FindOpCase(GetParam()), &figures), "") << kernels.name;
    RecordProperty(kernels.name, figures);
  }
}

// Rows, tiles and partial sums are divided by position: the number of threads does not show in the result. Except in
// large products, where OpenBLAS's kernels before AVX-512 round by the place in the block they are given: there the
// bits are the same for the same number of threads (MatchesReference runs everything twice).
TEST_P(CpuOpCase, SameBitsWithAnyNumberOfThreads) {
  if (GetParam().rfind("matmul/", 0) == 0) GTEST_SKIP() << "only for the same number of threads";
  const OpCase op_case = FindOpCase(GetParam());
  std::vector<std::vector<uint8_t>> first;
  for (int threads : {1, 2, 3, 5}) {
    ChosenBackend backend(Cpu(), threads, BestCpuKernels());
    CaseTensors tensors(backend, op_case.name);
    const PreparedCase prepared = op_case.prepare(tensors);
    tensors.UploadAll();
    const int64_t before = AllocationCount();
    prepared.launch(backend.ops());
    EXPECT_EQ(AllocationCount(), before) << "an operation allocated memory";
    tensors.DownloadAll();
    if (threads == 1) {
      first = tensors.images();
    } else {
      EXPECT_EQ(tensors.images() == first, true) << threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CpuOpCase, testing::ValuesIn(OpCaseNames()),
                         [](const auto& info) { return GTestName(info.param); });

}  // namespace
}  // namespace hone
