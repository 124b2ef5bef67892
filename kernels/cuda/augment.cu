// The augmented weight W' of a folded linear in one launch (Ops::AugmentWeight): decoded parts, B among the spare
// columns, zeros, and the rows of A below. Not here: decoding alone (decode.cu).
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_groups.cuh"

namespace hone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxParts = 4;
// Fetches in flight, as in decode.cu. Blocks that stay and walk the weight in strides were slower (64 for 57 us at
// [4096, 14336] on an H100): neighbouring blocks on neighbouring rows keep to few pages of memory.
template <typename T>
inline constexpr int kGroupsPerThread = sizeof(T) == 4 ? 1 : 2;

struct Part {
  WeightView weight;
  const float* b = nullptr;
  int64_t b_pitch = 0;
  int32_t b_cols = 0, column = 0;
  uint32_t first_group = 0, first_row = 0;
};

struct Arguments {
  Part parts[kMaxParts];
  int count = 0;
  uint32_t row0 = 0;    // of `out`, where the first part begins
  uint32_t groups = 0;  // of 8 decoded elements, over all parts
  uint32_t decode_blocks = 0;
  uint32_t b_groups = 0;  // of 8 spare columns
  uint32_t a_groups = 0;  // of 8 columns of A's rows
  uint32_t a_row0 = 0;    // of `out`
  FastDivisor groups_per_row, b_groups_per_row;
  const float* a = nullptr;
  int64_t a_pitch = 0;
  uint32_t a_rows = 0;  // those below are zero
};

__device__ inline int PartOfGroup(const Arguments& args, uint32_t group) {
  int part = 0;
  for (int i = 1; i < args.count; ++i) part += group >= args.parts[i].first_group;
  return part;
}

template <typename T>
__device__ void SpareColumns(const Arguments& args, View<T> out, uint32_t unit) {
  uint32_t row, rest;
  args.b_groups_per_row.DivMod(unit, row, rest);
  int part = 0;
  for (int i = 1; i < args.count; ++i) part += row >= args.parts[i].first_row;
  const Part& p = args.parts[part];
  const float* b = p.b + int64_t{row - p.first_row} * p.b_pitch;
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int column = static_cast<int>(rest) * 8 + i - p.column;
    values[i] = column >= 0 && column < p.b_cols ? __ldg(b + column) : 0.0f;
  }
  Store<8>(out.At(args.row0 + row, (int64_t{args.groups_per_row.divisor} + rest) * 8), values);
}

template <typename T>
__device__ void RowsOfA(const Arguments& args, View<T> out, uint32_t unit) {
  uint32_t row, rest;
  args.groups_per_row.DivMod(unit, row, rest);
  float values[8] = {};
  if (row < args.a_rows) Load<8>(args.a + row * args.a_pitch + int64_t{rest} * 8, values);
  Store<8>(out.At(args.a_row0 + row, int64_t{rest} * 8), values);
}

template <DType D, typename T>
__global__ void __launch_bounds__(kThreads) Augment(const __grid_constant__ Arguments args, View<T> out) {
  constexpr int N = kGroupsPerThread<T>;
  __shared__ float table[16];
  if constexpr (D == DType::kNf4) {
    if (threadIdx.x < 16) table[threadIdx.x] = kCodes.values[threadIdx.x];
    __syncthreads();
  }
  if (blockIdx.x >= args.decode_blocks) {
    uint32_t unit = (blockIdx.x - args.decode_blocks) * kThreads + threadIdx.x;
    if (unit < args.b_groups) return SpareColumns(args, out, unit);
    unit -= args.b_groups;
    if (unit < args.a_groups) RowsOfA(args, out, unit);
    return;
  }
  const uint32_t first = blockIdx.x * (kThreads * N) + threadIdx.x;
  Group<D> group[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const uint32_t index = min(first + j * kThreads, args.groups - 1);  // no branch between the loads
    const Part& part = args.parts[PartOfGroup(args, index)];
    group[j].Fetch(part.weight, index - part.first_group);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const uint32_t index = first + j * kThreads;
    float values[8];
    group[j].Decode(table, values);
    uint32_t row, rest;
    args.groups_per_row.DivMod(index, row, rest);
    if (index < args.groups) Store<8>(out.At(args.row0 + row, int64_t{rest} * 8), values);
  }
}

constexpr int kMaxRefreshed = 4;
template <typename T>
struct Refreshed {
  Arguments weights[kMaxRefreshed];
  View<T> out[kMaxRefreshed];
  int count = 0;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) Refresh(const __grid_constant__ Refreshed<T> r) {
  const Arguments& args = r.weights[blockIdx.y];
  uint32_t unit = blockIdx.x * kThreads + threadIdx.x;
  if (unit < args.b_groups) return SpareColumns(args, r.out[blockIdx.y], unit);
  unit -= args.b_groups;
  if (unit < args.a_groups) RowsOfA(args, r.out[blockIdx.y], unit);
}

