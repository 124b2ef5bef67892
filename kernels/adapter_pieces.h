// Ops::AdapterBackward in terms of other operations: what the CPU does, and what a card does with shapes its one-pass
// kernel does not take. Not here: that kernel (cuda/adapter_backward.cu), shape checks (the caller's).
#pragma once

#include <span>

#include "kernels/ops.h"

namespace hone {

void AdapterBackwardInPieces(Ops& ops, std::span<const AdapterPart> parts, Tensor dy, Tensor b, Tensor u, float alpha,
                             float beta, Tensor du);

}  // namespace hone
