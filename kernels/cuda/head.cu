// Log-probabilities of the targets and, in place, their gradient by the logits. One block a row. A first pass keeps a
// running maximum and sum; a second writes onehot - softmax. What fits of the row stays in shared memory in between
// (227 KiB of a 250 KiB row of 128 k bf16 logits on Hopper), so that memory sees the row once each way.
#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

// Threads of an SM. Rows that leave room take half of them, so that one block reads while another writes.
constexpr int kMostThreads = 1024;

// e^x. The tensors that carry bf16 take the hardware's approximation (2^-22 relative), fp32 the accurate function.
template <typename T>
__device__ inline float Exp(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}

// tanh by the hardware's exponential for bf16 (absolute error 2^-21), accurate for fp32. Nothing is fused: a logit has
// the same bits wherever it is transformed.
template <typename T>
__device__ inline float Tanh(float x) {
  if (sizeof(T) != 2) return tanhf(x);
  return __fsub_rn(1.0f, __fdividef(2.0f, __fadd_rn(1.0f, __expf(__fmul_rn(2.0f, x)))));
}

// z = softcap * tanh(scale * x / softcap) and dz/dx, for logits stored as T.
template <bool kSoftcap, typename T>
struct Transform {
  float scale, softcap, inverse;
  __device__ float Value(float x) const {
    // Never fused into what is done with the value: log p of a sure thing is exactly 0.
    x = __fmul_rn(x, scale);
    return kSoftcap ? __fmul_rn(softcap, Tanh<T>(__fmul_rn(x, inverse))) : x;
  }
  __device__ float Slope(float z) const {
    if (!kSoftcap) return scale;
    const float t = z * inverse;
    return scale * (1.0f - t * t);
  }
};

template <int V, typename T>
struct alignas(V * sizeof(T)) Raw {
  T v[V];
};

template <int V, bool kSoftcap, typename T>
__device__ inline void AddToSum(const Raw<V, T>& raw, const Transform<kSoftcap, T>& transform, float& max, float& sum) {
  float z[V], top = max;
#pragma unroll
  for (int i = 0; i < V; ++i) z[i] = transform.Value(ToFloat(raw.v[i])), top = fmaxf(top, z[i]);
  if (top > max) sum *= Exp<T>(max - top), max = top;
  if (max == -INFINITY) return;
#pragma unroll
  for (int i = 0; i < V; ++i) sum += Exp<T>(z[i] - max);
}

template <int V, bool kSoftcap, typename T>
__device__ inline Raw<V, T> Gradient(Raw<V, T> raw, const Transform<kSoftcap, T>& transform, float shift, int target) {
  float slopes[V], gradient[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float z = transform.Value(ToFloat(raw.v[i]));
    slopes[i] = transform.Slope(z);
    gradient[i] = -Exp<T>(z - shift) * slopes[i];
  }
  if (target >= 0 && target < V) {
#pragma unroll
    for (int i = 0; i < V; ++i) gradient[i] += i == target ? slopes[i] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) raw.v[i] = FromFloat<T>(gradient[i]);
  return raw;
}

