// --device and --precision, which override the spec.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "engine/worker/device.h"
#include "proto/base/status.h"

namespace hone {

struct DeviceFlags {
  std::string device = "auto", precision = "auto";
  int threads = 0;

  void Add(CLI::App* verb, bool with_device = true) {
    if (with_device)
      verb->add_option("--device", device, "auto, cpu or cuda")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    verb->add_option("--precision", precision, "auto, fp32 or bf16")->check(CLI::IsMember({"auto", "fp32", "bf16"}));
    verb->add_option("--threads", threads, "CPU threads; 0: all");
  }
  absl::StatusOr<DeviceChoice> Choice() const {
    DeviceChoice choice;
    choice.device = device == "cpu" ? v1::DEVICE_CPU : device == "cuda" ? v1::DEVICE_CUDA : v1::DEVICE_AUTO;
    choice.precision = precision == "fp32"   ? v1::PRECISION_FP32
                       : precision == "bf16" ? v1::PRECISION_BF16
                                             : v1::PRECISION_AUTO;
    if (threads < 0) return InvalidArgument("--threads: expected 0 or more");
    choice.threads = threads;
    return choice;
  }
};

}  // namespace hone
