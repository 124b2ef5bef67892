#include "engine/data/order.h"

#include <algorithm>
#include <utility>

#include "proto/base/status.h"

namespace hone {

// Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3: ten rounds, two multipliers, two
// Weyl keys.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

std::vector<uint32_t> Permutation(uint32_t count, uint64_t seed, uint64_t epoch, uint32_t purpose) {
  std::vector<uint32_t> order(count);
  for (uint32_t i = 0; i < count; ++i) order[i] = i;
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (uint32_t i = count; i > 1; --i) {
    const auto random = Philox4x32({i, static_cast<uint32_t>(epoch), static_cast<uint32_t>(epoch >> 32), purpose}, key);
    const uint64_t bits = uint64_t{random[0]} << 32 | random[1];
    // The high half of bits * i: uniform on [0, i) to within 2^-32.
    const auto j = static_cast<uint32_t>(static_cast<unsigned __int128>(bits) * i >> 64);
    std::swap(order[i - 1], order[j]);
  }
  return order;
}

BatchOrder::BatchOrder(uint32_t count, uint32_t batch_examples, EpochOrder order, uint64_t seed)
    : count_(count), batch_(batch_examples), order_(order), seed_(seed) {
  HONE_CHECK(count > 0 && batch_examples > 0);
}

void BatchOrder::Load(uint64_t epoch) {
  if (epoch == loaded_epoch_) return;
  epoch_order_ = Permutation(count_, seed_, epoch);
  loaded_epoch_ = epoch;
}

std::vector<uint32_t> BatchOrder::Next(DataCursor* cursor) {
  HONE_CHECK(cursor->position < count_, "the data cursor stands at ", cursor->position, " of ", count_, " examples");
  const uint64_t begin = cursor->position, end = std::min<uint64_t>(count_, begin + batch_);
  std::vector<uint32_t> batch;
  if (order_ == EpochOrder::kSequential) {
    for (uint64_t i = begin; i < end; ++i) batch.push_back(static_cast<uint32_t>(i));
  } else {
    Load(cursor->epoch);
    batch.assign(epoch_order_.begin() + static_cast<long>(begin), epoch_order_.begin() + static_cast<long>(end));
  }
  *cursor = end == count_ ? DataCursor{cursor->epoch + 1, 0} : DataCursor{cursor->epoch, end};
  return batch;
}

DataCursor BatchOrder::CursorAfter(uint64_t steps) const {
  return {steps / steps_per_epoch(), steps % steps_per_epoch() * batch_};
}

}  // namespace hone
