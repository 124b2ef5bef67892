#include "engine/text/aligned_text.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Whether a character begins a stretch that nothing before it can change: a starter that composes with no character
// before it. `plain` also says that NFC leaves it as it is unless what follows composes with it.
struct Boundary {
  bool starts, plain;
};

Boundary Classify(char32_t c) {
  if (c < 0x300) return {true, true};
  if (c >= 0x1160 && c <= 0x11FF) return {false, false};  // Hangul vowels and finals
  if (c >= 0xAC00 && c <= 0xD7A3) return {true, true};    // Hangul syllables
  const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
  const bool composes_back = property->comb_index != UINT16_MAX && (property->comb_index & 0x8000) != 0;
  if (property->combining_class != 0 || composes_back) return {false, false};
  utf8proc_int32_t parts[8];
  int last_boundary_class = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 8,
                                             static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE),
                                             &last_boundary_class);
  if (count == 1 && parts[0] == static_cast<utf8proc_int32_t>(c)) return {true, true};
  if (count < 1 || count > 8) return {false, false};
  const utf8proc_property_t* first = utf8proc_get_property(parts[0]);
  const bool first_composes_back = first->comb_index != UINT16_MAX && (first->comb_index & 0x8000) != 0;
  return {first->combining_class == 0 && !first_composes_back, false};
}

std::string ComposeSegment(std::string_view segment) {
  utf8proc_uint8_t* result = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(segment.data()),
                                   static_cast<utf8proc_ssize_t>(segment.size()), &result,
                                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  HONE_CHECK(length >= 0, "utf8proc: ", utf8proc_errmsg(length));
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  return std::string(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

}  // namespace

ByteSpan AlignedText::Source(size_t begin, size_t end) const {
  if (is_owned_) {
    if (begin < end) return {sources_[begin].first, sources_[end - 1].second};
    const uint32_t at = sources_.empty() ? 0 : begin < sources_.size() ? sources_[begin].first : sources_.back().second;
    return {at, at};
  }
  while (begin > 0 && begin < view_.size() && IsContinuation(view_[begin])) --begin;
  while (end < view_.size() && IsContinuation(view_[end])) ++end;
  return {offset_ + static_cast<uint32_t>(begin), offset_ + static_cast<uint32_t>(end)};
}

void AlignedTextBuilder::Reserve(size_t bytes) {
  text_.reserve(bytes);
  sources_.reserve(bytes);
}

void AlignedTextBuilder::Copy(size_t begin, size_t end) {
  const std::string_view text = source_.text();
  text_.append(text.substr(begin, end - begin));
  for (size_t at = begin; at < end;) {
    size_t next = at + 1;
    while (next < end && IsContinuation(text[next])) ++next;
    const ByteSpan origin = source_.Source(at, next);
    sources_.insert(sources_.end(), next - at, origin);
    at = next;
  }
}

void AlignedTextBuilder::Append(std::string_view text, ByteSpan origin) {
  text_.append(text);
  sources_.insert(sources_.end(), text.size(), origin);
}

AlignedText NormalizeNfc(AlignedText source) {
  const std::string_view text = source.text();
  AlignedTextBuilder builder(source);
  size_t copied = 0;  // text before this is in the builder
  bool changed = false;
  size_t segment = 0;
  bool segment_plain = true;  // one character that NFC leaves alone
  auto finish_segment = [&](size_t end) {
    if (segment_plain) return;
    const std::string_view before = text.substr(segment, end - segment);
    const std::string after = ComposeSegment(before);
    if (after == before) return;
    changed = true;
    builder.Copy(copied, segment);
    builder.Append(after, source.Source(segment, end));
    copied = end;
  };
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeUtf8(text, at);
    if (IsOpaqueToNfc(c.value)) {
      finish_segment(at);
      at += c.length;
      segment = at;
      segment_plain = true;
      continue;
    }
    const Boundary boundary = Classify(c.value);
    if (boundary.starts) {
      finish_segment(at);
      segment = at;
      segment_plain = boundary.plain;
    } else {
      segment_plain = false;
    }
    at += c.length;
  }
  finish_segment(text.size());
  if (!changed) return source;
  builder.Copy(copied, text.size());
  return builder.Finish();
}

}  // namespace hone
