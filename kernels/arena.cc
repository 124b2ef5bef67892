#include "kernels/arena.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr uint64_t RoundUp(uint64_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// A dry arena's addresses start here, so that they are aligned and never null; nobody reads them.
const auto kDryBase = reinterpret_cast<char*>(uintptr_t{1} << 40);
constexpr uint64_t kDryCapacity = uint64_t{1} << 46;

}  // namespace

Arena::Arena(std::string name, void* base, uint64_t capacity)
    : name_(std::move(name)), base_(static_cast<char*>(base)), capacity_(capacity) {
  HONE_CHECK(reinterpret_cast<uintptr_t>(base) % kArenaAlignment == 0, "arena ", name_, ": base is not aligned");
}

Arena Arena::Dry(std::string name) {
  Arena arena(std::move(name), kDryBase, kDryCapacity);
  arena.dry_ = true;
  return arena;
}

void* Arena::Allocate(uint64_t bytes) {
  // used_ is a multiple of the alignment; only the last allocation may end short of one.
  HONE_CHECK(bytes <= capacity_ - used_, "arena ", name_, ": ", bytes, " bytes asked, ", capacity_ - used_, " of ",
             capacity_, " left; the plan sized it too small");
  void* result = base_ + used_;
  used_ = std::min(used_ + RoundUp(bytes), capacity_);
  high_water_ = std::max(high_water_, used_);
  return result;
}

Tensor Arena::AllocateTensor(DType dtype, int64_t rows, int64_t cols, int64_t pitch) {
  if (pitch == 0) pitch = cols;
  HONE_CHECK(rows >= 0 && cols >= 0 && pitch >= cols, "arena ", name_, ": ", rows, " x ", cols, ", pitch ", pitch);
  HONE_CHECK(BlockElements(dtype) == 1, "arena ", name_, ": a tensor of ", DTypeName(dtype));
  uint64_t bytes = 0;
  const bool overflow = __builtin_mul_overflow(static_cast<uint64_t>(rows), static_cast<uint64_t>(pitch), &bytes) ||
                        __builtin_mul_overflow(bytes, static_cast<uint64_t>(BlockBytes(dtype)), &bytes);
  HONE_CHECK(!overflow, "arena ", name_, ": ", rows, " x ", pitch, " overflows");
  return Tensor{Allocate(bytes), dtype, rows, cols, pitch};
}

void Arena::Release(uint64_t mark) {
  HONE_CHECK(mark <= used_, "arena ", name_, ": released out of order");
  used_ = mark;
}

}  // namespace hone
