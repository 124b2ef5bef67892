// The table of model families: a family is a row of differences. Adding one that needs no new operation touches this
// table's .cc and one test.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/statusor.h"

namespace hone {

enum class Presence : uint8_t { kNever, kAlways, kByConfig };

struct Family {
  std::string_view name;                       // "llama"
  std::string_view hf_model_type;              // config.json model_type
  std::string_view hf_architecture;            // config.json architectures[0]; also written by exports
  std::string_view gguf_architecture;          // general.architecture
  bool gguf_permutes_qk = false;               // GGUF stores q and k rows in interleaved rotary order
  Presence qkv_bias = Presence::kNever;        // kByConfig: attention_bias
  Presence sliding_window = Presence::kNever;  // kByConfig: sliding_window (and use_sliding_window where written)
  bool qk_norm = false;
};

std::span<const Family> Families();
absl::StatusOr<const Family*> FamilyByHfModelType(std::string_view model_type);
absl::StatusOr<const Family*> FamilyByGgufArchitecture(std::string_view architecture);
const Family& FamilyByName(std::string_view name);  // an invariant: names come from this table

}  // namespace hone
