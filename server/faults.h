// What an error means for a job: whose fault it is, and whether it is something that a job should wait for (HELD)
// instead of failing. Also the look whether such a cause is gone. Pure functions and small looks at the file system;
// not here: changing states (job_runner, scheduler).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "hone/v1/jobs.pb.h"

namespace hone {

// Reasons of HELD that the daemon takes back by itself.
inline constexpr std::string_view kDiskFull = "DISK_FULL";
inline constexpr std::string_view kModelMissing = "MODEL_MISSING";
inline constexpr std::string_view kDataMissing = "DATA_MISSING";
inline constexpr std::string_view kGpuUnhealthy = "GPU_UNHEALTHY";

enum class Fault {
  kOther,        // the spec, the data, the model, or a mistake of ours
  kDiskFull,     // no space left, quota exceeded
  kDeviceError,  // a CUDA error that ended the worker; the device goes on
  kDeviceLost,   // the device or its driver is not usable now
  kNotFinite,    // the loss or a gradient is no number
};
Fault FaultOf(const absl::Status& error);
// A device error for people: the driver's words without the place in our source.
std::string DeviceErrorText(std::string_view message);

// A cause to hold a job for.
struct Cause {
  std::string reason;   // one of the above
  std::string message;  // what is wrong and what mends it
};
// A model or data file of the resolved spec that is not there or cannot be read.
std::optional<Cause> MissingInput(const v1::JobSpec& resolved);
// Bytes that should be free before a job that ran out of disk is tried again: two checkpoints by its plan, and what
// must stay free anyway.
uint64_t SpaceToGoOn(const v1::Plan& plan, uint64_t min_free);

// OK if the driver answers (nvidia-smi); UNAVAILABLE saying what it said. OK, too, where there is no nvidia-smi.
absl::Status ProbeGpu();

}  // namespace hone
