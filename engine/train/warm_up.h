// The first launches of a run, whose results are thrown away: kernels and libraries load, products are timed and their
// algorithms chosen, so that afterwards nothing allocates on the device. Not here: what a run computes.
#pragma once

#include "engine/train/prepare.h"
#include "engine/train/session.h"
#include "hone/v1/plan.pb.h"
#include "kernels/backend.h"

namespace hone {

// The largest launches of each kind and one of each size that the first steps make, then the optimiser. Adapter,
// gradients and optimiser states are zero afterwards; set them then.
void WarmUp(const PreparedRun& run, const v1::Plan& plan, TrainSession& session, Backend& backend);

}  // namespace hone
