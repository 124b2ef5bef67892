#include "kernels/cuda/probe.h"

#include <cstdint>

namespace hone::cuda {
namespace {
__global__ void Probe() {}
__global__ void IllegalWrite(int* nowhere) { *nowhere = 1; }
}  // namespace

cudaError_t ProbeKernelImage() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, Probe);
}

void LaunchIllegalWrite(cudaStream_t stream) {
  constexpr uintptr_t kUnmapped = uintptr_t{1} << 44;  // 4-byte aligned: a misaligned address is another error
  IllegalWrite<<<1, 1, 0, stream>>>(reinterpret_cast<int*>(kUnmapped));
}

}  // namespace hone::cuda
