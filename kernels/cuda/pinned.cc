#include "kernels/cuda/pinned.h"

#include <cuda_runtime_api.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "proto/base/status.h"

namespace hone::cuda {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;
// Below, one call to the driver is as quick.
constexpr uint64_t kLeastTouched = uint64_t{64} << 20;

class DriverBlock : public MemoryBlock {
 public:
  DriverBlock(void* data, uint64_t size) : data_(data), size_(size) {}
  ~DriverBlock() override { cudaFreeHost(data_); }
  void* data() const override { return data_; }
  uint64_t size() const override { return size_; }

 private:
  void* data_;
  uint64_t size_;
};

// Pages of our own, whole huge ones; locked by Register.
class MappedBlock : public MemoryBlock {
 public:
  static std::unique_ptr<MappedBlock> Create(uint64_t size) {
    const uint64_t mapped = (size + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
    void* base = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    return std::unique_ptr<MappedBlock>(new MappedBlock(base, mapped, size));
  }
  ~MappedBlock() override {
    if (registered_) cudaHostUnregister(data());
    ::munmap(base_, mapped_);
  }
  void* data() const override {
    const auto address = reinterpret_cast<uintptr_t>(base_);
    return reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
  }
  uint64_t size() const override { return size_; }

  void Touch() const {
    ::madvise(data(), size_, MADV_HUGEPAGE);  // where it does not help, small pages do
    cpu_set_t set;
    const int usable = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    const uint64_t threads = static_cast<uint64_t>(std::clamp(usable, 1, 16));
    const uint64_t part = (size_ / threads + kHugePage) / kHugePage * kHugePage;
    std::vector<std::jthread> helpers;
    for (uint64_t begin = 0; begin < size_; begin += part) {
      helpers.emplace_back([this, begin, end = std::min(size_, begin + part)] {
        constexpr uint64_t kPage = 4096;
        for (uint64_t at = begin; at < end; at += kPage) static_cast<volatile char*>(data())[at] = 0;
      });
    }
  }
  cudaError_t Register() {
    const cudaError_t error = cudaHostRegister(data(), size_, cudaHostRegisterDefault);
    registered_ = error == cudaSuccess;
    return error;
  }

 private:
  MappedBlock(void* base, uint64_t mapped, uint64_t size) : base_(base), mapped_(mapped), size_(size) {}
  void* base_;
  uint64_t mapped_, size_;
  bool registered_ = false;
};

// Whether kernels may read such memory under the host's address.
bool RegisteredMemoryHasOneAddress() {
  int device = 0, same = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&same, cudaDevAttrCanUseHostPointerForRegisteredMem, device) == cudaSuccess &&
         same == 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) {
  if (bytes >= kLeastTouched && RegisteredMemoryHasOneAddress()) {
    if (auto block = MappedBlock::Create(bytes); block != nullptr) {
      block->Touch();
      if (block->Register() == cudaSuccess) return block;
      cudaGetLastError();  // the driver's own way may do
    }
  }
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocDefault);
  if (error == cudaSuccess) return std::make_unique<DriverBlock>(data, bytes);
  cudaGetLastError();
  return ResourceExhausted("page-locking ", bytes, " bytes of host memory: ", cudaGetErrorString(error),
                           "; free memory, or raise the limit of locked memory (ulimit -l)");
}

}  // namespace hone::cuda
