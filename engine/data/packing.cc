#include "engine/data/packing.h"

#include <algorithm>
#include <numeric>

#include "proto/base/status.h"

namespace hone {

namespace {

// Documents [first, first + count) that stay together, and their sum of lengths.
struct Unit {
  uint32_t first = 0, count = 0;
  int64_t tokens = 0;
};

std::vector<Unit> MakeUnits(std::span<const int32_t> lengths, uint32_t coupled) {
  std::vector<Unit> units;
  for (uint32_t i = 0; i < lengths.size(); i += coupled) {
    Unit unit{i, std::min<uint32_t>(coupled, static_cast<uint32_t>(lengths.size()) - i), 0};
    for (uint32_t k = 0; k < unit.count; ++k) {
      HONE_CHECK(lengths[i + k] >= 0);
      unit.tokens += lengths[i + k];
    }
    HONE_CHECK(unit.tokens <= INT32_MAX);
    if (unit.tokens > 0) units.push_back(unit);
  }
  return units;
}

void Append(const Unit& unit, std::span<const int32_t> lengths, MicroBatch* batch) {
  for (uint32_t k = 0; k < unit.count; ++k) {
    const int32_t length = lengths[unit.first + k];
    if (length == 0) continue;
    batch->documents.push_back({unit.first + k, batch->tokens, length});
    batch->tokens += length;
  }
}

}  // namespace

std::vector<MicroBatch> PackDocuments(std::span<const int32_t> lengths, int32_t micro_batch_tokens, PackingMode mode,
                                      uint32_t coupled) {
  HONE_CHECK(micro_batch_tokens > 0 && coupled > 0);
  std::vector<Unit> units = MakeUnits(lengths, coupled);
  if (mode == PackingMode::kFirstFitDecreasing) {
    std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.tokens > b.tokens; });
  }
  std::vector<MicroBatch> batches;
  for (const Unit& unit : units) {
    const auto fits = [&](const MicroBatch& batch) { return batch.tokens + unit.tokens <= micro_batch_tokens; };
    auto place = batches.end();
    if (mode == PackingMode::kFirstFitDecreasing) place = std::find_if(batches.begin(), batches.end(), fits);
    if (mode == PackingMode::kInOrder && !batches.empty() && fits(batches.back())) place = std::prev(batches.end());
    if (place == batches.end()) place = batches.insert(batches.end(), MicroBatch{});
    Append(unit, lengths, &*place);
  }
  return batches;
}

}  // namespace hone
