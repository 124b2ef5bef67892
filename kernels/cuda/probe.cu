#include "kernels/cuda/probe.h"

namespace hone::cuda {
namespace {
__global__ void Probe() {}
}  // namespace

cudaError_t ProbeKernelImage() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, Probe);
}

}  // namespace hone::cuda
