// Which documents share an execution micro-batch. Never changes the mathematics: only where a document's rows lie.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hone {

enum class PackingMode {
  kOff,                 // one document a micro-batch, in order
  kInOrder,             // in order; a new micro-batch where the next document does not fit
  kFirstFitDecreasing,  // longest first, each into the first micro-batch with room (ties: lower index first)
};

// Document `document` (an index into the given lengths) takes rows [begin, begin + length) of its micro-batch.
struct DocumentRange {
  uint32_t document = 0;
  int32_t begin = 0, length = 0;
  friend bool operator==(const DocumentRange&, const DocumentRange&) = default;
};

struct MicroBatch {
  std::vector<DocumentRange> documents;  // begin ascending, no gaps
  int32_t tokens = 0;                    // sum of lengths
};

// micro_batch_tokens > 0. A document longer than it gets a micro-batch of its own size; documents are never split;
// documents of length 0 are left out. `coupled`: that many consecutive documents stay together (a pair: 2) and count as
// one.
std::vector<MicroBatch> PackDocuments(std::span<const int32_t> lengths, int32_t micro_batch_tokens, PackingMode mode,
                                      uint32_t coupled = 1);

}  // namespace hone
