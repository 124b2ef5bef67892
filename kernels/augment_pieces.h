// Ops::AugmentWeight and RefreshAdapters in terms of other operations: what the CPU does, and what a card does with
// shapes its one-launch kernel does not take. Not here: that kernel (cuda/augment.cu), shape checks (the caller's).
#pragma once

#include <span>

#include "kernels/ops.h"

namespace hone {

void AugmentInPieces(Ops& ops, std::span<const AugmentPart> parts, Tensor a, Tensor out);
void RefreshInPieces(Ops& ops, const AdapterRefresh& weight);

}  // namespace hone
