#include "engine/text/pretokenizer.h"

#include <algorithm>

#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

void TileDigits(std::string_view text, std::vector<MatchSpan>& out) {
  uint32_t tiled = 0;
  for (uint32_t at = 0; at < text.size();) {
    const CodePoint c = DecodeUtf8(text, at);
    const uint32_t next = at + c.length;
    if (IsNumeric(c.value)) {
      if (at > tiled) out.push_back({tiled, at, false});
      out.push_back({at, next, true});
      tiled = next;
    }
    at = next;
  }
  if (tiled < text.size()) out.push_back({tiled, static_cast<uint32_t>(text.size()), false});
}

// The spans that stay, in order; `matched` then means nothing.
void MergeSpans(SplitBehavior behavior, std::vector<MatchSpan>& spans) {
  std::vector<MatchSpan> merged;
  bool previous = false;
  auto fold = [&](bool join, const MatchSpan& span, bool backwards) {
    if (!join || merged.empty()) {
      merged.push_back(span);
    } else if (backwards) {
      merged.back().begin = span.begin;
    } else {
      merged.back().end = span.end;
    }
    previous = span.matched;
  };
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return;
    case SplitBehavior::kRemoved:
      std::erase_if(spans, [](const MatchSpan& span) { return span.matched; });
      return;
    case SplitBehavior::kContiguous:
      for (const MatchSpan& span : spans) fold(span.matched == previous, span, false);
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const MatchSpan& span : spans) fold(span.matched && !previous, span, false);
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto span = spans.rbegin(); span != spans.rend(); ++span) fold(span->matched && !previous, *span, true);
      std::reverse(merged.begin(), merged.end());
      break;
  }
  spans = std::move(merged);
}

absl::Status Tile(const PreTokenizerStep& step, std::string_view text, RegexScratch& scratch,
                  std::vector<MatchSpan>& spans) {
  if (const auto* split = std::get_if<SplitStep>(&step)) {
    HONE_RETURN_IF_ERROR(split->pattern.Tile(text, scratch, spans));
    if (split->invert) {
      for (MatchSpan& span : spans) span.matched = !span.matched;
    }
    MergeSpans(split->behavior, spans);
    return absl::OkStatus();
  }
  if (const auto* digits = std::get_if<DigitsStep>(&step)) {
    TileDigits(text, spans);
    MergeSpans(digits->individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, spans);
    return absl::OkStatus();
  }
  const auto& byte_level = std::get<ByteLevelStep>(step);
  if (!byte_level.regex.empty()) return byte_level.regex[0].Tile(text, scratch, spans);
  spans.push_back({0, static_cast<uint32_t>(text.size()), false});
  return absl::OkStatus();
}

Piece WithPrefixSpace(const Piece& piece, std::deque<AlignedText>& arena) {
  const std::string_view view = piece.view();
  if (view.starts_with(' ')) return piece;
  AlignedTextBuilder builder(*piece.text);
  builder.Append(" ", piece.text->Source(piece.begin, piece.begin + DecodeUtf8(view, 0).length));
  builder.Copy(piece.begin, piece.end);
  arena.push_back(builder.Finish());
  return {&arena.back(), 0, static_cast<uint32_t>(arena.back().text().size())};
}

}  // namespace

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::Status PreTokenize(const std::vector<PreTokenizerStep>& steps, std::vector<Piece>& pieces,
                         std::deque<AlignedText>& arena, RegexScratch& scratch) {
  std::vector<Piece> next;
  std::vector<MatchSpan> spans;
  for (const PreTokenizerStep& step : steps) {
    next.clear();
    const auto* byte_level = std::get_if<ByteLevelStep>(&step);
    for (Piece piece : pieces) {
      if (byte_level != nullptr && byte_level->add_prefix_space) piece = WithPrefixSpace(piece, arena);
      spans.clear();
      HONE_RETURN_IF_ERROR(Tile(step, piece.view(), scratch, spans));
      for (const MatchSpan& span : spans) {
        if (span.begin < span.end) next.push_back({piece.text, piece.begin + span.begin, piece.begin + span.end});
      }
    }
    pieces.swap(next);
  }
  return absl::OkStatus();
}

}  // namespace hone
