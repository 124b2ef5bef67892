#include "engine/text/normalizer.h"

#include <algorithm>

#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

void TileLiteral(std::string_view literal, std::string_view text, std::vector<MatchSpan>& out) {
  size_t tiled = 0;
  for (size_t at = text.find(literal); at != std::string_view::npos; at = text.find(literal, tiled)) {
    if (at > tiled) out.push_back({static_cast<uint32_t>(tiled), static_cast<uint32_t>(at), false});
    tiled = at + literal.size();
    out.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(tiled), true});
  }
  if (tiled < text.size() || text.empty()) {
    out.push_back({static_cast<uint32_t>(tiled), static_cast<uint32_t>(text.size()), false});
  }
}

absl::Status CheckGrowth(const std::vector<MatchSpan>& spans, const std::string& content, size_t text, size_t limit) {
  size_t matches = 0;
  for (const MatchSpan& span : spans) matches += span.matched ? 1 : 0;
  if (content.empty() || matches <= (limit - std::min(limit, text)) / content.size()) return absl::OkStatus();
  return ResourceExhausted("the tokenizer's Replace would make ", matches, " copies of ", content.size(), " bytes");
}

AlignedText Prepend(const std::string& prefix, AlignedText source) {
  if (source.text().empty() || prefix.empty()) return source;
  AlignedTextBuilder builder(source);
  builder.Reserve(source.text().size() + prefix.size());
  // What is put before stands for the first character, as in Hugging Face's offsets.
  builder.Append(prefix, source.Source(0, DecodeUtf8(source.text(), 0).length));
  builder.Copy(0, source.text().size());
  return builder.Finish();
}

absl::StatusOr<AlignedText> Replace(const ReplaceStep& step, AlignedText source, size_t limit, RegexScratch& scratch) {
  std::vector<MatchSpan> spans;
  HONE_RETURN_IF_ERROR(step.pattern.Tile(source.text(), scratch, spans));
  if (spans.size() == 1 && !spans[0].matched) return source;
  HONE_RETURN_IF_ERROR(CheckGrowth(spans, step.content, source.text().size(), limit));
  AlignedTextBuilder builder(source);
  builder.Reserve(source.text().size());
  for (const MatchSpan& span : spans) {
    if (span.matched) {
      builder.Append(step.content, source.Source(span.begin, span.end));
    } else {
      builder.Copy(span.begin, span.end);
    }
  }
  return builder.Finish();
}

}  // namespace

absl::Status Pattern::Tile(std::string_view text, RegexScratch& scratch, std::vector<MatchSpan>& out) const {
  if (const auto* regex = std::get_if<SplitRegex>(&pattern_)) return regex->Tile(text, scratch, out);
  TileLiteral(std::get<std::string>(pattern_), text, out);
  return absl::OkStatus();
}

absl::StatusOr<AlignedText> Normalize(const std::vector<NormalizerStep>& steps, AlignedText text,
                                      RegexScratch& scratch) {
  const size_t limit = text.text().size() * kMaxGrowth + 64 * 1024;
  for (const NormalizerStep& step : steps) {
    if (std::holds_alternative<NfcStep>(step)) {
      text = NormalizeNfc(std::move(text));
    } else if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      text = Prepend(prepend->prepend, std::move(text));
    } else {
      HONE_ASSIGN_OR_RETURN(text, Replace(std::get<ReplaceStep>(step), std::move(text), limit, scratch));
    }
  }
  return text;
}

absl::StatusOr<std::string> ReplaceMatches(const ReplaceStep& step, std::string_view text, size_t limit,
                                           RegexScratch& scratch) {
  std::vector<MatchSpan> spans;
  HONE_RETURN_IF_ERROR(step.pattern.Tile(text, scratch, spans));
  HONE_RETURN_IF_ERROR(CheckGrowth(spans, step.content, text.size(), limit));
  std::string out;
  for (const MatchSpan& span : spans) {
    out += span.matched ? std::string_view(step.content) : text.substr(span.begin, span.end - span.begin);
  }
  return out;
}

}  // namespace hone
