// Runs every op case and the composite checks on the CUDA back end, in fp32 and bf16. A plain program, because it must
// run on bare GPU machines. Arguments: parts of names, of which a case has one (default: all); --figures prints the
// measured errors of passing cases; --small-tiles (--large-tiles) runs attention with the tiles of cards that have 99
// (160) KiB of shared memory a block; --cases leaves the composite checks out. Exit 77 where no card can be opened.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <vector>

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

struct Options {
  std::vector<std::string> parts;
  bool figures = false, cases_only = false;
  std::optional<cuda::AttentionProfile> attention;  // the card's own
};

bool Wanted(const std::string& name, const std::vector<std::string>& parts) {
  return parts.empty() || std::any_of(parts.begin(), parts.end(),
                                      [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

void RunCases(Backend& backend, const Options& options, Count& count) {
  for (const OpCase& op_case : AllOpCases()) {
    if (!Wanted(op_case.name, options.parts)) continue;
    const auto& ops = static_cast<const CudaOps&>(backend.ops());
    const int64_t plain_before = ops.plain_matmuls();
    std::string figures;
    const std::string failure = CheckOpCase(backend, op_case, &figures);
    ++count.run;
    count.plain += ops.plain_matmuls() != plain_before;
    if (!failure.empty()) {
      ++count.failed;
      std::printf("FAILED %s: %s\n", op_case.name.c_str(), failure.c_str());
    } else if (options.figures) {
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

int Run(const Options& options) {
  int failed = 0;
  for (const DType act : {DType::kF32, DType::kBF16}) {
    auto backend = OpenCuda({.device = 0, .activation_dtype = act});
    if (!backend.ok()) {
      std::printf("skipped: %s\n", std::string(ToStd(backend.status().message())).c_str());
      return 77;
    }
    if (options.attention) static_cast<CudaOps&>((*backend)->ops()).set_attention_profile(*options.attention);
    const char* name = act == DType::kF32 ? "fp32" : "bf16";
    std::printf("== %s, %s ==\n", (*backend)->name().c_str(), name);
    Count count;
    RunCases(**backend, options, count);
    if (!options.cases_only && options.parts.empty()) RunComposites(**backend, "", count);
    if (!options.cases_only) {
      for (const std::string& part : options.parts) RunComposites(**backend, part, count);
    }
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
  hone::Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--figures") == 0) {
      options.figures = true;
    } else if (std::strcmp(argv[i], "--small-tiles") == 0) {
      options.attention = hone::cuda::AttentionProfile::kSmall;
    } else if (std::strcmp(argv[i], "--large-tiles") == 0) {
      options.attention = hone::cuda::AttentionProfile::kLarge;
    } else if (std::strcmp(argv[i], "--cases") == 0) {
      options.cases_only = true;
    } else {
      options.parts.push_back(argv[i]);
    }
  }
  try {
    return hone::Run(options);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
}
