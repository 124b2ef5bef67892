// From rows to token examples: chat template, tokenisation, masks, BOS/EOS and truncation. Not here: mismatched pairs
// (kl_pairs.h), whole data sets (dataset.h), packing (packing.h).
//
// Message rows: rendered once, tokenised without added special tokens (the template writes them); a token is trained if
// its bytes and a trained span of the rendering (chat_template.h) overlap. So a token that merges the template's last
// character with the content's first is trained, as TRL's step back by one token does it. With a prompt only the
// completion's messages are trained; for KTO a `messages` row's completion is its last assistant message. KTO's answer
// begins at the first trained token and ends with the last: what the template writes after the end-of-turn is left out.
//
// String rows, SFT (as TRL 0.24's SFTTrainer): EOS's text appended if the text does not end with it, then tokenised
// with the tokenizer's own special tokens; prompt + completion is tokenised as one text and what lies past the prompt's
// own number of tokens is trained; `text` trains every token. Overflow: cut at the right to max_length.
//
// String rows, KTO (as TRL 0.24's KTOTrainer): prompt and prompt + completion are tokenised without special tokens; the
// answer is what lies past the prompt's number of tokens, one less if the prompt's ids are not a prefix. If prompt +
// answer exceed the budget (max_length, less one if the prompt does not begin with BOS, which a tokenizer without BOS
// never does, and less one if the answer does not end with EOS) the prompt keeps its last max_prompt_length ids; if
// they still do the answer keeps its first budget - max_prompt_length. Then BOS (if the tokenizer has one) and EOS are
// added where missing. Message rows and ids rows: the same truncation with budget max_length, nothing added.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/records.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace hone {

enum class DataObjective { kSft, kKto };

struct ExampleOptions {
  DataObjective objective = DataObjective::kSft;
  int32_t max_length = 1024;
  int32_t max_prompt_length = 512;  // KTO
};

// What rows need to become tokens. Pre-tokenised rows need neither; string rows no template.
struct TextTools {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;
};

struct Example {
  std::vector<int32_t> ids;
  std::vector<uint8_t>
      trained;                // one per id: 1 if its prediction from the ids before it is supervised; [0] is always 0
  int32_t prompt_length = 0;  // KTO: ids before the answer. SFT: ids before the first trained one
  bool label = true;          // KTO
  uint64_t row = 0;           // Row::number
  uint32_t cut_prompt = 0, cut_completion = 0;  // ids that truncation removed
  int32_t length() const { return static_cast<int32_t>(ids.size()); }
  int32_t supervised() const;  // number of ones in trained
};

// A KTO row before truncation: what the row's own example and its KL example are made of.
struct KtoParts {
  std::vector<int32_t> prompt, answer;
  std::vector<uint8_t> answer_trained;  // one per id of answer; an added EOS is trained
  bool raw_text = false;                // a string row: BOS and EOS are added where missing
  std::optional<int32_t> bos, eos;      // the tokenizer's, if raw_text
  bool label = true;
  uint64_t row = 0, line = 0;
};

// Errors begin with "row 17 (line 17): ".
// SFT. Errors: no supervised token (also when truncation cut them all), a template that cannot be traced, bad ids.
absl::StatusOr<Example> MakeSftExample(const Row& row, const TextTools& tools, const ExampleOptions& options);

// KTO. Errors: no label, kinds without a completion (`text`, `ids`).
absl::StatusOr<KtoParts> MakeKtoParts(const Row& row, const TextTools& tools);
// Truncates and adds BOS/EOS. Errors: too long and max_prompt_length leaves no room for an answer; no supervised token.
absl::StatusOr<Example> MakeKtoExample(const KtoParts& parts, const ExampleOptions& options);

}  // namespace hone
