// A tokenizer.json as GGUF metadata (tokenizer.ggml.*): the opposite of Tokenizer::FromGguf. Only the byte-level BPE
// kinds that tokenizer.ggml.pre has a name for here (smollm, gpt-2, llama-bpe, qwen2); anything else is an error, since
// a wrong name makes every reader split text differently without a word.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace hone {

// vocab_size: rows of the embedding; ids without a token become unused padding tokens, as converters write them.
absl::StatusOr<GgufVocabulary> VocabularyFromTokenizerJson(std::string_view tokenizer_json, const Tokenizer& tokenizer,
                                                           int64_t vocab_size);

}  // namespace hone
