// How attention through cuDNN is cut into calls and what memory that takes: host arithmetic that a plan can do on a
// machine without CUDA or cuDNN. cuDNN's deterministic backward keeps P's gradient for a call's whole batch, padded to
// its longest document (batch x heads x length^2 bf16), so documents are sorted into length classes, and a call takes
// as many documents of a class, or as few heads of one document, as fit `cudnn_bytes`. Not here: cuDNN
// (cudnn_attention.h).
#pragma once

#include <algorithm>
#include <cstdint>

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

// What cuDNN asks for one call, never under what it reports (measured with 9.14 and 9.19).
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

constexpr uint64_t CudnnAligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// Offsets and lengths of one call of `batch` documents.
constexpr uint64_t CudnnOffsetBytes(int64_t batch) {
  return CudnnAligned(static_cast<uint64_t>(kCudnnOffsetArrays * ((batch + 2) / 2 * 2) * 8 + (batch + 3) / 4 * 16));
}

// All that Forward and Backward together need for `documents` packed documents of `tokens` tokens, none longer than
// max_length. 0: not through cuDNN.
constexpr uint64_t CudnnAttentionWorkspaceBytes(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t max_length,
                                                int64_t tokens, int64_t documents, uint64_t cudnn_bytes) {
  const CudnnCallShape longest = CudnnCallShapeFor(heads, kv_heads, CudnnLengthClass(max_length), cudnn_bytes);
  if (longest.batch == 0) return 0;
  // Every call but a class's last is full; a call of n documents has room for fewer than 2 n.
  uint64_t offsets = 0, cudnn = 0;
  for (int64_t c = kCudnnShortestClass;; c = CudnnNextClass(c)) {
    offsets += CudnnOffsetBytes(1);
    const CudnnCallShape shape = CudnnCallShapeFor(heads, kv_heads, c, cudnn_bytes);
    cudnn = std::max(cudnn, CudnnBackwardBytes(shape.batch, shape.kv_heads * (heads / kv_heads), c));
    if (c >= max_length) break;
  }
  offsets += static_cast<uint64_t>(documents) * CudnnOffsetBytes(2);
  const uint64_t softmax_sums = CudnnAligned(static_cast<uint64_t>(tokens * heads) * 4);
  const uint64_t full_heads = 2 * CudnnAligned(static_cast<uint64_t>(tokens * heads * head_dim) * 2);
  return offsets + softmax_sums + full_heads + CudnnAligned(cudnn);
}

}  // namespace hone
