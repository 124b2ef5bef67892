// Copies between the card and pinned host memory on a stream of their own, so that they run beside the kernels of the
// main stream. In the order they are started; see Ops::StartOffload for what waits for what.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "kernels/ops.h"

namespace hone::cuda {

class Transfers {
 public:
  explicit Transfers(cudaStream_t main);
  ~Transfers();  // waits for the last copy
  Transfers(const Transfers&) = delete;
  Transfers& operator=(const Transfers&) = delete;

  // Begins when all that is enqueued on the main stream has ended. `to` or `from` is pinned.
  void Start(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, int slot);
  // The main stream waits for the slot's last copy; nothing if there was none.
  void Finish(int slot);
  void Synchronize();  // the host waits for all copies

 private:
  cudaStream_t main_, stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  std::array<cudaEvent_t, kTransferSlots> end_{};
  std::array<bool, kTransferSlots> pending_{};  // since the slot's last Finish
};

}  // namespace hone::cuda
