// The pre-tokenisers of tokenizer.json: Split, Digits and ByteLevel, and their sequences: they cut text into the pieces
// that BPE works on. ByteLevel's mapping of bytes to printable characters is not done on the text; the model's tables
// are mapped instead (bpe.h), so that pieces stay ranges of the text.
#pragma once

#include <cstdint>
#include <deque>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/text/aligned_text.h"
#include "engine/text/normalizer.h"

namespace hone {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Pattern pattern;
  SplitBehavior behavior;
  bool invert;
};
struct DigitsStep {
  bool individual;
};
struct ByteLevelStep {
  bool add_prefix_space;
  std::vector<SplitRegex> regex;  // GPT-2's, or none
};
using PreTokenizerStep = std::variant<SplitStep, DigitsStep, ByteLevelStep>;

// GPT-2's pattern, which ByteLevel uses.
extern const std::string_view kGpt2Pattern;

// Bytes [begin, end) of a text that outlives it; never empty.
struct Piece {
  const AlignedText* text;
  uint32_t begin, end;
  std::string_view view() const { return text->text().substr(begin, end - begin); }
};

// Cuts `pieces` by every step in order. Texts a step makes (a prefix space) are kept in `arena`.
absl::Status PreTokenize(const std::vector<PreTokenizerStep>& steps, std::vector<Piece>& pieces,
                         std::deque<AlignedText>& arena, RegexScratch& scratch);

}  // namespace hone
