// The optimiser over flat fp32 vectors. The sum of squares is taken in an order that depends on the length alone.
#include <algorithm>

#include "kernels/cuda/budget.h"
#include "kernels/cuda/device.cuh"
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
    const StepParams s = *step;
    const float clip = s.max_grad_norm > 0 ? fminf(1.0f, s.max_grad_norm / (sqrtf(*sum_squares) + 1e-6f)) : 1.0f;
    const float rate = s.learning_rate / s.bias_correction1;
    const float root_bias2 = sqrtf(s.bias_correction2);
    float p[V], g[V], first[V], second[V];
    Load<V>(param.At(row, col), p);
    Load<V>(grad.At(row, col), g);
    Load<V>(m.At(row, col), first);
    Load<V>(v.At(row, col), second);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float gradient = clip * g[i];
      p[i] -= s.learning_rate * c.weight_decay * p[i];
      first[i] = c.beta1 * first[i] + (1.0f - c.beta1) * gradient;
      second[i] = c.beta2 * second[i] + (1.0f - c.beta2) * gradient * gradient;
      p[i] -= rate * first[i] / (sqrtf(second[i]) / root_bias2 + c.eps);
    }
    Store<V>(param.At(row, col), p);
    Store<V>(m.At(row, col), first);
    Store<V>(v.At(row, col), second);
  }
};

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

}  // namespace hone::cuda
