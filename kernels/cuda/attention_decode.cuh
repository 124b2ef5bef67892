// Attention of single queries over many keys, as decoding with a cache has them: a block owns a fixed number of keys of
// one segment and all query heads of one kv head (the rows of one tensor core tile), and leaves its partial softmax in
// a workspace; a second kernel joins a segment's parts in ascending order. Where keys are split depends on nothing but
// their number in the segment, so a segment's result does not depend on the batch.
#pragma once

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_scores.cuh"
#include "kernels/cuda/attention_softmax.cuh"

namespace hone::cuda::mma {

template <int kD>
struct DecodeTiles {
  static constexpr int D = kD, Warps = 4, kThreads = Warps * 32;
  static constexpr int Keys = kD > 128 ? 64 : 128, kWarpKeys = Keys / Warps;  // of a block, of a warp
  static constexpr int kQBytes = Tile<D>::Bytes(16), kKeyBytes = Tile<D>::Bytes(Keys);
  static constexpr int kSharedBytes = kQBytes + 2 * kKeyBytes + Warps * 16 * 8;
  static_assert(kSharedBytes <= kSmallShared);
  static_assert(Warps * 16 * D * 4 <= 2 * kKeyBytes, "outputs of all warps lie where keys and values lay");
};

__host__ __device__ inline int DecodeSplits(const Segment& s, int keys, int decode_most) {
  return Decodes(s, decode_most) ? (s.prefix_len + s.kv_len + keys - 1) / keys : 0;
}

// Partial results: per segment and head [split][top, sum, out[head_dim]]; a segment's begin after those of all before
// it.
__device__ inline int64_t PartialOffset(const DecodeArgs& args, int segment, int keys) {
  int splits = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < segment; i += 32)
    splits += DecodeSplits(args.problem.segments[i], keys, args.problem.decode_most);
  return int64_t{__reduce_add_sync(~0u, splits)} * args.problem.heads * (args.problem.head_dim + 2);
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads) DecodePart(const __grid_constant__ DecodeArgs args) {
  constexpr int D = C::D, kN = C::kWarpKeys / 8;
  extern __shared__ __align__(128) uint8_t shared[];
  LetNextKernelStart();
  const Problem& problem = args.problem;
  const int kv_heads = problem.heads / problem.group, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / kv_heads, [&](const Segment& s) {
    return make_int2(0, DecodeSplits(s, C::Keys, problem.decode_most));
  });
  const Range s(problem.segments[tile.segment]);
  const int split = tile.level, key = split * C::Keys;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  // Segments were uploaded before the step's first kernel. Of keys and values only the newest is not there yet, and a
  // line in L2 is kept up to date.
  for (int i = static_cast<int>(threadIdx.x); i < min(C::Keys, s.keys - key); i += C::kThreads) {
    for (int d = 0; d < problem.head_dim; d += 64) {
      PrefetchLineToL2(args.k.At(s.KeyRow(key + i), kv_head * problem.head_dim + d));
      PrefetchLineToL2(args.v.At(s.KeyRow(key + i), kv_head * problem.head_dim + d));
    }
  }
  WaitForEarlierKernels();
  const uint32_t q_tile = SharedAddress(shared), k_tile = q_tile + C::kQBytes, v_tile = k_tile + C::kKeyBytes;

  // The group's heads of the one query, as rows.
  View<bf16> heads = args.q;
  heads.data = args.q.At(s.q0, kv_head * problem.group * problem.head_dim);
  heads.pitch = problem.head_dim;
  LoadRows<D, 16, C::kThreads>(q_tile, heads, 0, problem.head_dim, 0, problem.group);
  LoadKeys<D, C::Keys, C::kThreads>(k_tile, args.k, kv_head * problem.head_dim, problem.head_dim, s, key);
  CommitCopies();
  LoadKeys<D, C::Keys, C::kThreads>(v_tile, args.v, kv_head * problem.head_dim, problem.head_dim, s, key);
  CommitCopies();
  WaitCopies<1>();
  __syncthreads();

  const int own = warp * C::kWarpKeys;
  float scores[1][kN][4] = {}, acc[1][D / 8][4] = {};
  MultiplyRows<1, kN / 2, D / 16, D>(scores, RowsAddress<D>(q_tile, 0), ColumnsAddress<D>(k_tile, own));
  if (problem.cap_scale > 0) Cap(scores, problem.cap_scale);
    // Every row is the same query, at position keys - 1.
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = key + own + n * 8 + lane % 4 * 2 + i % 2;
      if (column >= s.keys || column < s.keys - problem.window) scores[0][n][i] = -INFINITY;
    }
  }
  RunningSoftmax<1> softmax;
  softmax.Update(0, scores[0], acc[0], problem.exponent);
  uint32_t p[1][kN / 2][4];
  PackScores(scores, p);
  WaitCopies<0>();
  __syncthreads();
  MultiplyInto<1, kN / 2, D>(acc, p, RowsAddress<D>(v_tile, own));
  __syncthreads();

  // The warps' parts, joined in ascending order of keys.
  float* outputs = reinterpret_cast<float*>(shared + C::kQBytes);  // [warp][16][D]
  float2* tops = reinterpret_cast<float2*>(shared + C::kQBytes + 2 * C::kKeyBytes);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = half * 8 + lane / 4;
    const float sum = WarpSum<4>(softmax.sum[0][half]);
    if (lane % 4 == 0) tops[warp * 16 + row] = make_float2(softmax.top[0][half], sum);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      *reinterpret_cast<float2*>(outputs + (warp * 16 + row) * D + n * 8 + lane % 4 * 2) =
          make_float2(acc[0][n][2 * half], acc[0][n][2 * half + 1]);
    }
  }
  __syncthreads();
  const int stride = problem.head_dim + 2, splits = tile.hi;
  const int64_t offset = splits > 1 ? PartialOffset(args, tile.segment, C::Keys) : 0;
  for (int row = warp; row < problem.group; row += C::Warps) {
    float top = -INFINITY, sum = 0, factor[C::Warps];
    for (int w = 0; w < C::Warps; ++w) top = fmaxf(top, tops[w * 16 + row].x);
#pragma unroll
    for (int w = 0; w < C::Warps; ++w) {
      const float2 part = tops[w * 16 + row];
      factor[w] = part.x == -INFINITY ? 0.0f : Exp2((part.x - top) * problem.exponent);
      sum += part.y * factor[w];
    }
    if (splits == 1) {  // nothing to join
      for (int d = lane; d < problem.head_dim; d += 32) {
        float x = 0;
#pragma unroll
        for (int w = 0; w < C::Warps; ++w) x += outputs[(w * 16 + row) * D + d] * factor[w];
        *args.out.At(s.q0, int64_t{kv_head * problem.group + row} * problem.head_dim + d) = FromFloat<bf16>(x / sum);
      }
      if (lane == 0) *args.lse.At(s.q0, kv_head * problem.group + row) = top * problem.exponent * kLn2 + logf(sum);
      continue;
    }
    float* to = args.partials + offset + (int64_t{kv_head * problem.group + row} * splits + split) * stride;
    if (lane == 0) to[0] = top, to[1] = sum;
    for (int d = lane; d < problem.head_dim; d += 32) {
      float x = 0;
#pragma unroll
      for (int w = 0; w < C::Warps; ++w) x += outputs[(w * 16 + row) * D + d] * factor[w];
      to[2 + d] = x;
    }
  }
}

