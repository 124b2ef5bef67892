#include "engine/model/decoder_config.h"

#include <cmath>
#include <numbers>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr LinearKind kQkvMembers[] = {LinearKind::kQ, LinearKind::kK, LinearKind::kV};
constexpr LinearKind kOMembers[] = {LinearKind::kO};
constexpr LinearKind kGateUpMembers[] = {LinearKind::kGate, LinearKind::kUp};
constexpr LinearKind kDownMembers[] = {LinearKind::kDown};

}  // namespace

std::vector<float> RopeInverseFrequencies(const DecoderConfig& config) {
  const int64_t half = config.head_dim / 2;
  std::vector<float> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float frequency = 1.0f / std::pow(static_cast<float>(config.rope_theta), exponent);
    const RopeScaling& scaling = config.rope_scaling;
    if (scaling.kind == RopeScalingKind::kLinear) {
      frequency /= static_cast<float>(scaling.factor);
    } else if (scaling.kind == RopeScalingKind::kLlama3) {
      const double wavelength = 2 * std::numbers::pi / frequency;
      const double original = static_cast<double>(scaling.original_max_position);
      const double low = original / scaling.low_freq_factor;
      const double high = original / scaling.high_freq_factor;
      if (wavelength > low) {
        frequency = static_cast<float>(frequency / scaling.factor);
      } else if (wavelength >= high) {
        const double smooth =
            (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency = static_cast<float>((1 - smooth) * frequency / scaling.factor + smooth * frequency);
      }
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

std::string LinearShortName(LinearKind kind) {
  switch (kind) {
    case LinearKind::kQ:
      return "q_proj";
    case LinearKind::kK:
      return "k_proj";
    case LinearKind::kV:
      return "v_proj";
    case LinearKind::kO:
      return "o_proj";
    case LinearKind::kGate:
      return "gate_proj";
    case LinearKind::kUp:
      return "up_proj";
    case LinearKind::kDown:
      return "down_proj";
  }
  FailInvariant(__FILE__, __LINE__, "linear kind", "");
}

std::string LinearModuleName(int64_t layer, LinearKind kind) {
  const bool attention = kind <= LinearKind::kO;
  return StrCat("model.layers.", layer, attention ? ".self_attn." : ".mlp.", LinearShortName(kind));
}

LinearShape ShapeOf(const DecoderConfig& config, LinearKind kind) {
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  switch (kind) {
    case LinearKind::kQ:
      return {q, config.hidden_size};
    case LinearKind::kK:
    case LinearKind::kV:
      return {kv, config.hidden_size};
    case LinearKind::kO:
      return {config.hidden_size, q};
    case LinearKind::kGate:
    case LinearKind::kUp:
      return {config.intermediate_size, config.hidden_size};
    case LinearKind::kDown:
      return {config.hidden_size, config.intermediate_size};
  }
  FailInvariant(__FILE__, __LINE__, "linear kind", "");
}

std::span<const LinearKind> MembersOf(GroupKind group) {
  switch (group) {
    case GroupKind::kQkv:
      return kQkvMembers;
    case GroupKind::kO:
      return kOMembers;
    case GroupKind::kGateUp:
      return kGateUpMembers;
    case GroupKind::kDown:
      return kDownMembers;
  }
  FailInvariant(__FILE__, __LINE__, "group kind", "");
}

}  // namespace hone
