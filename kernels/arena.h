// A bump allocator over one range that never grows: what a plan sized. Overflow is a broken invariant, not an error to
// handle. A dry arena has no memory behind it (its addresses are never read) and no end: it measures the peak.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/tensor.h"

namespace hone {

inline constexpr uint64_t kArenaAlignment = 256;

class Arena {
 public:
  // [base, base + capacity), base aligned to kArenaAlignment.
  Arena(std::string name, void* base, uint64_t capacity);
  static Arena Dry(std::string name);

  void* Allocate(uint64_t bytes);  // aligned to kArenaAlignment; zero bytes give a valid address
  Tensor AllocateTensor(DType dtype, int64_t rows, int64_t cols, int64_t pitch = 0 /* cols */);

  uint64_t used() const { return used_; }
  uint64_t high_water() const { return high_water_; }
  uint64_t capacity() const { return capacity_; }
  const std::string& name() const { return name_; }
  bool dry() const { return dry_; }
  void Release(uint64_t mark);  // back to an earlier used()
  void ResetHighWater() { high_water_ = used_; }

 private:
  std::string name_;
  char* base_ = nullptr;
  uint64_t capacity_ = 0;
  uint64_t used_ = 0;
  uint64_t high_water_ = 0;
  bool dry_ = false;
};

// Everything allocated within the scope is released at its end (last in, first out).
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  ~ArenaScope() { arena_.Release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  uint64_t mark_;
};

}  // namespace hone
