// The optimiser over flat fp32 vectors. The sum of squares is taken in an order that depends on the length alone.
#include <algorithm>

#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/dynamic_map.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) SumSquaresParts(const float* x, int64_t count, float* partials) {
  __shared__ float scratch[32];
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  float sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) sum += x[i] * x[i];
  sum = BlockSum(sum, scratch);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) SumParts(const float* partials, int count, float* out) {
  __shared__ float scratch[32];
  float sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = BlockSum(sum, scratch);
  if (threadIdx.x == 0) *out = sum;
}

// What all elements of one step share.
struct AdamWFactors {
  float clip, rate, decay, root_bias2;
  AdamWConstants c;
  __device__ AdamWFactors(const StepParams& s, float sum_squares, const AdamWConstants& constants)
      : clip(s.max_grad_norm > 0 ? fminf(1.0f, s.max_grad_norm / (sqrtf(sum_squares) + 1e-6f)) : 1.0f),
        rate(s.learning_rate / s.bias_correction1),
        decay(s.learning_rate * constants.weight_decay),
        root_bias2(sqrtf(s.bias_correction2)),
        c(constants) {}
  __device__ void Update(float& param, float grad, float& m, float& v) const {
    const float gradient = clip * grad;
    param -= decay * param;
    m = c.beta1 * m + (1.0f - c.beta1) * gradient;
    v = c.beta2 * v + (1.0f - c.beta2) * gradient * gradient;
    param -= rate * m / (sqrtf(v) / root_bias2 + c.eps);
  }
};

struct AdamWBody {
  View<float> param, grad, m, v;
  const float* sum_squares;
  const StepParams* step;
  AdamWConstants c;
  void Shift(int64_t rows) {
    param.data += rows * param.pitch, grad.data += rows * grad.pitch, m.data += rows * m.pitch,
        v.data += rows * v.pitch;
  }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    const AdamWFactors factors(*step, *sum_squares, c);
    float p[V], g[V], first[V], second[V];
    Load<V>(param.At(row, col), p);
    Load<V>(grad.At(row, col), g);
    Load<V>(m.At(row, col), first);
    Load<V>(v.At(row, col), second);
#pragma unroll
    for (int i = 0; i < V; ++i) factors.Update(p[i], g[i], first[i], second[i]);
    Store<V>(param.At(row, col), p);
    Store<V>(m.At(row, col), first);
    Store<V>(v.At(row, col), second);
  }
};

struct AdamW8bitArguments {
  float *param, *m_absmax, *v_absmax;
  const float *grad, *sum_squares;
  uint8_t *m, *v;
  const StepParams* step;
  AdamWConstants constants;
  int64_t count;
  bool aligned;
};

__device__ inline void LoadCodes(const uint8_t* codes, const float* map, float scale, float (&out)[8]) {
  const uint2 raw = *reinterpret_cast<const uint2*>(codes);
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = map[(i < 4 ? raw.x : raw.y) >> (i % 4 * 8) & 255] * scale;
}

__device__ inline void StoreCodes(uint8_t* codes, const float* map, float largest, const float (&values)[8]) {
  const float inverse = largest == 0 ? 0.0f : __frcp_rn(largest);
  uint2 raw = make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    (i < 4 ? raw.x : raw.y) |= static_cast<uint32_t>(NearestCode(values[i] * inverse, map)) << (i % 4 * 8);
  }
  *reinterpret_cast<uint2*>(codes) = raw;
}

