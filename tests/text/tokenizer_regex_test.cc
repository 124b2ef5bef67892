// The translation of Oniguruma's patterns, and that matching tiles the text.
#include <gtest/gtest.h>

#include "engine/text/pretokenizer.h"
#include "engine/text/split_regex.h"
#include "proto/base/status.h"

namespace hone {
namespace {

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  absl::StatusOr<SplitRegex> regex = SplitRegex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  if (!regex.ok()) return {};
  RegexScratch scratch;
  std::vector<MatchSpan> spans;
  EXPECT_TRUE(regex->Tile(text, scratch, spans).ok());
  std::vector<std::string> out;
  uint32_t at = 0;
  for (const MatchSpan& span : spans) {
    EXPECT_EQ(span.begin, at);
    at = span.end;
    out.push_back(StrCat(span.matched ? "+" : "-", text.substr(span.begin, span.end - span.begin)));
  }
  EXPECT_EQ(at, text.size());
  return out;
}

using Strings = std::vector<std::string>;

TEST(SplitRegex, TilesTextWithMatchesAndGaps) {
  EXPECT_EQ(Matches("b+", "abbcb"), (Strings{"-a", "+bb", "-c", "+b"}));
  EXPECT_EQ(Matches("x*", "ab"), (Strings{"+", "-a", "+", "-b", "+"}));
  EXPECT_EQ(Matches("a", ""), (Strings{"-"}));
  EXPECT_EQ(Matches("é", "aéa"), (Strings{"-a", "+é", "-a"}));
}

TEST(SplitRegex, AnchorsAreThoseOfLines) {
  EXPECT_EQ(Matches("^a", "a\na"), (Strings{"+a", "-\n", "+a"}));
  EXPECT_EQ(Matches("a$", "a\na"), (Strings{"+a", "-\n", "+a"}));
}

TEST(SplitRegex, WhiteSpaceIsUnicodes) {
  EXPECT_EQ(Matches("\\s", "a\u00A0\u3000\u180Eb"), (Strings{"-a", "+\u00A0", "+\u3000", "-\u180Eb"}));
}

TEST(SplitRegex, RefusesWhatItMightMisread) {
  for (const char* pattern :
       {"[a[b]]", "[a&&b]", "\\h", "\\b", "(?<n>a)", "(a)\\1", "(?m:.)", "(*FAIL)", "[[:alpha:]]", "a{2}+",
        "\\p{Emoji}", "a{", "(?i)a", "\\K", "\\", "[a", "\\x{110000000}", "\\xE9", "[\\W]"}) {
    const absl::StatusOr<SplitRegex> regex = SplitRegex::Compile(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_NE(ToStd(regex.status().message()).find("regular expression"), std::string_view::npos);
  }
}

TEST(SplitRegex, KnowsCharactersYoungerThanItsTables) {
  const absl::StatusOr<SplitRegex> regex = SplitRegex::Compile("\\p{L}+");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  scratch.recent_characters = true;
  std::vector<MatchSpan> spans;
  ASSERT_TRUE(regex->Tile("a\U00031350", scratch, spans).ok());
  EXPECT_EQ(spans.size(), 1u);
}

TEST(SplitRegex, ManyStepsAreAnErrorNotAHang) {
  const absl::StatusOr<SplitRegex> regex = SplitRegex::Compile("(?:(?:a+)+)+(?=b)");
  ASSERT_TRUE(regex.ok());
  RegexScratch scratch;
  std::vector<MatchSpan> spans;
  EXPECT_TRUE(absl::IsResourceExhausted(regex->Tile(std::string(64, 'a'), scratch, spans)));
}

TEST(SplitRegex, AMillionSpacesAreOneMatch) {
  RegexScratch scratch;
  std::vector<MatchSpan> spans;
  const absl::StatusOr<SplitRegex> regex = SplitRegex::Compile(kGpt2Pattern);
  ASSERT_TRUE(regex.ok());
  ASSERT_TRUE(regex->Tile(std::string(1 << 20, ' ') + "x", scratch, spans).ok());
  EXPECT_EQ(spans.size(), 2u);
}

}  // namespace
}  // namespace hone
