#include "engine/worker/inspect.h"

#include "engine/io/model_files.h"
#include "engine/io/safetensors.h"
#include "proto/base/status.h"

namespace hone {

absl::StatusOr<nlohmann::ordered_json> InspectModel(const std::string& source) {
  HONE_ASSIGN_OR_RETURN(const auto files, ModelFiles::Open(source));
  const DecoderConfig& config = files->config();
  nlohmann::ordered_json out;
  out["source"] = source;
  out["format"] = ModelSourceKindName(files->kind());
  out["family"] = config.family;
  out["config"] = {{"vocab_size", config.vocab_size},
                   {"hidden_size", config.hidden_size},
                   {"intermediate_size", config.intermediate_size},
                   {"num_hidden_layers", config.num_layers},
                   {"num_attention_heads", config.num_heads},
                   {"num_key_value_heads", config.num_kv_heads},
                   {"head_dim", config.head_dim},
                   {"max_position_embeddings", config.max_position},
                   {"rms_norm_eps", config.rms_norm_eps},
                   {"rope_theta", config.rope_theta},
                   {"tie_word_embeddings", config.tie_word_embeddings},
                   {"attention_bias", config.qkv_bias},
                   {"qk_norm", config.qk_norm},
                   {"sliding_window", config.sliding_window},
                   {"bos_token_id", config.bos_token_id},
                   {"eos_token_ids", config.eos_token_ids}};
  const auto tokenizer = files->OpenTokenizer();
  if (tokenizer.ok()) {
    out["tokenizer"] = {{"kind", (*tokenizer)->kind()}, {"vocab_size", (*tokenizer)->vocab_size()}};
  } else {
    out["tokenizer"] = {{"kind", nullptr}, {"error", std::string(tokenizer.status().message())}};
  }
  out["chat_template"] = !files->chat_template().empty();
  out["quantization"] = files->Quantization();
  uint64_t bytes = 0, parameters = 0;
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const ListedTensor& tensor : files->Tensors()) {
    bytes += tensor.bytes;
    uint64_t elements = 1;
    for (int64_t extent : tensor.shape) elements *= static_cast<uint64_t>(extent);
    parameters += elements;
    tensors.push_back({{"name", EscapeForDisplay(tensor.name)},
                       {"type", tensor.type},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes}});
  }
  out["parameters"] = parameters;
  out["bytes"] = bytes;
  out["digest"] = files->digest();
  out["tensors"] = std::move(tensors);
  return out;
}

}  // namespace hone
