// LoRA adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors with keys such as
// base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight. y = W x + s B (A x), s = alpha / r, or alpha /
// sqrt(r) with rsLoRA; rank_pattern and alpha_pattern change r and alpha for single modules. Anything else PEFT can do
// (DoRA, bias, modules_to_save, ...) is refused by name.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/io/receipt.h"
#include "engine/model/decoder_config.h"

namespace hone {

struct LoraWeights {
  int64_t layer = 0;
  LinearKind kind = LinearKind::kQ;
  int64_t r = 0;
  double scale = 0;      // s; filled by ReadPeftAdapter, computed from the metadata by LoraScale
  std::vector<float> a;  // [r, in]
  std::vector<float> b;  // [out, r]
};

struct LoraMetadata {
  int64_t r = 0;
  double alpha = 0;
  bool use_rslora = false;
  double dropout = 0;
  std::string base_model;                       // base_model_name_or_path
  std::map<std::string, int64_t> rank_pattern;  // module name or suffix -> r
  std::map<std::string, double> alpha_pattern;  // module name or suffix -> alpha
};

struct LoraAdapter {
  LoraMetadata metadata;
  std::vector<LoraWeights> weights;  // by layer, then kind; each module at most once
};

double LoraScale(const LoraMetadata& metadata, int64_t layer, LinearKind kind, int64_t r);
// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
std::string LoraTensorName(int64_t layer, LinearKind kind, char a_or_b);

// adapter_config.json. Errors name the field.
absl::StatusOr<LoraMetadata> ParsePeftConfig(std::string_view text);
// Checks names and shapes against the model.
absl::StatusOr<LoraAdapter> ReadPeftAdapter(const std::string& directory, const DecoderConfig& config);
// Writes both files durably (the folder is made if needed); fp32.
absl::StatusOr<std::vector<FileReceipt>> WritePeftAdapter(const std::string& directory, const LoraAdapter& adapter,
                                                          const DecoderConfig& config);

}  // namespace hone
