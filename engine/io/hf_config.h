// config.json of a Hugging Face model to DecoderConfig and back. Both spellings are read (rope_theta and rope_scaling,
// or rope_parameters; torch_dtype or dtype). What Hone does not compute (a scaling type, an activation, a model_type, a
// soft cap) is an error that names the field, never a default.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/decoder_config.h"
#include "kernels/dtype.h"

namespace hone {

struct HfConfig {
  DecoderConfig decoder;
  std::optional<DType> dtype;     // torch_dtype / dtype, where it is written
  bool bitsandbytes_nf4 = false;  // quantization_config says bitsandbytes 4-bit nf4
};

// generation_config_json may be empty; its eos_token_id is preferred, as transformers' generate does.
absl::StatusOr<HfConfig> ParseHfConfig(std::string_view config_json, std::string_view generation_config_json = {});

// A config.json that ParseHfConfig and transformers 4.57 read back to the same model.
std::string WriteHfConfig(const DecoderConfig& config, DType dtype);
std::string WriteHfGenerationConfig(const DecoderConfig& config);

}  // namespace hone
