// Where operations run and memory lies: one backend per worker. Memory is reserved once, in STARTING, from the plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
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
  virtual std::string name() const = 0;              // "cpu (2 threads)", "NVIDIA GeForce RTX 3090"
  virtual std::string driver() const { return {}; }  // version of the card's driver, "580.82.07"; empty: none
  virtual uint64_t FreeBytes() const = 0;
  virtual absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) = 0;
  // Host memory that transfers can reach and operations can read (an embedding table); page-locked where that matters.
  virtual absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) = 0;
  // Device memory that this process holds by the driver's account, context included; 0: unknown (CPU).
  virtual uint64_t ProcessBytes() const { return 0; }
  // Between the two calls results are worthless: products time their candidates, kernels and libraries load. After
  // EndWarmUp nothing is allocated or loaded any more for shapes that were seen.
  virtual void BeginWarmUp() {}
  virtual void EndWarmUp() {}
  // Tests alone: does what nobody may, so that what uses the backend next meets an error that stays (CUDA: a kernel
  // writes where nothing is mapped). An error where a backend has no such thing.
  virtual absl::Status BreakForTests() { return absl::UnimplementedError("this backend has no error that stays"); }
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
  std::string tuning_cache;  // file that keeps what warm-ups found on this card; empty: none
};
bool CudaBuilt();  // whether this build holds the CUDA back end
// The card's name, or why OpenCuda would fail, as far as can be said without a context on the card; cheap.
absl::StatusOr<std::string> CudaCardName(int device = 0);
// The card as the driver tells without a context on it: nothing of it is used. Empty and 0 where it does not say.
struct CudaCard {
  std::string name, driver;
  uint64_t free_bytes = 0;
};
absl::StatusOr<CudaCard> DescribeCuda(int device = 0);
absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(const CudaOptions& options = {});

}  // namespace hone
