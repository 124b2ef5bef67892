// Data types, arenas, shape checks, the thread pool, the dry back end, and what OpenCpu promises.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>
#include <cmath>
#include <cstdlib>

#include "kernels/arena.h"
#include "kernels/backend.h"
#include "kernels/checks.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/dry/dry_ops.h"
#include "kernels/half.h"
#include "kernels/reference/decode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

TEST(DType, StorageBytes) {
  EXPECT_EQ(StorageBytes(DType::kF32, 10), 40u);
  EXPECT_EQ(StorageBytes(DType::kQ4_1, 64), 40u);
  EXPECT_EQ(StorageBytes(DType::kQ8_0, 32), 34u);
  EXPECT_EQ(StorageBytes(DType::kNf4, 6), 3u);
  EXPECT_EQ(StorageBytes(DType::kNf4, 5), std::nullopt);
  EXPECT_EQ(StorageBytes(DType::kQ4_0, 33), std::nullopt);
  EXPECT_EQ(StorageBytes(DType::kF32, uint64_t{1} << 62), std::nullopt);
  EXPECT_EQ(DTypeName(DType::kNf4), "nf4");
}

TEST(Half, EveryHalfComesBackAndTiesGoToEven) {
  for (uint32_t h = 0; h < 0x10000u; ++h) {
    const uint8_t bytes[2] = {static_cast<uint8_t>(h), static_cast<uint8_t>(h >> 8)};
    const float value = reference::HalfValue(bytes);
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToHalf(value), h) << value;
  }
  EXPECT_EQ(FloatToHalf(2049), 0x6800);  // between 2048 and 2050: even
  EXPECT_EQ(FloatToHalf(2051), 0x6802);
  EXPECT_EQ(FloatToHalf(65519), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0);  // half of the smallest: even
  EXPECT_EQ(FloatToHalf(0x1.8p-25f), 1);
  EXPECT_EQ(FloatToHalf(NAN) & 0x7e00, 0x7e00);
}

TEST(Arena, AlignsReleasesAndRemembersItsPeak) {
  alignas(256) static char memory[2048];
  Arena arena("test", memory, sizeof(memory));
  EXPECT_EQ(arena.Allocate(1), memory);
  EXPECT_EQ(arena.used(), 256u);
  {
    ArenaScope scope(arena);
    const Tensor t = arena.AllocateTensor(DType::kBF16, 3, 100, 128);
    EXPECT_EQ(t.data, memory + 256);
    EXPECT_EQ(t.pitch, 128);
    EXPECT_EQ(arena.used(), 1024u);  // 3 * 128 * 2 = 768
  }
  EXPECT_EQ(arena.used(), 256u);
  EXPECT_EQ(arena.high_water(), 1024u);
  EXPECT_NE(arena.Allocate(0), nullptr);
  EXPECT_THROW(arena.Allocate(2048), InvariantError);
  EXPECT_THROW(arena.AllocateTensor(DType::kF32, int64_t{1} << 40, int64_t{1} << 40), InvariantError);
}

TEST(Arena, DryMeasuresWithoutMemory) {
  Arena arena = Arena::Dry("dry");
  const Tensor t = arena.AllocateTensor(DType::kF32, 1 << 20, 1 << 12);
  EXPECT_NE(t.data, nullptr);
  EXPECT_EQ(arena.high_water(), uint64_t{1} << 34);
  EXPECT_TRUE(arena.dry());
}

TEST(ThreadPool, RangesCoverEverythingOnce) {
  ThreadPool pool(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<int> seen(round % 37);
    pool.Ranges(static_cast<int64_t>(seen.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[i];
    });
    for (int count : seen) ASSERT_EQ(count, 1);
  }
}

TEST(Checks, WrongShapesAreBrokenInvariants) {
  float data[64] = {};
  const auto tensor = [&](int64_t rows, int64_t cols) { return Tensor{data, DType::kF32, rows, cols, cols}; };
  auto dry = MakeDryOps(BackendKind::kCpu, DType::kF32);
  auto cpu = OpenCpu({.threads = 1}).value();
  for (Ops* ops : {static_cast<Ops*>(dry.get()), &cpu->ops()}) {
    EXPECT_THROW(ops->Matmul(tensor(2, 3), Transpose::kNo, tensor(2, 3), Transpose::kNo, tensor(2, 3)), InvariantError);
    EXPECT_THROW(ops->Add(tensor(2, 3), tensor(3, 2)), InvariantError);
    EXPECT_THROW(ops->RmsNorm(tensor(2, 6), tensor(1, 4), 1e-5f, tensor(2, 6), tensor(2, 1)), InvariantError);
    EXPECT_THROW(ops->Glu(tensor(2, 7), Activation::kSilu, tensor(2, 3)), InvariantError);
    const Segment outside[] = {{0, 4, 2, 4, 0, 0}};
    EXPECT_THROW(
        ops->Attention(tensor(4, 2), tensor(4, 2), tensor(4, 2), {outside, {}}, {1, 1, 2}, tensor(4, 2), tensor(4, 1)),
        InvariantError);
    ops->Matmul(tensor(2, 3), Transpose::kNo, tensor(3, 2), Transpose::kNo, tensor(2, 2));
  }
}

