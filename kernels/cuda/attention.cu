// Chooses attention's kernels: tensor cores for bf16 whose rows and heads start on 16 bytes, the plain kernels for
// everything else. Rows that the tensor core kernels do not reach are made zero here.
#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/launch.h"

namespace hone::cuda {
namespace {

using mma::Problem;

bool OnChunks(Tensor t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.pitch % 8 == 0; }

bool Fits(std::initializer_list<Tensor> tensors, const AttentionShape& shape) {
  if (tensors.begin()->dtype != DType::kBF16 || shape.head_dim % 8 != 0 || shape.scale <= 0) return false;
  return std::all_of(tensors.begin(), tensors.end(), OnChunks);
}

Problem Describe(const Segments& segments, const AttentionShape& shape) {
  Problem p{};
  p.segments = segments.device.as<Segment>();
  p.count = static_cast<int>(segments.host.size());
  p.heads = static_cast<int>(shape.heads);
  p.group = static_cast<int>(shape.heads / shape.kv_heads);
  p.pack = p.group % 4 == 0 ? 4 : p.group % 2 == 0 ? 2 : 1;
  p.head_dim = static_cast<int>(shape.head_dim);
  p.window = shape.window == 0 || shape.window > mma::kNoWindow ? mma::kNoWindow : static_cast<int>(shape.window);
  p.scale = shape.scale;
  p.exponent = mma::kLog2E * (shape.softcap > 0 ? shape.softcap : shape.scale);
  p.cap_scale = shape.softcap > 0 ? shape.scale / shape.softcap : 0;
  p.shares_prefix =
      std::any_of(segments.host.begin(), segments.host.end(), [](const Segment& s) { return s.prefix_len > 0; });
  return p;
}

// Calls f with the width of tile for a head.
template <typename F>
void WithWidth(int64_t head_dim, F&& f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 96) return f(std::integral_constant<int, 96>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  f(std::integral_constant<int, 256>{});
}

// What the gradient of keys relies on: every segment's own keys follow those of the segment before, and a prefix lies
// within the own keys of one segment.
bool KeysInOrder(std::span<const Segment> segments) {
  int64_t end = 0;
  for (const Segment& s : segments) {
    if (s.kv0 < end) return false;
    end = int64_t{s.kv0} + s.kv_len;
  }
  for (const Segment& s : segments) {
    if (s.prefix_len == 0) continue;
    const auto after = std::upper_bound(segments.begin(), segments.end(), s.prefix0,
                                        [](int32_t row, const Segment& other) { return row < other.kv0; });
    if (after == segments.begin()) return false;
    const Segment& owner = *(after - 1);
    if (int64_t{s.prefix0} + s.prefix_len > int64_t{owner.kv0} + owner.kv_len) return false;
  }
  return true;
}

// Zero for the rows outside all [begin, begin + length): gap by gap, or, where ranges are not in order, the whole
// first.
template <typename RangeOf>
void ZeroElsewhere(Tensor t, std::span<const Segment> segments, RangeOf range_of, cudaStream_t stream) {
  int64_t end = 0;
  const auto fill = [&](int64_t from, int64_t to) {
    if (to > from && t.cols > 0) Fill(t.Rows(from, to - from), 0, stream);
  };
  for (const Segment& s : segments) {
    if (range_of(s).first < end) return fill(0, t.rows);
    end = range_of(s).first + range_of(s).second;
  }
  end = 0;
  for (const Segment& s : segments) {
    fill(end, range_of(s).first);
    end = range_of(s).first + range_of(s).second;
  }
  fill(end, t.rows);
}

}  // namespace

AttentionProfile CurrentAttentionProfile() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major == 9 && minor == 0) return AttentionProfile::kHopper;
  return bytes >= 163 * 1024 ? AttentionProfile::kLarge : AttentionProfile::kSmall;
}

void Attention(Tensor q, Tensor k, Tensor v, const Segments& segments, const AttentionShape& shape, Tensor out,
               Tensor lse, const AttentionResources& resources, cudaStream_t stream) {
  if (!Fits({q, k, v, out}, shape)) return PlainAttention(q, k, v, segments, shape, out, lse, stream);
  Problem problem = Describe(segments, shape);
  WithWidth(shape.head_dim, [&](auto d) {
    constexpr int D = decltype(d)::value;
    const mma::DecodeArgs decode{View<bf16>(q),    View<bf16>(k),      View<bf16>(v), View<bf16>(out),
                                 View<float>(lse), resources.partials, problem};
    // First, because it also says which segments the other leaves alone.
    problem.decode_most = mma::RunDecode<D>(decode, segments.host, resources.partial_bytes / 4, stream);
    const mma::ForwardArgs forward{View<bf16>(q),   View<bf16>(k),    View<bf16>(v),
                                   View<bf16>(out), View<float>(lse), problem};
    mma::RunForward<D>(forward, segments.host, resources.profile, stream);
  });
}

void AttentionBackward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, const Segments& segments,
                       const AttentionShape& shape, Tensor delta, Tensor dq, Tensor dk, Tensor dv,
                       const AttentionResources& resources, cudaStream_t stream) {
  if (!Fits({q, k, v, out, d_out, dq, dk, dv}, shape) || !KeysInOrder(segments.host)) {
    return PlainAttentionBackward(d_out, q, k, v, out, lse, segments, shape, delta, dq, dk, dv, stream);
  }
  const auto queries = [](const Segment& s) { return std::pair<int64_t, int64_t>{s.q0, s.q_len}; };
  const auto keys = [](const Segment& s) { return std::pair<int64_t, int64_t>{s.kv0, s.kv_len}; };
  ZeroElsewhere(dq, segments.host, queries, stream);
  ZeroElsewhere(dk, segments.host, keys, stream);
  ZeroElsewhere(dv, segments.host, keys, stream);
  const mma::BackwardArgs args{
      View<bf16>(d_out),  View<bf16>(q),  View<bf16>(k),  View<bf16>(v),  View<bf16>(out),          View<float>(lse),
      View<float>(delta), View<bf16>(dq), View<bf16>(dk), View<bf16>(dv), Describe(segments, shape)};
  WithWidth(shape.head_dim, [&](auto d) {
    constexpr int D = decltype(d)::value;
    mma::RunQueryGradient<D>(args, segments.host, resources.profile, stream);
    mma::RunKeyGradient<D>(args, segments.host, resources.profile, stream);
  });
}

}  // namespace hone::cuda
