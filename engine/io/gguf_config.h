// GGUF metadata to what a model is (DecoderConfig), how it reads text (GgufVocabulary) and how it is spoken to (its
// chat template). What Hone does not compute is an error that names the key.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/io/gguf.h"
#include "engine/model/decoder_config.h"
#include "engine/text/tokenizer.h"

namespace hone {

absl::StatusOr<DecoderConfig> DecoderConfigFromGguf(const GgufFile& file);
absl::StatusOr<GgufVocabulary> VocabularyFromGguf(const GgufFile& file);
std::optional<std::string> ChatTemplateFromGguf(const GgufFile& file);

// GGUF's name of a tensor of a decoder, from Hugging Face's ("model.layers.3.self_attn.q_proj.weight" ->
// "blk.3.attn_q.weight"); nullopt: not a decoder's name.
std::optional<std::string> GgufTensorName(std::string_view hf_name);

}  // namespace hone
