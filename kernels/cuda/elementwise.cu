// Element-wise operations: sums, biases, row factors, rotary position, gated units. Each reads and writes every element
// once, in fp32 between one load and one rounding.
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

template <typename T>
struct AddBody {
  View<T> x, y;
  void Shift(int64_t rows) { x.data += rows * x.pitch, y.data += rows * y.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float a[V], b[V];
    Load<V>(x.At(row, col), a);
    Load<V>(y.At(row, col), b);
#pragma unroll
    for (int i = 0; i < V; ++i) b[i] += a[i];
    Store<V>(y.At(row, col), b);
  }
};

template <typename B, typename T>
struct AddBiasBody {
  const B* bias;
  View<T> y;
  void Shift(int64_t rows) { y.data += rows * y.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float a[V], b[V];
    Load<V>(bias + col, a);
    Load<V>(y.At(row, col), b);
#pragma unroll
    for (int i = 0; i < V; ++i) b[i] += a[i];
    Store<V>(y.At(row, col), b);
  }
};

template <typename T>
struct ScaleRowsBody {
  View<T> x;
  const float* factors;
  void Shift(int64_t rows) { x.data += rows * x.pitch, factors += rows; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float a[V];
    Load<V>(x.At(row, col), a);
    const float factor = factors[row];
#pragma unroll
    for (int i = 0; i < V; ++i) a[i] *= factor;
    Store<V>(x.At(row, col), a);
  }
};

struct RopeTableBody {
  const int32_t* positions;
  const float* inv_freq;
  float scaling;
  View<float> cos, sin;
  void Shift(int64_t rows) { positions += rows, cos.data += rows * cos.pitch, sin.data += rows * sin.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float c[V], s[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sincosf(static_cast<float>(positions[row]) * inv_freq[col + i], &s[i], &c[i]);
      c[i] *= scaling, s[i] *= scaling;
    }
    Store<V>(cos.At(row, col), c);
    Store<V>(sin.At(row, col), s);
  }
};

// Columns here count half-head elements: col = head * D/2 + i.
template <typename T>
struct RopeBody {
  View<T> x;
  View<float> cos, sin;
  FastDivisor half;
  float sign;
  void Shift(int64_t rows) { x.data += rows * x.pitch, cos.data += rows * cos.pitch, sin.data += rows * sin.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    uint32_t head, i0;
    half.DivMod(static_cast<uint32_t>(col), head, i0);
    T* first = x.At(row, int64_t{head} * 2 * half.divisor + i0);
    T* second = first + half.divisor;
    float a[V], b[V], c[V], s[V];
    Load<V>(first, a);
    Load<V>(second, b);
    Load<V>(cos.At(row, i0), c);
    Load<V>(sin.At(row, i0), s);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float x1 = a[i], x2 = b[i], sine = sign * s[i];
      a[i] = x1 * c[i] - x2 * sine;
      b[i] = x2 * c[i] + x1 * sine;
    }
    Store<V>(first, a);
    Store<V>(second, b);
  }
};

// q in place, k in place and to the cache, v to the cache. Columns count half-head elements of q and k, then elements
// of v.
template <typename T>
struct RopeToCacheBody {
  RopeBody<T> rope;
  View<T> cache;
  const int32_t* row_ids;
  int64_t q_half, qk_half, q_cols, k_cols;
  void Shift(int64_t rows) { rope.Shift(rows), row_ids += rows; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float x[V];
    if (col >= qk_half) {
      const int64_t at = col - qk_half;
      Load<V>(rope.x.At(row, q_cols + k_cols + at), x);
      return Store<V>(cache.At(row_ids[row], k_cols + at), x);
    }
    rope.template Run<V>(row, col);
    if (col < q_half) return;
    uint32_t head, i0;
    rope.half.DivMod(static_cast<uint32_t>(col), head, i0);
    const int64_t at = int64_t{head} * 2 * rope.half.divisor + i0;  // what this thread has just written
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      Load<V>(rope.x.At(row, at + part * rope.half.divisor), x);
      Store<V>(cache.At(row_ids[row], at + part * rope.half.divisor - q_cols), x);
    }
  }
};

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kInvSqrt2Pi = 0.39894228040143268f;
constexpr float kSqrt2OverPi = 0.79788456080286536f;
constexpr float kGeluCubic = 0.044715f;