// A warp a block of kOptimizerBlockSize elements, eight a lane.
__global__ void __launch_bounds__(kThreads)
    AdamW8bitKernel(AdamW8bitArguments a, const __grid_constant__ DynamicMap256 m_values,
                    const __grid_constant__ DynamicMap256 v_values) {
  static_assert(kOptimizerBlockSize == 32 * 8 && kThreads == 256);
  __shared__ float m_map[256], v_map[256];
  m_map[threadIdx.x] = m_values.v[threadIdx.x];
  v_map[threadIdx.x] = v_values.v[threadIdx.x];
  __syncthreads();
  const int64_t block = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int64_t first = block * kOptimizerBlockSize + threadIdx.x % 32 * 8;
  if (block * kOptimizerBlockSize >= a.count) return;  // whole warps
  const AdamWFactors factors(*a.step, *a.sum_squares, a.constants);
  const float m_scale = a.m_absmax[block], v_scale = a.v_absmax[block];
  const bool whole = a.aligned && first + 8 <= a.count;
  float p[8], g[8], m[8], v[8];
  if (whole) {
    Load<8>(a.param + first, p);
    Load<8>(a.grad + first, g);
    LoadCodes(a.m + first, m_map, m_scale, m);
    LoadCodes(a.v + first, v_map, v_scale, v);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool inside = first + i < a.count;
      p[i] = inside ? a.param[first + i] : 0.0f;
      g[i] = inside ? a.grad[first + i] : 0.0f;
      m[i] = inside ? m_map[a.m[first + i]] * m_scale : 0.0f;
      v[i] = inside ? v_map[a.v[first + i]] * v_scale : 0.0f;
    }
  }
  float m_largest = 0, v_largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    factors.Update(p[i], g[i], m[i], v[i]);
    m_largest = fmaxf(m_largest, fabsf(m[i])), v_largest = fmaxf(v_largest, v[i]);
  }
  m_largest = WarpMax(m_largest), v_largest = WarpMax(v_largest);
  if (threadIdx.x % 32 == 0) a.m_absmax[block] = m_largest, a.v_absmax[block] = v_largest;
  if (whole) {
    Store<8>(a.param + first, p);
    StoreCodes(a.m + first, m_map, m_largest, m);
    StoreCodes(a.v + first, v_map, v_largest, v);
    return;
  }
  const float m_inverse = m_largest == 0 ? 0.0f : __frcp_rn(m_largest);
  const float v_inverse = v_largest == 0 ? 0.0f : __frcp_rn(v_largest);
  for (int i = 0; i < 8 && first + i < a.count; ++i) {
    a.param[first + i] = p[i];
    a.m[first + i] = NearestCode(m[i] * m_inverse, m_map);
    a.v[first + i] = NearestCode(v[i] * v_inverse, v_map);
  }
}

}  // namespace

void SumSquares(Tensor x, float* partials, Tensor out, cudaStream_t stream) {
  const int64_t count = x.rows * x.cols;
  const int blocks =
      static_cast<int>(std::clamp<int64_t>((count + kThreads * 4 - 1) / (kThreads * 4), 1, kCudaReductionBlocks));
  SumSquaresParts<<<blocks, kThreads, 0, stream>>>(x.as<float>(), count, partials);
  SumParts<<<1, kThreads, 0, stream>>>(partials, blocks, out.as<float>());
}

void AdamW(Tensor param, Tensor grad, Tensor m, Tensor v, Tensor sum_squares, Tensor step,
           const AdamWConstants& constants, cudaStream_t stream) {
  AdamWBody body;
  body.param = View<float>(param), body.grad = View<float>(grad), body.m = View<float>(m), body.v = View<float>(v);
  body.sum_squares = sum_squares.as<float>(), body.step = step.as<StepParams>(), body.c = constants;
  LaunchRows<4>(param.rows, param.cols, Vectorises(param) && Vectorises(grad) && Vectorises(m) && Vectorises(v), body,
                stream);
}

void AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax, Tensor sum_squares,
               Tensor step, const AdamWConstants& constants, cudaStream_t stream) {
  const auto on = [](Tensor t, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(t.data) % bytes == 0; };
  const AdamW8bitArguments arguments{.param = param.as<float>(),
                                     .m_absmax = m_absmax.as<float>(),
                                     .v_absmax = v_absmax.as<float>(),
                                     .grad = grad.as<float>(),
                                     .sum_squares = sum_squares.as<float>(),
                                     .m = m.as<uint8_t>(),
                                     .v = v.as<uint8_t>(),
                                     .step = step.as<StepParams>(),
                                     .constants = constants,
                                     .count = param.elements(),
                                     .aligned = on(param, 16) && on(grad, 16) && on(m, 8) && on(v, 8)};
  const int64_t blocks = m_absmax.cols, per_thread_block = kThreads / 32;
  AdamW8bitKernel<<<static_cast<unsigned>((blocks + per_thread_block - 1) / per_thread_block), kThreads, 0, stream>>>(
      arguments, DynamicMap256(SignedDynamicMap()), DynamicMap256(UnsignedDynamicMap()));
}

}  // namespace hone::cuda
