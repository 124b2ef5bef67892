// Where operations run and memory lies: one backend per worker. Memory is reserved once, in STARTING, from the plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace hone {

// Owns one range of device (CPU: host) memory, aligned to kArenaAlignment.
class MemoryBlock {
 public:
  virtual ~MemoryBlock() = default;
  virtual void* data() const = 0;
  virtual uint64_t size() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Ops& ops() = 0;
  virtual std::string name() const = 0;  // "cpu (2 threads)", "NVIDIA GeForce RTX 3090"
  virtual uint64_t FreeBytes() const = 0;
  virtual absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) = 0;
};

struct CpuOptions {
  int threads = 0;  // 0: all that this process may use
};
// Constant memory that an Ops keeps for itself, reserved when it is opened; part of every plan ("context").
uint64_t CpuWorkspaceBytes(int threads);
absl::StatusOr<std::unique_ptr<Backend>> OpenCpu(const CpuOptions& options = {});

struct CudaOptions {
  int device = 0;
  DType activation_dtype = DType::kBF16;
};
bool CudaBuilt();  // whether this build holds the CUDA back end
absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(const CudaOptions& options = {});

}  // namespace hone
