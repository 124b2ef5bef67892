// What writes quantised forms on the CPU: NF4 weights and 8-bit optimiser states. Blocks are divided over the pool.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/checks.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/nf4.h"

namespace hone {
namespace {

// Blocks that one thread should have at least.
constexpr int64_t kGrainBlocks = 128;

float LargestMagnitude(const float* values, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

void DecodeStates(const uint8_t* codes, float absmax, const DynamicMap& map, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = map[codes[i]] * absmax;
}

float EncodeStates(const float* values, const DynamicMap& map, int64_t count, uint8_t* codes) {
  const float largest = LargestMagnitude(values, count);
  const float inverse = largest == 0 ? 0.0f : 1.0f / largest;
  for (int64_t i = 0; i < count; ++i) codes[i] = NearestCode(values[i] * inverse, map);
  return largest;
}

}  // namespace

float CpuOps::EncodeNf4(Tensor in, const Nf4Buffers& out, Tensor scratch) {
  checks::EncodeNf4(in, out, scratch);
  const int64_t elements = in.elements(), blocks = scratch.cols;
  float* absmax = scratch.as<float>();
  WeightView flat;
  flat.data = in.data, flat.dtype = in.dtype, flat.rows = 1, flat.cols = elements;
  pool_.Ranges(blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    constexpr int64_t kChunk = 32 * kNf4BlockSize;
    float chunk[kChunk];
    for (int64_t at = begin * kNf4BlockSize; at < std::min(end * kNf4BlockSize, elements); at += kChunk) {
      const int64_t count = std::min({kChunk, end * kNf4BlockSize - at, elements - at});
      const float* values = chunk;
      if (in.dtype == DType::kF32) {
        values = in.as<float>() + at;
      } else {
        kernels_.decode(flat, at, count, chunk);
      }
      EncodeNf4Plain(values, static_cast<uint64_t>(count), out.codes + at / 2, absmax + at / kNf4BlockSize);
    }
  });
  const float offset = MeanOfAbsmax(absmax, static_cast<uint64_t>(blocks));
  const int64_t nested = (blocks + kNf4NestedBlockSize - 1) / kNf4NestedBlockSize;
  pool_.Ranges(nested, kGrainBlocks / 32, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kNf4NestedBlockSize, last = std::min(end * kNf4NestedBlockSize, blocks);
    EncodeNf4Absmax(absmax + first, static_cast<uint64_t>(last - first), offset, out.absmax_codes + first,
                    out.nested_absmax + begin);
  });
  return offset;
}

void CpuOps::AdamW8bit(Tensor param, Tensor grad, Tensor m, Tensor m_absmax, Tensor v, Tensor v_absmax,
                       Tensor sum_squares, Tensor step, const AdamWConstants& constants) {
  checks::AdamW8bit(param, grad, m, m_absmax, v, v_absmax, sum_squares, step);
  const AdamWScalars scalars = Scalars(sum_squares, step, constants);
  const DynamicMap &m_map = SignedDynamicMap(), &v_map = UnsignedDynamicMap();
  const int64_t n = param.elements();
  pool_.Ranges(m_absmax.cols, kGrainBlocks / 8, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kOptimizerBlockSize, count = std::min(kOptimizerBlockSize, n - first);
      float m_values[kOptimizerBlockSize], v_values[kOptimizerBlockSize];
      DecodeStates(m.as<uint8_t>() + first, m_absmax.as<float>()[block], m_map, count, m_values);
      DecodeStates(v.as<uint8_t>() + first, v_absmax.as<float>()[block], v_map, count, v_values);
      kernels_.adamw(param.as<float>() + first, grad.as<float>() + first, m_values, v_values, count, scalars);
      m_absmax.as<float>()[block] = EncodeStates(m_values, m_map, count, m.as<uint8_t>() + first);
      v_absmax.as<float>()[block] = EncodeStates(v_values, v_map, count, v.as<uint8_t>() + first);
    }
  });
}

}  // namespace hone