TEST(Checks, AnIdOutsideTheTableIsRefused) {
  auto cpu = OpenCpu({.threads = 1}).value();
  float data[8] = {};
  int32_t ids[2] = {0, 4};
  const Tensor in{data, DType::kF32, 4, 1, 1}, id_tensor{ids, DType::kI32, 1, 2, 2},
      out{data + 4, DType::kF32, 2, 1, 1};
  EXPECT_THROW(cpu->ops().GatherRows(in, id_tensor, out), InvariantError);
}

TEST(DryOps, Counts) {
  auto dry = MakeDryOps(BackendKind::kCpu, DType::kF32);
  Arena arena = Arena::Dry("dry");
  const auto tensor = [&](int64_t rows, int64_t cols) { return arena.AllocateTensor(DType::kF32, rows, cols); };
  dry->Matmul(tensor(10, 20), Transpose::kNo, tensor(30, 20), Transpose::kYes, tensor(10, 30), 1, 0);
  EXPECT_EQ(dry->counts().gemm_flops, 2.0 * 10 * 20 * 30);
  dry->Add(tensor(10, 10), tensor(10, 10));
  EXPECT_EQ(dry->counts().bytes, 1200);
  const Segment segments[] = {{0, 3, 0, 3, 0, 0}, {3, 2, 3, 4, 0, 3}};
  // 1 + 2 + 3 and (3 + 3) + (3 + 4) keys, two heads, head_dim 8.
  dry->Attention(tensor(8, 16), tensor(8, 8), tensor(8, 8), {segments, {}}, {2, 1, 8}, tensor(8, 16), tensor(8, 2));
  EXPECT_EQ(dry->counts().attention_flops, 4.0 * 8 * 2 * (6 + 13));
  EXPECT_EQ(dry->counts().launches, 3);
  dry->ResetCounts();
  dry->Attention(tensor(8, 16), tensor(8, 8), tensor(8, 8), {segments, {}}, {2, 1, 8, 1, 0, 2}, tensor(8, 16),
                 tensor(8, 2));
  EXPECT_EQ(dry->counts().attention_flops, 4.0 * 8 * 2 * (5 + 4));  // window 2: 1 + 2 + 2 and 2 + 2
  float host[4] = {1, 2, 3, 4};
  dry->Download(tensor(1, 4), host);
  EXPECT_EQ(host[3], 0);
  EXPECT_EQ(dry->AdapterColumns(17), 32);
  EXPECT_EQ(MakeDryOps(BackendKind::kCuda, DType::kBF16)->AdapterColumns(17), 64);
}

TEST(OpenCpu, SaysWhatItIsAndRefusesNonsense) {
  auto cpu = OpenCpu({.threads = 2});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_EQ((*cpu)->name().find("cpu (2 threads"), 0u) << (*cpu)->name();
  EXPECT_GT((*cpu)->FreeBytes(), 0u);
  EXPECT_EQ(OpenCpu({.threads = -1}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*cpu)->Reserve(uint64_t{1} << 60).status().code(), absl::StatusCode::kResourceExhausted);
  auto block = (*cpu)->Reserve(1000).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % kArenaAlignment, 0u);
  EXPECT_GT(CpuWorkspaceBytes(2), CpuWorkspaceBytes(1));
}

TEST(Blas, IsSoundHere) {
  EXPECT_EQ(CheckBlas(), BlasHealth::kGood);
  EXPECT_EQ(CheckBlasInChild(), BlasHealth::kGood);
  EXPECT_FALSE(BlasCoreName().empty());
}

// Started by the next test, in a process whose core type was chosen by RestartWithSafeBlas.
TEST(Blas, AfterRestart) {
  const char* forced = std::getenv("OPENBLAS_CORETYPE");
  if (forced == nullptr || std::getenv("HONE_TEST_RESTARTED") == nullptr) GTEST_SKIP() << "only as a child";
  EXPECT_EQ(std::string(forced), SafeBlasCoreName());
  EXPECT_EQ(BlasCoreName(), SafeBlasCoreName());
  EXPECT_EQ(CheckBlas(), BlasHealth::kGood);
  // Never twice.
  char name[] = "again";
  char* argv[] = {name, nullptr};
  EXPECT_EQ(RestartWithSafeBlas(BlasHealth::kWrong, argv).code(), absl::StatusCode::kInternal);
}

TEST(Blas, RestartsWithTheSafeCoreType) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv("HONE_TEST_RESTARTED", "1", 1);
    char name[] = "kernels_base_test", filter[] = "--gtest_filter=Blas.AfterRestart";
    char* argv[] = {name, filter, nullptr};
    if (RestartWithSafeBlas(BlasHealth::kGood, argv).ok()) {
      (void)RestartWithSafeBlas(BlasHealth::kCrashed, argv);
    }
    _exit(99);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace hone
