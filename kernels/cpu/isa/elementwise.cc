// Norms, rotary position, gated units and the optimiser's loops.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vec.h"

namespace hone::isa::HONE_ISA {
namespace {

// f(column, lanes left): whole vectors first, then the incomplete one.
template <typename Whole, typename Part>
inline void ForColumns(int64_t cols, Whole whole, Part part) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) whole(c);
  if (c < cols) part(c, cols - c);
}

void Add(RowsF32 x, RowsF32 y, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* xr = x.data + r * x.pitch;
    float* yr = y.data + r * y.pitch;
    for (int64_t c = 0; c < cols; ++c) yr[c] += xr[c];
  }
}

void ScaleRows(RowsF32 x, const float* factors, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* xr = x.data + r * x.pitch;
    for (int64_t c = 0; c < cols; ++c) xr[c] *= factors[r];
  }
}

inline float Dot(const float* a, const float* b, int64_t n) {
  VF even{}, odd{};
  int64_t c = 0;
  for (; c + 2 * kLanes <= n; c += 2 * kLanes) {
    even += Load(a + c) * Load(b + c);
    odd += Load(a + c + kLanes) * Load(b + c + kLanes);
  }
  for (; c + kLanes <= n; c += kLanes) even += Load(a + c) * Load(b + c);
  if (c < n) odd += LoadPart(a + c, n - c) * LoadPart(b + c, n - c);
  return Sum(even + odd);
}

void RmsNorm(RowsF32 x, const float* weight, int64_t width, int64_t groups, float eps, RowsF32 y, RowsF32 rstd,
             int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* xr = x.data + r * x.pitch + g * width;
      float* yr = y.data + r * y.pitch + g * width;
      const float mean = Dot(xr, xr, width) / static_cast<float>(width);
      const float factor = 1.0f / __builtin_sqrtf(mean + eps);
      rstd.data[r * rstd.pitch + g] = factor;
      ForColumns(
          width, [&](int64_t c) { Store(yr + c, Load(xr + c) * factor * Load(weight + c)); },
          [&](int64_t c, int64_t n) { StorePart(yr + c, LoadPart(xr + c, n) * factor * LoadPart(weight + c, n), n); });
    }
  }
}

void RmsNormBackward(RowsF32 dy, RowsF32 x, const float* weight, int64_t width, int64_t groups, RowsF32 rstd,
                     RowsF32 dx, float beta, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* dyr = dy.data + r * dy.pitch + g * width;
      const float* xr = x.data + r * x.pitch + g * width;
      float* dxr = dx.data + r * dx.pitch + g * width;
      const float factor = rstd.data[r * rstd.pitch + g];
      VF sum{};
      ForColumns(
          width, [&](int64_t c) { sum += Load(weight + c) * Load(dyr + c) * Load(xr + c); },
          [&](int64_t c, int64_t n) { sum += LoadPart(weight + c, n) * LoadPart(dyr + c, n) * LoadPart(xr + c, n); });
      const float mean = factor * factor * (Sum(sum) / static_cast<float>(width));
      if (beta == 0) {
        ForColumns(
            width,
            [&](int64_t c) { Store(dxr + c, factor * (Load(weight + c) * Load(dyr + c) - Load(xr + c) * mean)); },
            [&](int64_t c, int64_t n) {
              StorePart(dxr + c, factor * (LoadPart(weight + c, n) * LoadPart(dyr + c, n) - LoadPart(xr + c, n) * mean),
                        n);
            });
      } else {
        for (int64_t c = 0; c < width; ++c) dxr[c] += factor * (weight[c] * dyr[c] - xr[c] * mean);
      }
    }
  }
}

void Rope(RowsF32 x, int64_t heads, int64_t head_dim, RowsF32 cos, RowsF32 sin, float sign, int64_t begin,
          int64_t end) {
  const int64_t half = head_dim / 2;
  for (int64_t r = begin; r < end; ++r) {
    const float* c = cos.data + r * cos.pitch;
    const float* s = sin.data + r * sin.pitch;
    for (int64_t h = 0; h < heads; ++h) {
      float* x1 = x.data + r * x.pitch + h * head_dim;
      float* x2 = x1 + half;
      const auto rotate = [&](VF cosine, VF sine, VF a, VF b, VF& a_out, VF& b_out) {
        a_out = a * cosine - b * sine;
        b_out = b * cosine + a * sine;
      };
      ForColumns(
          half,
          [&](int64_t i) {
            VF a, b;
            rotate(Load(c + i), Load(s + i) * sign, Load(x1 + i), Load(x2 + i), a, b);
            Store(x1 + i, a);
            Store(x2 + i, b);
          },
          [&](int64_t i, int64_t n) {
            VF a, b;
            rotate(LoadPart(c + i, n), LoadPart(s + i, n) * sign, LoadPart(x1 + i, n), LoadPart(x2 + i, n), a, b);
            StorePart(x1 + i, a, n);
            StorePart(x2 + i, b, n);
          });
    }
  }
}