bool SameDType(std::span<const AugmentPart> parts) {
  for (const AugmentPart& part : parts) {
    if (part.weight.dtype != parts[0].weight.dtype) return false;
  }
  return true;
}

Arguments ArgumentsOf(std::span<const AugmentPart> parts, int64_t row0, int64_t k, int64_t spare) {
  Arguments args;
  args.row0 = static_cast<uint32_t>(row0);
  args.groups_per_row = FastDivisor(k / 8);
  args.b_groups_per_row = FastDivisor(std::max<int64_t>(spare / 8, 1));
  int64_t rows = 0;
  for (const AugmentPart& part : parts) {
    Part& p = args.parts[args.count++];
    p.weight = part.weight;
    p.first_row = static_cast<uint32_t>(rows);
    p.first_group = static_cast<uint32_t>(rows * (k / 8));
    p.column = static_cast<int32_t>(part.column);
    if (!part.b.empty()) {
      p.b = part.b.as<float>(), p.b_pitch = part.b.pitch, p.b_cols = static_cast<int32_t>(part.b.cols);
    }
    rows += part.weight.rows;
  }
  args.groups = static_cast<uint32_t>(rows * (k / 8));
  args.b_groups = static_cast<uint32_t>(rows * (spare / 8));
  return args;
}

void SetRowsOfA(Arguments& args, Tensor a, Tensor out, int64_t k, int64_t spare) {
  args.a_row0 = static_cast<uint32_t>(out.rows - spare);
  args.a_groups = static_cast<uint32_t>(spare * (k / 8));
  args.a = a.as<float>(), args.a_pitch = a.pitch, args.a_rows = static_cast<uint32_t>(a.empty() ? 0 : a.rows);
}

void Launch(DType dtype, Arguments args, Tensor out, cudaStream_t stream) {
  WithWeightType(dtype, [&](auto d) {
    WithType(out.dtype, [&](auto t) {
      using T = decltype(t);
      constexpr uint32_t kPerBlock = kThreads * kGroupsPerThread<T>;
      args.decode_blocks = (args.groups + kPerBlock - 1) / kPerBlock;
      const uint32_t blocks = args.decode_blocks + (args.b_groups + args.a_groups + kThreads - 1) / kThreads;
      Augment<decltype(d)::value, T><<<blocks, kThreads, 0, stream>>>(args, View<T>(out));
    });
  });
}

}  // namespace

bool AugmentFits(std::span<const AugmentPart> parts, Tensor a, Tensor out) {
  const int64_t k = parts[0].weight.cols, spare = out.cols - k;
  if (parts.size() > kMaxParts || k == 0 || k % 8 != 0 || spare % 8 != 0 || !Vectorises(out)) return false;
  if (!a.empty() && !Vectorises(a)) return false;
  for (const AugmentPart& part : parts) {
    if (part.weight.rows == 0 || reinterpret_cast<uintptr_t>(part.weight.data) % 16 != 0) return false;
  }
  return out.rows * (out.cols / 8) < int64_t{1} << 31;
}

void RefreshAdapters(std::span<const AdapterRefresh> weights, cudaStream_t stream) {
  for (size_t i = 0; i < weights.size(); i += kMaxRefreshed) {
    const auto some = weights.subspan(i, std::min<size_t>(kMaxRefreshed, weights.size() - i));
    WithType(some[0].out.dtype, [&](auto t) {
      using T = decltype(t);
      Refreshed<T> r;
      uint32_t units = 1;
      for (const AdapterRefresh& w : some) {
        const int64_t k = w.parts[0].weight.cols, spare = w.out.cols - k;
        Arguments& args = r.weights[r.count];
        args = ArgumentsOf(w.parts, 0, k, spare);
        SetRowsOfA(args, w.a, w.out, k, spare);
        units = std::max(units, args.b_groups + args.a_groups);
        r.out[r.count++] = View<T>(w.out);
      }
      const dim3 grid((units + kThreads - 1) / kThreads, static_cast<unsigned>(r.count));
      Refresh<T><<<grid, kThreads, 0, stream>>>(r);
    });
  }
}

void AugmentWeight(std::span<const AugmentPart> parts, Tensor a, Tensor out, cudaStream_t stream) {
  const int64_t k = parts[0].weight.cols, spare = out.cols - k;
  const size_t step = SameDType(parts) ? parts.size() : 1;  // parts stored differently: a launch each
  int64_t row = 0;
  for (size_t i = 0; i < parts.size(); i += step) {
    Arguments args = ArgumentsOf(parts.subspan(i, step), row, k, spare);
    if (i + step == parts.size()) SetRowsOfA(args, a, out, k, spare);
    Launch(parts[i].weight.dtype, args, out, stream);
    for (size_t j = i; j < i + step; ++j) row += parts[j].weight.rows;
  }
}

}  // namespace hone::cuda
