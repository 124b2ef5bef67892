#include "kernels/cuda/transfers.h"

#include "proto/base/status.h"

namespace hone::cuda {
namespace {

void Require(cudaError_t error, const char* what) {
  HONE_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace

Transfers::Transfers(cudaStream_t main) : main_(main) {
  Require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "the transfer stream");
  Require(cudaEventCreateWithFlags(&begin_, cudaEventDisableTiming), "a transfer's event");
  for (cudaEvent_t& event : end_) {
    Require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "a transfer's event");
  }
}

Transfers::~Transfers() {
  cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : end_) cudaEventDestroy(event);
  cudaEventDestroy(begin_);
  cudaStreamDestroy(stream_);
}

void Transfers::Start(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, int slot) {
  // A wait takes the event as it was last recorded when it is enqueued, so one event serves every start.
  Require(cudaEventRecord(begin_, main_), "a transfer's start");
  Require(cudaStreamWaitEvent(stream_, begin_), "a transfer's start");
  Require(cudaMemcpyAsync(to, from, bytes, kind, stream_), "a transfer");
  Require(cudaEventRecord(end_[slot], stream_), "a transfer's end");
  pending_[slot] = true;
}

void Transfers::Finish(int slot) {
  if (!pending_[slot]) return;
  Require(cudaStreamWaitEvent(main_, end_[slot]), "waiting for a transfer");
  pending_[slot] = false;
}

void Transfers::Synchronize() { Require(cudaStreamSynchronize(stream_), "waiting for transfers"); }

}  // namespace hone::cuda
