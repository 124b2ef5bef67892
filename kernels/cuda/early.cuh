// Kernels of the decoding step, which are short: each may begin while its predecessor still runs (programmatic
// dependent launch, from compute capability 9.0 on; elsewhere these are ordinary launches). Such a kernel must wait, in
// every thread, before it reads or writes anything that an operation makes; frozen weights are there long before.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hone::cuda {

__device__ inline void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void WaitForEarlierKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// What a kernel that is only resident yet will read: into the L2 cache. 16-byte aligned, a multiple of 16 bytes.
__device__ inline void PrefetchToL2(const void* p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

// The same for the 128 bytes around p, by every thread for itself.
__device__ inline void PrefetchLineToL2(const void* p) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
#endif
}

struct Card {
  int processors = 1, shared_bytes = 0;  // shared memory of one
  bool starts_early = false;             // programmatic dependent launch is known there
};
inline Card CurrentCard() {
  Card card;
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&card.processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&card.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  card.starts_early = major >= 9;
  return card;
}
inline bool CardStartsEarly() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
}

template <typename... Parameters, typename... Arguments>
void LaunchEarly(bool starts_early, void (*kernel)(Parameters...), unsigned grid, unsigned threads, size_t shared_bytes,
                 cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = starts_early ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace hone::cuda
