// In which order an epoch visits the examples, cut into semantic batches, and where a run stands in it. Not here: the
// execution micro-batches (packing.h). A KL pair is stored with its example, so no order can part them.
//
// `shuffled`: Fisher-Yates over Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter = (i, epoch,
// purpose): a pure function of (seed, epoch, n), so a resumed run sees what the undisturbed one saw.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace hone {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

enum class EpochOrder { kShuffled, kSequential };

// A permutation of [0, count). purpose tells independent uses of one seed apart (0: epochs, 1: the evaluation split).
std::vector<uint32_t> Permutation(uint32_t count, uint64_t seed, uint64_t epoch, uint32_t purpose = 0);

// Saved in checkpoints: the next batch starts at `position` of `epoch`.
struct DataCursor {
  uint64_t epoch = 0;
  uint64_t position = 0;
  friend bool operator==(const DataCursor&, const DataCursor&) = default;
};

class BatchOrder {
 public:
  // count >= 1, batch_examples >= 1.
  BatchOrder(uint32_t count, uint32_t batch_examples, EpochOrder order, uint64_t seed);

  // Example indices of the batch at the cursor, which then points to the next one. An epoch's last batch may be short;
  // a batch never crosses epochs.
  std::vector<uint32_t> Next(DataCursor* cursor);
  uint64_t steps_per_epoch() const { return (uint64_t{count_} + batch_ - 1) / batch_; }
  // Where the run stands after `steps` batches from the beginning.
  DataCursor CursorAfter(uint64_t steps) const;

 private:
  void Load(uint64_t epoch);
  uint32_t count_, batch_;
  EpochOrder order_;
  uint64_t seed_;
  uint64_t loaded_epoch_ = ~uint64_t{0};
  std::vector<uint32_t> epoch_order_;
};

}  // namespace hone
