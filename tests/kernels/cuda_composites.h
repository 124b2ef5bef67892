// Checks of the CUDA back end that span several operations: the adapter-folded linear forward and backward, one head
// chunk in unit mode, and what may not change a bit (M of a product, packing of documents, repetition). Written against
// Ops alone, so that any back end can run them. Single operations: op_case.h.
#pragma once

#include <string>
#include <vector>

#include "kernels/backend.h"

namespace hone {

struct CompositeResult {
  std::string name;
  bool passed = false;
  std::string detail;  // measured error against its bound, or what differed
};

// Those of the families whose name holds `part`, or that `part` begins with.
std::vector<CompositeResult> RunComposites(Backend& backend, const std::string& part);

}  // namespace hone
