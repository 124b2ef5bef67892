#include "engine/model/family.h"

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr Family kFamilies[] = {
    {.name = "llama",
     .hf_model_type = "llama",
     .hf_architecture = "LlamaForCausalLM",
     .gguf_architecture = "llama",
     .gguf_permutes_qk = true,
     .qkv_bias = Presence::kNever},
    {.name = "qwen2",
     .hf_model_type = "qwen2",
     .hf_architecture = "Qwen2ForCausalLM",
     .gguf_architecture = "qwen2",
     .qkv_bias = Presence::kAlways,
     .sliding_window = Presence::kByConfig},
    {.name = "mistral",
     .hf_model_type = "mistral",
     .hf_architecture = "MistralForCausalLM",
     .gguf_architecture = "mistral",  // GGUF files of this family usually call themselves "llama" and have no window
     .gguf_permutes_qk = true,
     .sliding_window = Presence::kByConfig},
    {.name = "qwen3",
     .hf_model_type = "qwen3",
     .hf_architecture = "Qwen3ForCausalLM",
     .gguf_architecture = "qwen3",
     .qkv_bias = Presence::kByConfig,
     .sliding_window = Presence::kByConfig,
     .qk_norm = true},
};

template <typename Member>
absl::StatusOr<const Family*> Find(Member member, std::string_view value, std::string_view what) {
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.*member == value) return &family;
    known += StrCat(known.empty() ? "" : ", ", family.*member);
  }
  return Unimplemented(what, " '", value, "' is not a model family that Hone knows (it knows ", known, ")");
}

}  // namespace

std::span<const Family> Families() { return kFamilies; }
absl::StatusOr<const Family*> FamilyByHfModelType(std::string_view model_type) {
  return Find(&Family::hf_model_type, model_type, "model_type");
}
absl::StatusOr<const Family*> FamilyByGgufArchitecture(std::string_view architecture) {
  return Find(&Family::gguf_architecture, architecture, "general.architecture");
}
const Family& FamilyByName(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name == name) return family;
  }
  FailInvariant(__FILE__, __LINE__, "family in table", std::string(name));
}

}  // namespace hone
