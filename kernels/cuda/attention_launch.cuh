// Between attention.cu, which describes a call, and the .cu files that hold the tensor core kernels: arguments, the
// levels of tiles (host and device both count them), and the launchers by width of tile.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_mma.cuh"

namespace hone::cuda::mma {

struct ForwardArgs {
  View<bf16> q, k, v, out;
  View<float> lse;
  Problem problem;
};
struct BackwardArgs {
  View<bf16> d_out, q, k, v, out;
  View<float> lse, delta;
  View<bf16> dq, dk, dv;
  Problem problem;
};

// For segments of one query and many keys; the others are left out.
struct DecodeArgs {
  View<bf16> q, k, v, out;
  View<float> lse;
  float* partials;
  Problem problem;
};

using HostSegments = std::span<const Segment>;

// One instantiation per width of tile D >= head_dim; each in its own .cu file.
template <int D>
void RunForward(const ForwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);
// Returns the decode_most that it worked with.
template <int D>
int RunDecode(const DecodeArgs& args, HostSegments host, int64_t partial_floats, cudaStream_t stream);
// delta and dq, then (with delta) dk and dv.
template <int D>
void RunQueryGradient(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);
template <int D>
void RunKeyGradient(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);

// By Hopper's warpgroup products (attention_hopper.cu, in builds that have sm_90a), tiles 128 wide and no softcap.
// False: not there, or not of this call; nothing was started.
#ifdef HONE_SM90A
bool ForwardOnHopper(const ForwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);
bool QueryGradientOnHopper(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);
bool KeyGradientOnHopper(const BackwardArgs& args, HostSegments host, AttentionProfile profile, cudaStream_t stream);
#else
inline bool ForwardOnHopper(const ForwardArgs&, HostSegments, AttentionProfile, cudaStream_t) { return false; }
inline bool QueryGradientOnHopper(const BackwardArgs&, HostSegments, AttentionProfile, cudaStream_t) { return false; }
inline bool KeyGradientOnHopper(const BackwardArgs&, HostSegments, AttentionProfile, cudaStream_t) { return false; }
#endif

// The levels [x, y) of a segment's tiles of `rows` queries: by how many keys they see.
__host__ __device__ inline int2 QueryLevels(const Segment& s, int rows) {
  const int low = (s.prefix_len + s.kv_len - s.q_len) / rows;
  return make_int2(low, low + (s.q_len + rows - 1) / rows);
}
// Segments that attention_decode.cuh takes, by what they are alone.
__host__ __device__ inline bool Decodes(const Segment& s, int decode_most) {
  const int keys = s.prefix_len + s.kv_len;
  return s.q_len == 1 && keys > 0 && keys <= decode_most;
}
__host__ __device__ inline int2 ForwardLevels(const Segment& s, int rows, int decode_most) {
  return Decodes(s, decode_most) ? make_int2(0, 0) : QueryLevels(s, rows);
}
// And of its tiles of `rows` own keys: the last tile, seen by the fewest queries, has level 0.
__host__ __device__ inline int2 KeyLevels(const Segment& s, int rows) {
  return make_int2(0, (s.kv_len + rows - 1) / rows);
}

// What blocks may have: 99 KiB on sm_86, sm_89 and sm_120, 163 KiB on sm_80.
constexpr int kSmallShared = 99 * 1024, kLargeShared = 163 * 1024;
template <typename C>
constexpr bool Fits() {
  return C::kSharedBytes <= (C::MT == 1 ? kSmallShared : kLargeShared);
}

// One block per tile and head of `heads`; levels(segment) as the kernel counts them.
template <typename Args, typename Levels>
void LaunchTiles(void (*kernel)(Args), Args args, HostSegments host, int heads, Levels levels, int threads,
                 int shared_bytes, cudaStream_t stream, bool starts_early = false) {
  int64_t tiles = 0;
  for (const Segment& s : host) {
    const int2 l = levels(s);
    tiles += l.y - l.x;
    args.problem.classes = std::max(args.problem.classes, SizeClass(l) + 1);
  }
  if (tiles == 0) return;
  if (shared_bytes > 48 * 1024) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  LaunchEarly(starts_early, kernel, static_cast<unsigned>(tiles * heads), static_cast<unsigned>(threads),
              static_cast<size_t>(shared_bytes), stream, args);
}

}  // namespace hone::cuda::mma