// Value and derivative of an activation; numbered as hone::Activation.
struct Silu {
  static VF Value(VF g) { return g * Sigmoid(g); }
  static void Both(VF g, VF& value, VF& slope) {
    const VF s = Sigmoid(g);
    value = g * s;
    slope = s + value * (1.0f - s);
  }
};
struct Gelu {  // g * (1 + erf(g / sqrt 2)) / 2
  static VF Cdf(VF g) {
    VF cdf;
    for (int64_t i = 0; i < kLanes; ++i) cdf[i] = 0.5f + 0.5f * __builtin_erff(g[i] * 0.70710678f);
    return cdf;
  }
  static VF Value(VF g) { return g * Cdf(g); }
  static void Both(VF g, VF& value, VF& slope) {
    const VF cdf = Cdf(g);
    value = g * cdf;
    slope = cdf + g * (Exp(g * g * -0.5f) * 0.39894228f);
  }
};
struct GeluTanh {  // g * (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) / 2
  static VF Inner(VF g) { return Tanh(0.79788456f * (g + 0.044715f * (g * g * g))); }
  static VF Value(VF g) { return 0.5f * g * (1.0f + Inner(g)); }
  static void Both(VF g, VF& value, VF& slope) {
    const VF t = Inner(g);
    value = 0.5f * g * (1.0f + t);
    slope = 0.5f * (1.0f + t) + 0.5f * g * (1.0f - t * t) * (0.79788456f * (1.0f + 0.134145f * (g * g)));
  }
};

template <typename A>
void GluRows(RowsF32 gate_up, int64_t width, RowsF32 out, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* gate = gate_up.data + r * gate_up.pitch;
    const float* up = gate + width;
    float* o = out.data + r * out.pitch;
    ForColumns(
        width, [&](int64_t c) { Store(o + c, A::Value(Load(gate + c)) * Load(up + c)); },
        [&](int64_t c, int64_t n) { StorePart(o + c, A::Value(LoadPart(gate + c, n)) * LoadPart(up + c, n), n); });
  }
}

template <typename A>
void GluBackwardRows(RowsF32 d_out, RowsF32 gate_up, int64_t width, RowsF32 d_gate_up, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float* d = d_out.data + r * d_out.pitch;
    const float* gate = gate_up.data + r * gate_up.pitch;
    const float* up = gate + width;
    float* d_gate = d_gate_up.data + r * d_gate_up.pitch;
    float* d_up = d_gate + width;
    ForColumns(
        width,
        [&](int64_t c) {
          VF value, slope;
          const VF grad = Load(d + c), u = Load(up + c);
          A::Both(Load(gate + c), value, slope);
          Store(d_gate + c, grad * u * slope);
          Store(d_up + c, grad * value);
        },
        [&](int64_t c, int64_t n) {
          VF value, slope;
          const VF grad = LoadPart(d + c, n), u = LoadPart(up + c, n);
          A::Both(LoadPart(gate + c, n), value, slope);
          StorePart(d_gate + c, grad * u * slope, n);
          StorePart(d_up + c, grad * value, n);
        });
  }
}

void Glu(RowsF32 gate_up, int64_t width, int activation, RowsF32 out, int64_t begin, int64_t end) {
  switch (activation) {
    case 0:
      return GluRows<Silu>(gate_up, width, out, begin, end);
    case 1:
      return GluRows<Gelu>(gate_up, width, out, begin, end);
    default:
      return GluRows<GeluTanh>(gate_up, width, out, begin, end);
  }
}

void GluBackward(RowsF32 d_out, RowsF32 gate_up, int64_t width, int activation, RowsF32 d_gate_up, int64_t begin,
                 int64_t end) {
  switch (activation) {
    case 0:
      return GluBackwardRows<Silu>(d_out, gate_up, width, d_gate_up, begin, end);
    case 1:
      return GluBackwardRows<Gelu>(d_out, gate_up, width, d_gate_up, begin, end);
    default:
      return GluBackwardRows<GeluTanh>(d_out, gate_up, width, d_gate_up, begin, end);
  }
}

float SumSquares(const float* x, int64_t count) { return Dot(x, x, count); }

void AdamW(float* param, const float* grad, float* m, float* v, int64_t count, const AdamWScalars& s) {
  const float step = s.lr / s.bias_correction1;
  const float root_correction = __builtin_sqrtf(s.bias_correction2);
  for (int64_t i = 0; i < count; ++i) {
    const float g = grad[i] * s.grad_scale;
    m[i] = s.beta1 * m[i] + (1.0f - s.beta1) * g;
    v[i] = s.beta2 * v[i] + (1.0f - s.beta2) * g * g;
    const float decayed = param[i] - s.lr * s.weight_decay * param[i];
    param[i] = decayed - step * m[i] / (__builtin_sqrtf(v[i]) / root_correction + s.eps);
  }
}

void RowDots(RowsF32 a, RowsF32 b, int64_t head_dim, RowsF32 out, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    out.data[r * out.pitch] = Dot(a.data + r * a.pitch, b.data + r * b.pitch, head_dim);
  }
}

}  // namespace

void AddElementwise(CpuKernels& kernels) {
  kernels.add = Add;
  kernels.scale_rows = ScaleRows;
  kernels.rms_norm = RmsNorm;
  kernels.rms_norm_backward = RmsNormBackward;
  kernels.rope = Rope;
  kernels.glu = Glu;
  kernels.glu_backward = GluBackward;
  kernels.sum_squares = SumSquares;
  kernels.adamw = AdamW;
  kernels.row_dots = RowDots;
}

}  // namespace hone::isa::HONE_ISA
