// Whether the OpenBLAS that this process loaded multiplies correctly here. Debian's 0.3.21 picks its kernels by
// processor at load and is known to compute wrong results or crash on some processors newer than it. The core type can
// be changed only before the library loads, so the remedy is to start again with OPENBLAS_CORETYPE set.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace hone {

enum class BlasHealth { kGood, kWrong, kCrashed };

// A few odd-shaped products against plain loops, in this process (about 10 ms). Never kCrashed: a crash is a crash.
BlasHealth CheckBlas();
// The same in a forked child, so that an illegal instruction is survived. Call before starting threads.
BlasHealth CheckBlasInChild();

std::string BlasCoreName();      // "SkylakeX": the kernels in use, for `doctor`
std::string SafeBlasCoreName();  // "Haswell", or "Nehalem" where there is no AVX2

// The first thing in a program's main that computes: OK if BLAS is sound. Otherwise it starts the program again
// (/proc/self/exe, same argv) with OPENBLAS_CORETYPE = SafeBlasCoreName() and does not return; an error if that core
// type was already in use or the program cannot be started again.
absl::Status EnsureSafeBlas(char** argv);
// Its second half, for a health already known (kGood: OK at once).
absl::Status RestartWithSafeBlas(BlasHealth health, char** argv);

}  // namespace hone
