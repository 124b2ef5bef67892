#include "engine/worker/device.h"

#include "proto/base/status.h"

namespace hone {

absl::StatusOr<DeviceChoice> ResolveDevice(const DeviceChoice& wanted) {
  DeviceChoice choice = wanted;
  if (choice.device == v1::DEVICE_UNSPECIFIED || choice.device == v1::DEVICE_AUTO) choice.device = v1::DEVICE_CPU;
  if (choice.precision == v1::PRECISION_UNSPECIFIED || choice.precision == v1::PRECISION_AUTO) {
    choice.precision = choice.device == v1::DEVICE_CUDA ? v1::PRECISION_BF16 : v1::PRECISION_FP32;
  }
  if (choice.device == v1::DEVICE_CPU && choice.precision == v1::PRECISION_BF16) {
    return InvalidArgument("run.precision: bf16 is computed on CUDA only; write fp32 or auto for the CPU");
  }
  if (choice.device == v1::DEVICE_CUDA && !CudaBuilt()) {
    return FailedPrecondition(
        "run.device: this build has no CUDA back end; write cpu or auto, or build with HONE_CUDA=ON");
  }
  return choice;
}

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const DeviceChoice& resolved) {
  if (resolved.device == v1::DEVICE_CUDA) {
    CudaOptions options;
    options.activation_dtype = resolved.precision == v1::PRECISION_FP32 ? DType::kF32 : DType::kBF16;
    return OpenCuda(options);
  }
  return OpenCpu({resolved.threads});
}

}  // namespace hone
