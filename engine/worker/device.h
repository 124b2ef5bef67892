// Which back end a run computes on. Not here: memory.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "hone/v1/spec.pb.h"
#include "kernels/backend.h"

namespace hone {

struct DeviceChoice {
  v1::Device device = v1::DEVICE_AUTO;
  v1::Precision precision = v1::PRECISION_AUTO;
  int threads = 0;  // CPU; 0: all
  // Where what was measured on this machine is kept (products' fastest algorithms, rates); empty: nowhere.
  std::string cache_folder;
};

// AUTO becomes CUDA where this build and machine have it (and bf16 was not asked of the CPU), else the CPU; AUTO
// precision becomes fp32 on the CPU and bf16 on CUDA. bf16 on the CPU and devices this build or machine lacks are
// errors that say what to write instead.
absl::StatusOr<DeviceChoice> ResolveDevice(const DeviceChoice& wanted);
// "NVIDIA GeForce RTX 3090", or "cpu (2 threads); no CUDA: ..." saying why AUTO became the CPU. Opens nothing.
std::string DescribeDevice(const DeviceChoice& resolved);
// Beside the daemon's reference cache where there is one, else $XDG_CACHE_HOME/hone or ~/.cache/hone, made if it can
// be; empty: nowhere.
std::string MachineCacheFolder(const std::string& reference_cache_dir = "");
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const DeviceChoice& resolved);

}  // namespace hone