// Elements [0, cached) of the row stay in shared memory, the next kKept vectors of every thread in registers.
template <int V, bool kGradient, int kThreads, bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, kMostThreads / kThreads)
    LogProbKernel(View<T> logits, int width, int cached, const int32_t* targets, Transform<kSoftcap, T> transform,
                  float* log_probs) {
  using Vector = Raw<V, T>;
  constexpr int kKept = kGradient && kThreads == kMostThreads ? 2 : 0, kInFlight = kGradient ? 2 : 1;
  constexpr int kStride = kThreads * V;
  extern __shared__ uint4 cache_memory[];
  Vector* cache = reinterpret_cast<Vector*>(cache_memory);
  __shared__ float scratch[32];
  T* row = logits.At(blockIdx.x, 0);
  const int target = targets[blockIdx.x], mine = static_cast<int>(threadIdx.x) * V;
  // A target outside the vocabulary has no probability; the caller sees it as NaN, not as a fault.
  const bool inside = target >= 0 && target < width;
  const float target_logit = threadIdx.x == 0 && inside ? ToFloat(row[target]) : 0.0f;
  Vector kept[kKept + 1];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int at = cached + j * kStride + mine;
    if (at < width) kept[j] = *reinterpret_cast<const Vector*>(row + at);
  }
  float max = -INFINITY, sum = 0;
  const auto add_range = [&](int begin, int end) {
    for (int base = begin + mine; base < end; base += kStride * kInFlight) {
      Vector raw[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int at = base + j * kStride;
        if (at < end) raw[j] = *reinterpret_cast<const Vector*>(row + at);
      }
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        const int at = base + j * kStride;
        if (at >= end) break;
        if (kGradient && at < cached) cache[at / V] = raw[j];
        AddToSum<V>(raw[j], transform, max, sum);
      }
    }
  };
  add_range(0, kGradient ? cached : width);
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (cached + j * kStride + mine < width) AddToSum<V>(kept[j], transform, max, sum);
  }
  if (kGradient) add_range(cached + kKept * kStride, width);

  const float row_max = BlockMax(max, scratch);
  sum = BlockSum(max == -INFINITY ? 0.0f : sum * Exp<T>(max - row_max), scratch);
  const float log_sum = logf(sum);
  if (threadIdx.x == 0) log_probs[blockIdx.x] = inside ? transform.Value(target_logit) - row_max - log_sum : NAN;
  if constexpr (kGradient) {
    const float shift = row_max + log_sum;
    const auto write = [&](int at, const Vector& raw) {
      *reinterpret_cast<Vector*>(row + at) = Gradient<V>(raw, transform, shift, target - at);
    };
    for (int at = mine; at < cached; at += kStride) write(at, cache[at / V]);
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int at = cached + j * kStride + mine;
      if (at < width) write(at, kept[j]);
    }
    for (int at = cached + kKept * kStride + mine; at < width; at += kStride) {
      write(at, *reinterpret_cast<const Vector*>(row + at));
    }
  }
}

// Shared memory that one block may take beside the kernel's own (and the system's).
int SharedBytes() {
  constexpr int kStatic = 1024;
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most - kStatic;
}

template <int V, int kThreads, typename T, bool kSoftcap>
void LaunchGradient(Tensor logits, Tensor targets, Transform<kSoftcap, T> transform, int cached, Tensor log_probs,
                    cudaStream_t stream) {
  const auto kernel = LogProbKernel<V, true, kThreads, kSoftcap, T>;
  const int bytes = (cached * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<static_cast<unsigned>(logits.rows), kThreads, static_cast<size_t>(bytes), stream>>>(
      View<T>(logits), static_cast<int>(logits.cols), cached, targets.as<int32_t>(), transform, log_probs.as<float>());
}

template <int V, typename T, bool kSoftcap>
void Launch(Tensor logits, Tensor targets, Transform<kSoftcap, T> transform, LogProbMode mode, Tensor log_probs,
            cudaStream_t stream) {
  const int width = static_cast<int>(logits.cols);  // a vocabulary: far below 2^31
  // Both modes give a thread the same elements in the same order, so that log p has the same bits: what is cached ends
  // at a whole number of strides.
  const int shared = SharedBytes(), row = width * static_cast<int>(sizeof(T));
  const bool half = row <= shared / 2 - 1024;
  if (mode == LogProbMode::kLogProbOnly) {
    const auto kernel = half ? LogProbKernel<V, false, kMostThreads / 2, kSoftcap, T>
                             : LogProbKernel<V, false, kMostThreads, kSoftcap, T>;
    kernel<<<static_cast<unsigned>(logits.rows), half ? kMostThreads / 2 : kMostThreads, 0, stream>>>(
        View<T>(logits), width, 0, targets.as<int32_t>(), transform, log_probs.as<float>());
    return;
  }
  if (half) {
    LaunchGradient<V, kMostThreads / 2, T>(logits, targets, transform, width, log_probs, stream);
  } else {
    constexpr int kStride = kMostThreads * V;
    const int cached = std::min(width, shared / static_cast<int>(sizeof(T)) / kStride * kStride);
    LaunchGradient<V, kMostThreads, T>(logits, targets, transform, cached, log_probs, stream);
  }
}

}  // namespace

void LogProb(Tensor logits, Tensor targets, const LogitTransform& transform, LogProbMode mode, Tensor log_probs,
             cudaStream_t stream) {
  WithType(logits.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = 16 / sizeof(T);
    const auto launch = [&](auto on_device) {
      if (Vectorises(logits)) {
        Launch<V, T>(logits, targets, on_device, mode, log_probs, stream);
      } else {
        Launch<1, T>(logits, targets, on_device, mode, log_probs, stream);
      }
    };
    if (transform.softcap > 0) {
      launch(Transform<true, T>{transform.scale, transform.softcap, 1.0f / transform.softcap});
    } else {
      launch(Transform<false, T>{transform.scale, 0, 0});
    }
  });
}

}  // namespace hone::cuda
