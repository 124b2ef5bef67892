// Which back end a run computes on. Not here: memory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "hone/v1/spec.pb.h"
#include "kernels/backend.h"

namespace hone {

struct DeviceChoice {
  v1::Device device = v1::DEVICE_AUTO;
  v1::Precision precision = v1::PRECISION_AUTO;
  int threads = 0;  // CPU; 0: all
};

// AUTO becomes the CPU (until training runs on CUDA); AUTO precision becomes fp32 on the CPU and bf16 on CUDA. bf16 on
// the CPU and devices this build or machine lacks are errors that say what to write instead.
absl::StatusOr<DeviceChoice> ResolveDevice(const DeviceChoice& wanted);
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const DeviceChoice& resolved);

}  // namespace hone