template <Activation A>
__device__ inline float Activate(float x) {
  if constexpr (A == Activation::kSilu) {
    return Silu(x);
  } else if constexpr (A == Activation::kGelu) {
    return 0.5f * x * (1.0f + erff(x * kSqrtHalf));
  } else {
    return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + kGeluCubic * x * x * x)));
  }
}

// act(x), to Activate's bits, and act'(x).
template <Activation A>
__device__ inline float2 ActivateBoth(float x) {
  if constexpr (A == Activation::kSilu) {
    const float s = 1.0f / (1.0f + expf(-x));
    return make_float2(Activate<A>(x), s * (1.0f + x * (1.0f - s)));
  } else if constexpr (A == Activation::kGelu) {
    const float cdf = 0.5f * (1.0f + erff(x * kSqrtHalf));
    return make_float2(Activate<A>(x), cdf + x * kInvSqrt2Pi * expf(-0.5f * x * x));
  } else {
    const float t = tanhf(kSqrt2OverPi * (x + kGeluCubic * x * x * x));
    const float inner = kSqrt2OverPi * (1.0f + 3.0f * kGeluCubic * x * x);
    return make_float2(Activate<A>(x), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner);
  }
}

template <typename T, Activation A>
struct GluBody {
  View<T> gate_up, out;
  int64_t width;
  void Shift(int64_t rows) { gate_up.data += rows * gate_up.pitch, out.data += rows * out.pitch; }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float g[V], u[V];
    Load<V>(gate_up.At(row, col), g);
    Load<V>(gate_up.At(row, width + col), u);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = Activate<A>(g[i]) * u[i];
    Store<V>(out.At(row, col), g);
  }
};

// kOut: the forward's result as well.
template <typename T, Activation A, bool kOut>
struct GluBackwardBody {
  View<T> d_out, gate_up, d_gate_up, out;
  int64_t width;
  void Shift(int64_t rows) {
    d_out.data += rows * d_out.pitch, gate_up.data += rows * gate_up.pitch, d_gate_up.data += rows * d_gate_up.pitch;
    if (kOut) out.data += rows * out.pitch;
  }
  template <int V>
  __device__ void Run(int64_t row, int64_t col) const {
    float d[V], g[V], u[V], result[kOut ? V : 1];
    Load<V>(d_out.At(row, col), d);
    Load<V>(gate_up.At(row, col), g);
    Load<V>(gate_up.At(row, width + col), u);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float2 act = ActivateBoth<A>(g[i]);
      if (kOut) result[i] = act.x * u[i];
      g[i] = d[i] * u[i] * act.y;
      u[i] = d[i] * act.x;
    }
    if constexpr (kOut) Store<V>(out.At(row, col), result);
    Store<V>(d_gate_up.At(row, col), g);
    Store<V>(d_gate_up.At(row, width + col), u);
  }
};

// gate | up vectorises if both halves do.
bool HalvesVectorise(Tensor gate_up) { return Vectorises(gate_up) && gate_up.cols / 2 % 8 == 0; }

template <typename F>
void WithActivation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
  }
}

}  // namespace

void Add(Tensor x, Tensor y, cudaStream_t stream) {
  WithType(y.dtype, [&](auto t) {
    using T = decltype(t);
    AddBody<T> body;
    body.x = View<T>(x), body.y = View<T>(y);
    LaunchRows<kVector<T>>(y.rows, y.cols, Vectorises(x) && Vectorises(y), body, stream);
  });
}

void AddBias(Tensor bias, Tensor y, cudaStream_t stream) {
  WithType(bias.dtype, [&](auto b) {
    WithType(y.dtype, [&](auto t) {
      using T = decltype(t);
      AddBiasBody<decltype(b), T> body;
      body.bias = bias.as<decltype(b)>(), body.y = View<T>(y);
      LaunchRows<kVector<decltype(b), T>>(y.rows, y.cols, Vectorises(bias) && Vectorises(y), body, stream);
    });
  });
}

