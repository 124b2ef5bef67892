// Reading tokenizer.json and tokenizer_config.json. What CONTRACT.md does not list is an error naming it and its JSON
// path; `truncation` and `padding` are ignored, since they belong to batches and the data room decides those
// (transformers resets them as well).
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer_model.h"

namespace hone {

absl::StatusOr<std::unique_ptr<TokenizerModel>> ReadTokenizerJson(std::string_view tokenizer_json);

// Sets bos, eos and pad, and adds tokens of added_tokens_decoder that tokenizer.json lacks, if their ids follow its
// last one, as transformers does. The tokenizer.json alone decides what is put around a text: add_bos_token is not
// read.
absl::Status ReadTokenizerConfigJson(std::string_view tokenizer_config_json, TokenizerModel& model);

}  // namespace hone
