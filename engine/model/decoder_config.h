// What a decoder is: sizes and the switches by which families differ. Read from config.json (engine/io/hf_config.h) or
// from GGUF metadata (engine/io/gguf_config.h); nothing here touches files.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace hone {

enum class RopeScalingKind : uint8_t { kNone, kLinear, kLlama3 };

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1;
  double low_freq_factor = 1;   // kLlama3
  double high_freq_factor = 4;  // kLlama3
  int64_t original_max_position = 8192;
};

struct DecoderConfig {
  std::string family;  // a row of engine/model/family.h
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position = 0;
  float rms_norm_eps = 1e-6f;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  Activation activation = Activation::kSilu;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool qk_norm = false;
  int64_t sliding_window = 0;  // 0: none
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;
};

// inv_freq[i], i < head_dim / 2, with the scaling applied, as transformers computes it (fp32).
std::vector<float> RopeInverseFrequencies(const DecoderConfig& config);

// LoRA target names in block order; also the PEFT and Hugging Face spelling.
enum class LinearKind : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLinearKinds = 7;
std::string LinearModuleName(int64_t layer, LinearKind kind);  // "model.layers.3.self_attn.q_proj"
std::string LinearShortName(LinearKind kind);                  // "q_proj"
struct LinearShape {
  int64_t out = 0, in = 0;
};
LinearShape ShapeOf(const DecoderConfig& config, LinearKind kind);

// Linears that share one input, neighbours in LinearKind.
enum class GroupKind : uint8_t { kQkv, kO, kGateUp, kDown };
inline constexpr int kGroupKinds = 4;
std::span<const LinearKind> MembersOf(GroupKind group);

}  // namespace hone
