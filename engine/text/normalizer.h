// The normalisers of tokenizer.json: NFC, Prepend, Replace, and their sequences. Not here: how they are read
// (tokenizer_json.h), and the text that remembers its source (aligned_text.h).
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/aligned_text.h"
#include "engine/text/split_regex.h"

namespace hone {

// A literal string or a regular expression.
class Pattern {
 public:
  explicit Pattern(std::string literal) : pattern_(std::move(literal)) {}  // not empty
  explicit Pattern(SplitRegex regex) : pattern_(std::move(regex)) {}
  absl::Status Tile(std::string_view text, RegexScratch& scratch, std::vector<MatchSpan>& out) const;

 private:
  std::variant<std::string, SplitRegex> pattern_;
};

struct NfcStep {};
struct PrependStep {
  std::string prepend;  // put before a text that is not empty
};
struct ReplaceStep {
  Pattern pattern;
  std::string content;
};
using NormalizerStep = std::variant<NfcStep, PrependStep, ReplaceStep>;

// Runs the steps in order. A result more than kMaxGrowth times the text (and 64 KiB) is an error: a hostile file.
inline constexpr size_t kMaxGrowth = 64;
absl::StatusOr<AlignedText> Normalize(const std::vector<NormalizerStep>& steps, AlignedText text,
                                      RegexScratch& scratch);

// `text` with every match replaced; an error if that would be more than `limit` bytes.
absl::StatusOr<std::string> ReplaceMatches(const ReplaceStep& step, std::string_view text, size_t limit,
                                           RegexScratch& scratch);

}  // namespace hone
