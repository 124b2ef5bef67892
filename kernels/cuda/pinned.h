// Page-locked host memory. Much of it is slow to get from the driver in one call (0.4 s a GiB was seen on an H100's
// host), which touches page after page on one thread; here threads touch huge pages before the driver locks them.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace hone::cuda {

// On the current device. ResourceExhausted where it is not to be had.
absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes);

}  // namespace hone::cuda
