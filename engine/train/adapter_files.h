// The trainer's flat vectors as files: an adapter for PEFT, and vectors under PEFT's tensor names for tests and tools.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "engine/io/peft.h"
#include "engine/model/lora.h"

namespace hone {

LoraAdapter AdapterFromValues(const LoraLayout& layout, std::span<const float> values, const std::string& base_model);

// One safetensors file, fp32, every LoRA tensor under its PEFT name.
absl::Status WriteLoraTensors(const std::string& path, const LoraLayout& layout, std::span<const float> values);

}  // namespace hone
