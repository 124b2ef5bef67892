// Replaces operator new in the program that links it, to see whether a piece of code allocates.
#pragma once

#include <cstdint>

namespace hone {

int64_t AllocationCount();  // by all threads since the start

}  // namespace hone
