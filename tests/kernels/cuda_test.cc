// Runs every op case and the composite checks on the CUDA back end, in fp32 and bf16. A plain program, because it must
// run on bare GPU machines. Arguments: part of a case's name (default: all); --figures prints the measured errors of
// passing cases; --small-tiles runs attention with the tiles of cards that have 99 KiB of shared memory a block. Exit
// 77 where no card can be opened.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_ops.h"
#include "proto/base/status.h"
#include "tests/kernels/cuda_composites.h"
#include "tests/kernels/op_case.h"

namespace hone {
namespace {

struct Count {
  int run = 0, failed = 0, plain = 0;
};

void RunCases(Backend& backend, const std::string& part, bool print_figures, Count& count) {
  for (const OpCase& op_case : AllOpCases()) {
    if (op_case.name.find(part) == std::string::npos) continue;
    const auto& ops = static_cast<const CudaOps&>(backend.ops());
    const int64_t plain_before = ops.plain_matmuls();
    std::string figures;
    const std::string failure = CheckOpCase(backend, op_case, &figures);
    ++count.run;
    count.plain += ops.plain_matmuls() != plain_before;
    if (!failure.empty()) {
      ++count.failed;
      std::printf("FAILED %s: %s\n", op_case.name.c_str(), failure.c_str());
    } else if (print_figures) {
      std::printf("ok     %s: %s\n", op_case.name.c_str(), figures.c_str());
    }
  }
}

void RunComposites(Backend& backend, const std::string& part, Count& count) {
  for (const CompositeResult& result : RunComposites(backend, part)) {
    ++count.run;
    count.failed += !result.passed;
    std::printf("%s %s: %s\n", result.passed ? "ok    " : "FAILED", result.name.c_str(), result.detail.c_str());
  }
}

int Run(const std::string& part, bool print_figures, bool small_tiles) {
  int failed = 0;
  for (const DType act : {DType::kF32, DType::kBF16}) {
    auto backend = OpenCuda({.device = 0, .activation_dtype = act});
    if (!backend.ok()) {
      std::printf("skipped: %s\n", std::string(ToStd(backend.status().message())).c_str());
      return 77;
    }
    if (small_tiles) static_cast<CudaOps&>((*backend)->ops()).set_attention_profile(cuda::AttentionProfile::kSmall);
    const char* name = act == DType::kF32 ? "fp32" : "bf16";
    std::printf("== %s, %s ==\n", (*backend)->name().c_str(), name);
    Count count;
    RunCases(**backend, part, print_figures, count);
    RunComposites(**backend, part, count);
    std::printf("%s: %d checks, %d failed; %d cases took the plain product instead of cuBLASLt\n", name, count.run,
                count.failed, count.plain);
    failed += count.failed;
  }
  std::printf(failed == 0 ? "PASSED\n" : "FAILED: %d\n", failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  std::string part;
  bool figures = false, small_tiles = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--figures") == 0) {
      figures = true;
    } else if (std::strcmp(argv[i], "--small-tiles") == 0) {
      small_tiles = true;
    } else {
      part = argv[i];
    }
  }
  try {
    return hone::Run(part, figures, small_tiles);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
}
