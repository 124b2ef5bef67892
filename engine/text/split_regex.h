// The regular expressions of tokenizer.json: written for Oniguruma (Ruby syntax), matched by PCRE2 (UTF, UCP, JIT). The
// pattern is translated construct by construct; one whose meaning differs or is unknown is an error naming it.
//
// Matching is bounded: a match that takes too many steps or too much memory is an error, never a hang.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace hone {

// A stretch of text, [begin, end) in bytes, and whether the pattern matched it.
struct MatchSpan {
  uint32_t begin, end;
  bool matched;
};

// The state of one thread's matching; made once for each Encode or Decode call.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;
  // Whether the text has characters younger than PCRE2's Unicode tables (HasRecentCharacters).
  bool recent_characters = false;

 private:
  friend class SplitRegex;
  pcre2_real_match_data_8* match_ = nullptr;
  pcre2_real_match_context_8* context_ = nullptr;
  pcre2_real_jit_stack_8* stack_ = nullptr;
};

class SplitRegex {
 public:
  static absl::StatusOr<SplitRegex> Compile(std::string_view pattern);
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;
  ~SplitRegex();

  // Appends spans that tile `text` (valid UTF-8): matches, and the stretches between them. An empty match gives an
  // empty span, but not directly after another match.
  absl::Status Tile(std::string_view text, RegexScratch& scratch, std::vector<MatchSpan>& out) const;
  const std::string& pattern() const { return pattern_; }

 private:
  struct Code;
  SplitRegex(std::string pattern, std::unique_ptr<Code> code, std::unique_ptr<Code> recent_code);
  std::string pattern_;
  std::unique_ptr<Code> code_;
  std::unique_ptr<Code> recent_code_;  // with the characters RecentCharacters adds; null if the pattern needs none
};

// What Compile gives to PCRE2 (for tests). recent: spell out the characters that PCRE2's tables lack.
absl::StatusOr<std::string> TranslatePattern(std::string_view pattern, bool recent);

}  // namespace hone
