// The forward pass by warpgroup products: see attention_hopper.cuh and, for rows, order and masks,
// attention_forward.cuh; the running softmax is attention_softmax.cuh's.
#pragma once

#include "kernels/cuda/attention_hopper.cuh"

namespace hone::cuda::hopper {

struct ForwardShared {
  static constexpr int kStages = 3;
  static constexpr int kBarriers = (1 + 2 * kStages) * kTileBytes;
  static constexpr int kSharedBytes = 1024 + kBarriers + Ring<kStages>::kBytes;
};

struct Softmax {
  static constexpr float kSlack = 8;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  // s <- exp2(exponent * (s - top)); returns whether keep, by which sums so far are to be scaled, is not 1.
  __device__ bool Update(float (&s)[64], float exponent, float (&keep)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = s[half * 2];
#pragma unroll
      for (int n = 0; n < 16; ++n) most = fmaxf(most, fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
      most = WarpMax<4>(most);
      keep[half] = 1;
      if ((most - top[half]) * exponent > kSlack) {
        keep[half] = Exp2((top[half] - most) * exponent);
        top[half] = most;
      }
      const float base = top[half] == -INFINITY ? 0.0f : top[half] * exponent;  // nothing seen yet: any number
      float total = 0;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& x = s[i / 2 * 4 + half * 2 + i % 2];
        x = Exp2(x * exponent - base);
        total += x;
      }
      sum[half] = sum[half] * keep[half] + total;
    }
    return __any_sync(~0u, keep[0] != 1 || keep[1] != 1);
  }
};

// Rounded scores as A fragments.
__device__ inline void PackTile(const float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (2 * n + i / 2) * 4 + i % 2 * 2;
      p[n][i] = Pack(s[at], s[at + 1]);
    }
  }
}

// The queries of one warpgroup. The softmax of a tile runs beside the product of the tile before it with its values.
class ForwardRows {
 public:
  __device__ ForwardRows(const Problem& problem, const Queries& own, uint32_t base, int first)
      : problem_(problem),
        own_(own),
        base_(base),
        first_(first),
        position_(own.s.offset + own.query(first + GroupThread() / 32 * 16) + Lane() / 4),
        visible_(own.Of(problem, first)),
        ring_{base + ForwardShared::kBarriers} {
#pragma unroll
    for (int i = 0; i < 64; ++i) acc[i] = 0;
  }

  __device__ void Run() {
    WaitFor(ring_.once(), 0);
    int key = own_.key_begin;
    for (; key < own_.key_end && visible_.None(key, kRows); key += kRows) Skip();
    if (key < own_.key_end) {
      uint32_t p[8][4];
      First(key, p);
      for (key += kRows; key < own_.key_end && !visible_.None(key, kRows); key += kRows) Next(key, p);
      Pin(acc);
      Arrive();
      ValueProduct<kRows>(acc, p, v_tile(pending_));
      Commit();
      Wait<0>();
      Pin(acc);
      ring_.Release(pending_);
    }
    for (; key < own_.key_end; key += kRows) Skip();
  }

  float acc[64];
  Softmax softmax;

 private:
  __device__ uint32_t k_tile(int stage) const { return base_ + (1 + 2 * stage) * kTileBytes; }
  __device__ uint32_t v_tile(int stage) const { return k_tile(stage) + kTileBytes; }
  __device__ void Enter() {
    WaitFor(ring_.full(at_.stage), at_.parity);
    FenceCopies();
  }
  __device__ void Skip() {
    WaitFor(ring_.full(at_.stage), at_.parity);
    ring_.Release(at_.stage);
    at_.Next();
  }
  __device__ void First(int key, uint32_t (&p)[8][4]) {
    Enter();
    float s[64], keep[2];
    Pin(s);
    Arrive();
    ScoreProduct<kRows, kRows>(s, base_, first_, k_tile(at_.stage));
    Commit();
    Wait<0>();
    Pin(s);
    if (!visible_.All(key, kRows)) MaskKeys(s, key, position_, problem_.window);
    softmax.Update(s, problem_.exponent, keep);
    PackTile(s, p);
    pending_ = at_.stage;
    at_.Next();
  }
  __device__ void Next(int key, uint32_t (&p)[8][4]) {
    Enter();
    float s[64], keep[2];
    Pin(s), Pin(acc);
    Arrive();
    ScoreProduct<kRows, kRows>(s, base_, first_, k_tile(at_.stage));
    Commit();
    ValueProduct<kRows>(acc, p, v_tile(pending_));
    Commit();
    Wait<1>();
    Pin(s);
    if (!visible_.All(key, kRows)) MaskKeys(s, key, position_, problem_.window);
    const bool rescale = softmax.Update(s, problem_.exponent, keep);
    Wait<0>();
    Pin(acc);
    ring_.Release(pending_);
    if (rescale) {
#pragma unroll
      for (int i = 0; i < 64; ++i) acc[i] *= keep[i / 2 % 2];
    }
    PackTile(s, p);
    pending_ = at_.stage;
    at_.Next();
  }

  const Problem& problem_;
  const Queries& own_;
  uint32_t base_;
  int first_, position_, pending_ = 0;
  Visible visible_;
  Ring<ForwardShared::kStages> ring_;
  Place<ForwardShared::kStages> at_;
};

__global__ void __launch_bounds__(kThreads, 1) ForwardHopper(const __grid_constant__ ForwardArgs args) {
  extern __shared__ uint8_t raw[];
  constexpr int kStages = ForwardShared::kStages;
  const uint32_t base = (SharedAddress(raw) + 1023) / 1024 * 1024;
  const Ring<kStages> ring{base + ForwardShared::kBarriers};
  const Problem& problem = args.problem;
  const int units = problem.heads / problem.pack, queries = kRows / problem.pack;
  const TileOf tile = FindTile(problem, static_cast<int>(blockIdx.x) / units,
                               [&](const Segment& s) { return ForwardLevels(s, queries, problem.decode_most); });
  const Queries own(problem, tile, static_cast<int>(blockIdx.x) % units);
  if (threadIdx.x == 0) ring.Init();
  __syncthreads();
  const int group = GroupIndex();
  if (group == kGroups) {
    GiveRegisters<kCopyRegisters>();
    const View<bf16> mine[1] = {args.q};
    CopyQueryTiles<kStages, 1>(problem, own, ring, mine, args.k, args.v, base);
    return;
  }
  TakeRegisters<kComputeRegisters>();
  const int first = group * kGroupRows, warp_row = first + GroupThread() / 32 * 16;
  ForwardRows rows(problem, own, base, first);
  rows.Run();
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = WarpSum<4>(rows.softmax.sum[half]);
    factor[half] = 1.0f / sum;
    const int row = own.packed_row(warp_row + half * 8 + Lane() / 4);
    if (row >= 0 && Lane() % 4 == 0) {
      *args.lse.At(row, own.head(warp_row)) = rows.softmax.top[half] * problem.exponent * kLn2 + logf(sum);
    }
  }
  GroupBarrier(1 + group);  // all of the warpgroup's products have read its rows
  StoreTile(base, rows.acc, factor, args.out, first, problem.head_dim,
            [&](int r) { return make_int2(own.packed_row(r), own.head(r) * problem.head_dim); });
}

}  // namespace hone::cuda::hopper
