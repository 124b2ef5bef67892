// Where each document of a call lies: cuDNN reads element offsets and lengths from the device. One block a call picks
// the class's documents from the segments, in packed order. Not here: which calls there are (cudnn_budget.h).
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/cudnn_budget.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostCalls = 32;  // a launch

struct Calls {
  struct Call {
    int shortest, longest, skip, documents, batch;
    char* at;
  } call[kMostCalls];
  int64_t pitches[kCudnnOffsetArrays];
};

__device__ inline void WriteRow(const Calls::Call& call, const int64_t (&pitches)[kCudnnOffsetArrays], int place,
                                int64_t row) {
  const int stride = (call.batch + 2) / 2 * 2;
  int64_t* offsets = reinterpret_cast<int64_t*>(call.at);
#pragma unroll
  for (int i = 0; i < kCudnnOffsetArrays; ++i) offsets[i * stride + place] = row * pitches[i];
}

__device__ inline int* Lengths(const Calls::Call& call) {
  return reinterpret_cast<int*>(call.at + int64_t{kCudnnOffsetArrays} * ((call.batch + 2) / 2 * 2) * 8);
}

__global__ void __launch_bounds__(kThreads) Offsets(const Segment* segments, int count, Calls calls) {
  const Calls::Call call = calls.call[blockIdx.x];
  __shared__ int warps[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int before = 0;  // documents of the class in earlier rounds
  for (int first = 0; first < count; first += kThreads) {
    const int index = first + static_cast<int>(threadIdx.x);
    Segment s{};
    if (index < count) s = segments[index];
    const bool mine = index < count && s.q_len >= call.shortest && s.q_len <= call.longest;
    const unsigned votes = __ballot_sync(~0u, mine);
    if (lane == 0) warps[warp] = __popc(votes);
    __syncthreads();
    int rank = before + __popc(votes & ((1u << lane) - 1)) - call.skip, round = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) rank += warps[w];
      round += warps[w];
    }
    if (mine && rank >= 0 && rank < call.documents) {
      WriteRow(call, calls.pitches, rank, s.q0);
      Lengths(call)[rank] = s.q_len;
      if (rank == call.documents - 1) {  // what follows is empty and begins where the last one ends
        for (int place = call.documents; place <= call.batch; ++place) {
          WriteRow(call, calls.pitches, place, int64_t{s.q0} + s.q_len);
          if (place < call.batch) Lengths(call)[place] = 0;
        }
      }
    }
    before += round;
    __syncthreads();
  }
}

}  // namespace

void CudnnOffsets(Tensor segments, std::span<const CudnnCall> calls, const std::array<int64_t, 8>& pitches,
                  void* workspace, cudaStream_t stream) {
  for (size_t first = 0; first < calls.size(); first += kMostCalls) {
    const size_t count = std::min<size_t>(kMostCalls, calls.size() - first);
    Calls out{};
    for (size_t i = 0; i < count; ++i) {
      const CudnnCall& c = calls[first + i];
      out.call[i] = {static_cast<int>(c.shortest),  static_cast<int>(c.longest), static_cast<int>(c.skip),
                     static_cast<int>(c.documents), static_cast<int>(c.batch),   static_cast<char*>(workspace) + c.offsets_at};
    }
    for (int i = 0; i < kCudnnOffsetArrays; ++i) out.pitches[i] = pitches[static_cast<size_t>(i)];
    Offsets<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(segments.as<Segment>(), static_cast<int>(segments.rows),
                                                                   out);
  }
}

}  // namespace hone::cuda