// A warp joins the parts of one segment and head.
template <typename C>
__global__ void __launch_bounds__(128) DecodeJoin(const __grid_constant__ DecodeArgs args) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  const Problem& problem = args.problem;
  const int index = static_cast<int>(blockIdx.x) * 4 + static_cast<int>(threadIdx.x) / 32;
  const int segment = index / problem.heads, head = index % problem.heads, lane = static_cast<int>(threadIdx.x) % 32;
  if (segment >= problem.count) return;
  const Segment s = problem.segments[segment];
  const int splits = DecodeSplits(s, C::Keys, problem.decode_most), stride = problem.head_dim + 2;
  if (splits <= 1) return;
  const float* from = args.partials + PartialOffset(args, segment, C::Keys) + int64_t{head} * splits * stride;
  float top = -INFINITY, sum = 0;
  for (int i = lane; i < splits; i += 32) top = fmaxf(top, from[int64_t{i} * stride]);
  top = WarpMax(top);
  float acc[(C::D + 31) / 32] = {};
  for (int i = 0; i < splits; ++i) {
    const float* part = from + int64_t{i} * stride;
    if (part[0] == -INFINITY) continue;  // outside the window
    const float factor = Exp2((part[0] - top) * problem.exponent);
    sum += part[1] * factor;
#pragma unroll
    for (int j = 0; j < (C::D + 31) / 32; ++j) {
      if (lane + 32 * j < problem.head_dim) acc[j] += part[2 + lane + 32 * j] * factor;
    }
  }
#pragma unroll
  for (int j = 0; j < (C::D + 31) / 32; ++j) {
    if (lane + 32 * j < problem.head_dim)
      *args.out.At(s.q0, int64_t{head} * problem.head_dim + lane + 32 * j) = FromFloat<bf16>(acc[j] / sum);
  }
  if (lane == 0) *args.lse.At(s.q0, head) = top * problem.exponent * kLn2 + logf(sum);
}

// Runs of segments whose parts fit the workspace, one after the other.
template <typename C>
int LaunchDecode(DecodeArgs args, HostSegments host, int64_t partial_floats, cudaStream_t stream) {
  if (args.problem.group > 16) return 0;  // not one tile of heads
  const int kv_heads = args.problem.heads / args.problem.group;
  const int64_t per_split = int64_t{args.problem.heads} * (args.problem.head_dim + 2);
  const int decode_most = static_cast<int>(std::min<int64_t>(partial_floats / per_split * C::Keys, kNoWindow));
  const Segment* segments = args.problem.segments;
  const bool starts_early = CardStartsEarly();
  args.problem.decode_most = decode_most;
  for (size_t begin = 0, end; begin < host.size(); begin = end) {
    int64_t splits = 0, most = 0;
    for (end = begin; end < host.size(); ++end) {
      const int64_t more = DecodeSplits(host[end], C::Keys, decode_most);
      if ((splits + more) * per_split > partial_floats) break;
      splits += more, most = std::max(most, more);
    }
    args.problem.segments = segments + begin;
    args.problem.count = static_cast<int>(end - begin);
    args.problem.classes = 0;
    LaunchTiles(
        DecodePart<C>, args, host.subspan(begin, end - begin), kv_heads,
        [=](const Segment& s) { return make_int2(0, DecodeSplits(s, C::Keys, decode_most)); }, C::kThreads,
        C::kSharedBytes, stream, starts_early);
    if (most <= 1) continue;
    const int64_t rows = int64_t{args.problem.count} * args.problem.heads;
    LaunchEarly(starts_early, DecodeJoin<C>, static_cast<unsigned>((rows + 3) / 4), 128, 0, stream, args);
  }
  return decode_most;
}

}  // namespace hone::cuda::mma
