// Log-probabilities of the targets and, in place, their gradient by the logits. One block a row: a first pass keeps a
// running maximum and sum, a second one, backwards so that it meets what the cache still holds, writes onehot -
// softmax.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 1024;

// z = softcap * tanh(scale * x / softcap) and dz/dx.
struct Transform {
  float scale, softcap;
  __device__ float Value(float x) const {
    x *= scale;
    return softcap > 0 ? softcap * tanhf(x / softcap) : x;
  }
  __device__ float Slope(float z) const {
    const float t = softcap > 0 ? z / softcap : 0.0f;
    return scale * (1.0f - t * t);
  }
};

template <int V, bool kGradient, typename T>
__global__ void __launch_bounds__(kThreads)
    LogProbKernel(View<T> logits, int64_t width, const int32_t* targets, Transform transform, float* log_probs) {
  __shared__ float scratch[32];
  T* row = logits.At(blockIdx.x, 0);
  const int64_t target = targets[blockIdx.x];
  const int64_t stride = int64_t{kThreads} * V;
  float max = -INFINITY, sum = 0;
  for (int64_t at = int64_t{threadIdx.x} * V; at < width; at += stride) {
    float z[V];
    Load<V>(row + at, z);
    float top = max;
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = transform.Value(z[i]), top = fmaxf(top, z[i]);
    if (top > max) sum *= expf(max - top), max = top;
    if (max == -INFINITY) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) sum += expf(z[i] - max);
  }
  const float row_max = BlockMax(max, scratch);
  sum = BlockSum(max == -INFINITY ? 0.0f : sum * expf(max - row_max), scratch);
  const float log_sum = logf(sum);
  if (threadIdx.x == 0) {
    // A target outside the vocabulary has no probability; the caller sees it as NaN, not as a fault.
    const bool inside = target >= 0 && target < width;
    log_probs[blockIdx.x] = inside ? transform.Value(ToFloat(row[target])) - row_max - log_sum : NAN;
  }
  if constexpr (kGradient) {
    __syncthreads();  // thread 0 has read the target's logit
    const int64_t steps = (width + stride - 1) / stride;
    for (int64_t step = steps - 1; step >= 0; --step) {
      const int64_t at = step * stride + int64_t{threadIdx.x} * V;
      if (at >= width) continue;
      float z[V];
      Load<V>(row + at, z);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float value = transform.Value(z[i]);
        const float softmax = expf(value - row_max - log_sum);
        z[i] = ((at + i == target ? 1.0f : 0.0f) - softmax) * transform.Slope(value);
      }
      Store<V>(row + at, z);
    }
  }
}

template <int V, typename T>
void Launch(Tensor logits, Tensor targets, Transform transform, LogProbMode mode, Tensor log_probs,
            cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(logits.rows);
  if (mode == LogProbMode::kUnitGradient) {
    LogProbKernel<V, true, T><<<blocks, kThreads, 0, stream>>>(View<T>(logits), logits.cols, targets.as<int32_t>(),
                                                               transform, log_probs.as<float>());
  } else {
    LogProbKernel<V, false, T><<<blocks, kThreads, 0, stream>>>(View<T>(logits), logits.cols, targets.as<int32_t>(),
                                                                transform, log_probs.as<float>());
  }
}

}  // namespace

void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode, Tensor log_probs,
             cudaStream_t stream) {
  WithType(logits.dtype, [&](auto t) {
    using T = decltype(t);
    const Transform on_device{transform.scale, transform.softcap};
    if (Vectorises(logits)) {
      Launch<8, T>(logits, targets, on_device, mode, log_probs, stream);
    } else {
      Launch<1, T>(logits, targets, on_device, mode, log_probs, stream);
    }
  });
}

}  // namespace hone::cuda
