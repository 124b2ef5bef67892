#include "kernels/cpu/blas_check.h"

#include <cblas.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Small and large blocks, ragged edges on each side, more than one block of k.
constexpr int64_t kShapes[][3] = {{1, 7, 33},    {5, 3, 17},  {8, 16, 64},   {16, 33, 100},  {31, 65, 47},
                                  {33, 17, 129}, {64, 48, 9}, {97, 130, 63}, {130, 97, 450}, {66, 258, 576}};

// Exact in fp32: small integers, so that any order of summation gives the same bits.
float Value(uint64_t i) { return static_cast<float>(static_cast<int>((i * 2654435761u >> 7) % 15) - 7); }

bool ProductIsRight(int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
  const int64_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
  std::vector<float> a((ta ? k : m) * lda), b((tb ? n : k) * ldb), c(m * ldc, NAN);
  for (size_t i = 0; i < a.size(); ++i) a[i] = Value(i);
  for (size_t i = 0; i < b.size(); ++i) b[i] = Value(i + 977);
  Sgemm({ta, tb, m, n, k}, 1, a.data(), lda, b.data(), ldb, 0, c.data(), ldc);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a[ta ? p * lda + i : i * lda + p] * b[tb ? j * ldb + p : p * ldb + j];
      if (c[i * ldc + j] != sum) return false;
    }
    if (!std::isnan(c[i * ldc + n]) || !std::isnan(c[i * ldc + n + 1])) return false;
  }
  return true;
}

}  // namespace

BlasHealth CheckBlas() {
  UseOneBlasThread();
  for (const auto& [m, n, k] : kShapes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      if (!ProductIsRight(m, n, k, (transposes & 1) != 0, (transposes & 2) != 0)) return BlasHealth::kWrong;
    }
  }
  return BlasHealth::kGood;
}

BlasHealth CheckBlasInChild() {
  const pid_t child = fork();
  if (child < 0) return CheckBlas();  // no process to spare: better an unprotected check than none
  if (child == 0) _exit(CheckBlas() == BlasHealth::kGood ? 0 : 1);
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return BlasHealth::kCrashed;
  }
  if (!WIFEXITED(status)) return BlasHealth::kCrashed;
  return WEXITSTATUS(status) == 0 ? BlasHealth::kGood : BlasHealth::kWrong;
}

std::string BlasCoreName() { return openblas_get_corename(); }

std::string SafeBlasCoreName() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "Haswell" : "Nehalem";
#else
  return BlasCoreName();
#endif
}

absl::Status EnsureSafeBlas(char** argv) { return RestartWithSafeBlas(CheckBlasInChild(), argv); }

absl::Status RestartWithSafeBlas(BlasHealth health, char** argv) {
  if (health == BlasHealth::kGood) return absl::OkStatus();
  const char* what = health == BlasHealth::kWrong ? "computes wrong products" : "crashes";
  const std::string safe = SafeBlasCoreName();
  // The environment is OpenBLAS's only interface for this; it also guards against starting again for ever.
  const char* forced = std::getenv("OPENBLAS_CORETYPE");
  if (forced != nullptr && safe == forced) {
    return Internal("OpenBLAS ", what, " on this processor, even with OPENBLAS_CORETYPE=", safe,
                    "; install another version of libopenblas0");
  }
  if (setenv("OPENBLAS_CORETYPE", safe.c_str(), 1) != 0) return Internal("OPENBLAS_CORETYPE cannot be set");
  execv("/proc/self/exe", argv);
  return Internal("OpenBLAS ", what, " on this processor (core type ", BlasCoreName(),
                  ") and the program could not be started ", "again (", std::strerror(errno),
                  "); run it with OPENBLAS_CORETYPE=", safe);
}

}  // namespace hone
