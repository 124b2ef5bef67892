// What the CUDA back end keeps for itself, as constants a plan can use on a machine without CUDA. Not here: the CUDA
// context and the libraries' own memory (the plan's table of cards), nor anything that grows with a shape: no operation
// has scratch beyond these.
#pragma once

#include <cstdint>

namespace hone {

inline constexpr uint64_t kCudaGemmWorkspaceBytes = uint64_t{32} << 20;  // cuBLASLt; NVIDIA advises 32 MiB on Hopper
inline constexpr int kCudaReductionBlocks = 1024;                        // partial sums of SumSquares, fp32
inline constexpr uint64_t kCudaReductionBytes = uint64_t{kCudaReductionBlocks} * 4;
inline constexpr uint64_t kCudaTicketBytes = 16 << 10;  // which block of a narrow product's tile ends last; zero
inline constexpr uint64_t kCudaWorkspaceBytes = kCudaGemmWorkspaceBytes + kCudaReductionBytes + kCudaTicketBytes;

inline constexpr int64_t kCudaMaxHeadDim = 256;  // attention's shared-memory tiles end there

}  // namespace hone