void ScaleRows(Tensor x, Tensor factors, cudaStream_t stream) {
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    ScaleRowsBody<T> body;
    body.x = View<T>(x), body.factors = factors.as<float>();
    LaunchRows<kVector<T>>(x.rows, x.cols, Vectorises(x), body, stream);
  });
}

void RopeTable(Tensor positions, Tensor inv_freq, float scaling, Tensor cos, Tensor sin, cudaStream_t stream) {
  RopeTableBody body;
  body.positions = positions.as<int32_t>(), body.inv_freq = inv_freq.as<float>(), body.scaling = scaling;
  body.cos = View<float>(cos), body.sin = View<float>(sin);
  LaunchRows<4>(cos.rows, cos.cols, Vectorises(cos) && Vectorises(sin), body, stream);
}

void Rope(Tensor x, int64_t head_dim, Tensor cos, Tensor sin, RopeDirection direction, cudaStream_t stream) {
  WithType(x.dtype, [&](auto t) {
    using T = decltype(t);
    RopeBody<T> body;
    body.x = View<T>(x), body.cos = View<float>(cos), body.sin = View<float>(sin);
    body.half = FastDivisor(head_dim / 2), body.sign = direction == RopeDirection::kForward ? 1.0f : -1.0f;
    const bool vectorises = Vectorises(x) && Vectorises(cos) && Vectorises(sin) && head_dim / 2 % 8 == 0;
    LaunchRows<kVector<T>>(x.rows, x.cols / 2, vectorises, body, stream);
  });
}

void RopeToCache(Tensor qkv, int64_t head_dim, Tensor cos, Tensor sin, Tensor row_ids, Tensor cache,
                 cudaStream_t stream) {
  WithType(qkv.dtype, [&](auto t) {
    using T = decltype(t);
    RopeToCacheBody<T> body;
    body.rope.x = View<T>(qkv), body.rope.cos = View<float>(cos), body.rope.sin = View<float>(sin);
    body.rope.half = FastDivisor(head_dim / 2), body.rope.sign = 1;
    body.cache = View<T>(cache), body.row_ids = row_ids.as<int32_t>();
    body.k_cols = cache.cols / 2, body.q_cols = qkv.cols - cache.cols;
    body.q_half = body.q_cols / 2, body.qk_half = (body.q_cols + body.k_cols) / 2;
    const bool vectorises =
        Vectorises(qkv) && Vectorises(cache) && Vectorises(cos) && Vectorises(sin) && head_dim / 2 % 8 == 0;
    LaunchRows<kVector<T>>(qkv.rows, body.qk_half + body.k_cols, vectorises, body, stream);
  });
}

void Glu(Tensor gate_up, Activation activation, Tensor out, cudaStream_t stream) {
  WithType(out.dtype, [&](auto t) {
    WithActivation(activation, [&](auto a) {
      using T = decltype(t);
      GluBody<T, decltype(a)::value> body;
      body.gate_up = View<T>(gate_up), body.out = View<T>(out), body.width = out.cols;
      LaunchRows<kVector<T>>(out.rows, out.cols, HalvesVectorise(gate_up) && Vectorises(out), body, stream);
    });
  });
}

void GluBackward(Tensor d_out, Tensor gate_up, Activation activation, Tensor d_gate_up, Tensor out,
                 cudaStream_t stream) {
  const bool vectorises =
      HalvesVectorise(gate_up) && HalvesVectorise(d_gate_up) && Vectorises(d_out) && (out.empty() || Vectorises(out));
  WithType(d_out.dtype, [&](auto t) {
    WithActivation(activation, [&](auto a) {
      using T = decltype(t);
      const auto launch = [&](auto with_out) {
        GluBackwardBody<T, decltype(a)::value, decltype(with_out)::value> body;
        body.d_out = View<T>(d_out), body.gate_up = View<T>(gate_up), body.d_gate_up = View<T>(d_gate_up);
        body.out = View<T>(out), body.width = d_out.cols;
        LaunchRows<kVector<T>>(d_out.rows, d_out.cols, vectorises, body, stream);
      };
      if (out.empty()) {
        launch(std::false_type{});
      } else {
        launch(std::true_type{});
      }
    });
  });
}

}  // namespace hone::cuda
