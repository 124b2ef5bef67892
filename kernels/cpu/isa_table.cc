// Chooses the copy of the inner loops that this processor runs.
#include "kernels/cpu/isa/kernels.h"

namespace hone {
namespace {

#define HONE_MAKE_TABLE(set)           \
  CpuKernels Make_##set() {            \
    CpuKernels kernels{};              \
    kernels.name = #set;               \
    isa::set::AddDecode(kernels);      \
    isa::set::AddElementwise(kernels); \
    isa::set::AddHead(kernels);        \
    isa::set::AddAttention(kernels);   \
    isa::set::AddSkinny(kernels);      \
    return kernels;                    \
  }
HONE_MAKE_TABLE(base)
#if defined(__x86_64__)
HONE_MAKE_TABLE(avx2)
HONE_MAKE_TABLE(avx512)
#endif

}  // namespace

std::span<const CpuKernels> CpuKernelSets() {
#if defined(__x86_64__)
  static const CpuKernels kSets[] = {Make_base(), Make_avx2(), Make_avx512()};
  // x86-64-v3 and -v4, as far as the compiler may use them.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  return {kSets, avx512 ? size_t{3} : avx2 ? size_t{2} : size_t{1}};
#else
  static const CpuKernels kSets[] = {Make_base()};
  return kSets;
#endif
}

const CpuKernels& BestCpuKernels() { return CpuKernelSets().back(); }

}  // namespace hone
