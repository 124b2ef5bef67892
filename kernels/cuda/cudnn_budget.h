// How attention through cuDNN is cut into calls and what memory that takes: host arithmetic that a plan can do on a
// machine without CUDA or cuDNN. cuDNN's deterministic backward keeps P's gradient for a call's whole batch, padded to
// its longest document (batch x heads x length^2 bf16), so documents are sorted into length classes, and a call takes
// as many documents of a class, or as few heads of one document, as fit `cudnn_bytes`. Not here: cuDNN
// (cudnn_attention.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace hone {

inline constexpr int64_t kCudnnShortestClass = 256;
inline constexpr int64_t kCudnnMostDocuments = 64;  // in one call
// Arrays of a call on the device: element offsets of q, kv, out, d_out, lse, dq, dkv, full-head dkv.
inline constexpr int kCudnnOffsetArrays = 8;

// The class of a document: the smallest of 256, 384, 512, 768, 1024, 1536, ... that holds it.
constexpr int64_t CudnnLengthClass(int64_t length) {
  int64_t c = kCudnnShortestClass;
  while (c < length) {
    if (c + c / 2 >= length) return c + c / 2;
    c *= 2;
  }
  return c;
}
constexpr int64_t CudnnNextClass(int64_t c) { return (c & (c - 1)) == 0 ? c + c / 2 : c / 3 * 4; }

// What cuDNN asks for one call, never under what it reports (measured with 9.14: 26 KiB more at most).
constexpr uint64_t CudnnBackwardBytes(int64_t batch, int64_t heads, int64_t length) {
  return static_cast<uint64_t>(batch * heads) * static_cast<uint64_t>(length * length) * 2 + (uint64_t{4} << 20);
}

// The shape of a class's calls. batch 0: even one key-value head of one document does not fit.
struct CudnnCallShape {
  int64_t batch = 0;     // documents at most; a power of two
  int64_t kv_heads = 0;  // a divisor of all
};
constexpr CudnnCallShape CudnnCallShapeFor(int64_t heads, int64_t kv_heads, int64_t length, uint64_t cudnn_bytes) {
  const int64_t group = heads / kv_heads;
  if (CudnnBackwardBytes(1, group, length) > cudnn_bytes) return {};
  int64_t k = kv_heads;
  while (k > 1 && (kv_heads % k != 0 || CudnnBackwardBytes(1, k * group, length) > cudnn_bytes)) --k;
  int64_t batch = 1;
  while (k == kv_heads && batch < kCudnnMostDocuments &&
         CudnnBackwardBytes(batch * 2, heads, length) <= cudnn_bytes) {
    batch *= 2;
  }
  return {batch, k};
}

constexpr int64_t CudnnPowerOfTwoAbove(int64_t n) {
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

constexpr uint64_t CudnnAligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// Offsets and lengths of one call of `batch` documents.
constexpr uint64_t CudnnOffsetBytes(int64_t batch) {
  return CudnnAligned(static_cast<uint64_t>(kCudnnOffsetArrays * ((batch + 2) / 2 * 2) * 8 + (batch + 3) / 4 * 16));
}

// Documents of one length class that one run of a plan takes, in steps of kv_heads.
struct CudnnCall {
  int64_t length = 0;                 // of the class
  int64_t shortest = 0, longest = 0;  // documents of shortest .. longest tokens,
  int64_t skip = 0, documents = 0;    // but the first `skip` of them,
  int64_t batch = 0;                  // padded with empty ones to so many
  int64_t kv_heads = 0;
  uint64_t offsets_at = 0;            // where its offsets begin in the workspace
};
// How documents are cut; empty where one does not fit. Pad to at least `least_batch` documents where a call has room.
inline std::vector<CudnnCall> CudnnCalls(std::span<const Segment> documents, int64_t heads, int64_t kv_heads,
                                         uint64_t cudnn_bytes, int64_t least_batch = 1) {
  std::map<int64_t, int64_t> classes;
  for (const Segment& s : documents) {
    if (s.q_len > 0) ++classes[CudnnLengthClass(s.q_len)];
  }
  std::vector<CudnnCall> calls;
  uint64_t at = 0;
  for (const auto& [length, count] : classes) {
    const CudnnCallShape shape = CudnnCallShapeFor(heads, kv_heads, length, cudnn_bytes);
    if (shape.batch == 0) return {};
    int64_t shorter = 0;  // the longest document of the class below
    for (int64_t c = kCudnnShortestClass; c < length; c = CudnnNextClass(c)) shorter = c;
    for (int64_t skip = 0; skip < count; skip += shape.batch) {
      CudnnCall call{.length = length, .shortest = shorter + 1, .longest = length, .skip = skip};
      call.documents = std::min(shape.batch, count - skip);
      call.batch = std::min(shape.batch, CudnnPowerOfTwoAbove(std::max(call.documents, least_batch)));
      call.kv_heads = shape.kv_heads;
      call.offsets_at = at;
      at += CudnnOffsetBytes(call.batch);
      calls.push_back(call);
    }
  }
  return calls;
}
inline uint64_t CudnnOffsetsEnd(const std::vector<CudnnCall>& calls) {
  return calls.empty() ? 0 : calls.back().offsets_at + CudnnOffsetBytes(calls.back().batch);
}

// All that Forward and Backward together need for `documents` packed documents of `tokens` tokens, none longer than
// max_length. 0: not through cuDNN.
constexpr uint64_t CudnnAttentionWorkspaceBytes(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t max_length,
                                                int64_t tokens, int64_t documents, uint64_t cudnn_bytes) {
  const CudnnCallShape longest = CudnnCallShapeFor(heads, kv_heads, CudnnLengthClass(max_length), cudnn_bytes);
  if (longest.batch == 0) return 0;
  // A call of n documents is padded to fewer than 2 n; a class cannot hold more documents than its shortest allow.
  uint64_t cudnn = 0;
  uint64_t offsets = static_cast<uint64_t>(documents) * CudnnOffsetBytes(2);
  int64_t shortest = 1;
  for (int64_t c = kCudnnShortestClass;; c = CudnnNextClass(c)) {
    const CudnnCallShape shape = CudnnCallShapeFor(heads, kv_heads, c, cudnn_bytes);
    const int64_t most = std::min(documents, std::max<int64_t>(1, tokens / shortest));
    const int64_t batch = std::min(shape.batch, CudnnPowerOfTwoAbove(most));
    cudnn = std::max(cudnn, CudnnBackwardBytes(batch, shape.kv_heads * (heads / kv_heads), c));
    offsets += CudnnOffsetBytes(1);
    if (c >= max_length) break;
    shortest = c + 1;
  }
  const uint64_t softmax_sums = CudnnAligned(static_cast<uint64_t>(tokens * heads) * 4);
  const uint64_t full_heads = 2 * CudnnAligned(static_cast<uint64_t>(tokens * heads * head_dim) * 2);
  return offsets + softmax_sums + full_heads + CudnnAligned(cudnn);
}

}  // namespace hone
