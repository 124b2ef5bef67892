#include "engine/text/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "engine/text/jinja_error.h"

namespace hone::jinja {

void Budget::Exhausted() const {
  FailTooMuch("the template does too much work: it loops forever, or far longer than a chat template needs");
}
void Budget::TooLarge() const { FailTooMuch("a string of the template would be larger than ", max_bytes_, " bytes"); }

void TextBuilder::Grow(size_t bytes) {
  budget_->CheckSize(text_.bytes.size() + bytes);
  budget_->SpendBytes(bytes);
}

void TextBuilder::Literal(std::string_view bytes) {
  Grow(bytes.size());
  text_.bytes.append(bytes);
}

void TextBuilder::AddRun(uint32_t begin, uint32_t end, int32_t source) {
  if (!text_.runs.empty()) {
    TextRun& last = text_.runs.back();
    if (last.source == source && last.end == begin) {
      last.end = end;
      return;
    }
    // A mark tells nothing where a run of the same source is.
    if (begin == end && source == kOtherData) return;
  }
  if (begin == end && source == kOtherData) return;
  text_.runs.push_back({begin, end, source});
}

void TextBuilder::AppendSlice(const Text& text, size_t begin, size_t end) {
  Grow(end - begin);
  const uint32_t base = static_cast<uint32_t>(text_.bytes.size());
  text_.bytes.append(text.bytes, begin, end - begin);
  budget_->Spend(text.runs.size() / 16);
  if (begin == end && text.runs.size() == 1 && text.runs[0].begin == 0 && text.runs[0].end == text.bytes.size()) {
    AddRun(base, base, text.runs[0].source);
    return;
  }
  auto first = std::lower_bound(text.runs.begin(), text.runs.end(), begin,
                                [](const TextRun& run, size_t at) { return run.end < at; });
  for (auto run = first; run != text.runs.end() && run->begin <= end; ++run) {
    const size_t b = std::max<size_t>(run->begin, begin), e = std::min<size_t>(run->end, end);
    if (b == e && run->begin != run->end) continue;  // touches the slice only
    AddRun(base + static_cast<uint32_t>(b - begin), base + static_cast<uint32_t>(e - begin), run->source);
  }
}

void TextBuilder::AppendAs(std::string_view bytes, const Text& text, size_t begin, size_t end) {
  Grow(bytes.size());
  const uint32_t base = static_cast<uint32_t>(text_.bytes.size());
  text_.bytes.append(bytes);
  auto run = std::upper_bound(text.runs.begin(), text.runs.end(), begin,
                              [](size_t at, const TextRun& r) { return at < r.end; });
  if (run != text.runs.end() && run->begin < end && !bytes.empty()) {
    AddRun(base, static_cast<uint32_t>(text_.bytes.size()), run->source);
  }
}

TextPtr MakeText(std::string_view bytes) { return std::make_shared<const Text>(Text{std::string(bytes), {}}); }

TextPtr MakeText(std::string_view bytes, int32_t source) {
  Text text{std::string(bytes), {}};
  if (!bytes.empty() || source != kOtherData) text.runs.push_back({0, static_cast<uint32_t>(bytes.size()), source});
  return std::make_shared<const Text>(std::move(text));
}

namespace {

int LeadLength(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  if (lead >= 0xf0 && lead < 0xf5) return 4;
  return 1;
}

}  // namespace

size_t CharLength(std::string_view bytes, size_t at) {
  const size_t length = static_cast<size_t>(LeadLength(static_cast<unsigned char>(bytes[at])));
  if (at + length > bytes.size()) return 1;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(bytes[at + i]) & 0xc0) != 0x80) return 1;
  }
  return length;
}

uint32_t CharAt(std::string_view bytes, size_t at) {
  const size_t length = CharLength(bytes, at);
  const uint32_t lead = static_cast<unsigned char>(bytes[at]);
  if (length == 1) return lead;
  uint32_t c = lead & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) c = c << 6 | (static_cast<unsigned char>(bytes[at + i]) & 0x3fu);
  return c;
}

void AppendUtf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xc0 | c >> 6));
    out.push_back(static_cast<char>(0x80 | (c & 0x3f)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xe0 | c >> 12));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3f)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3f)));
  } else {
    out.push_back(static_cast<char>(0xf0 | c >> 18));
    out.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3f)));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3f)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3f)));
  }
}

size_t CountChars(std::string_view bytes) {
  size_t count = 0;
  for (size_t at = 0; at < bytes.size(); at += CharLength(bytes, at)) ++count;
  return count;
}

size_t ByteOfChar(std::string_view bytes, size_t chars) {
  size_t at = 0;
  for (; chars > 0 && at < bytes.size(); --chars) at += CharLength(bytes, at);
  return at;
}

bool IsSpace(uint32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

bool IsLineEnd(uint32_t c) {
  return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

ByteRange StripRange(std::string_view bytes, const std::string* chars, bool left, bool right) {
  auto strips = [&](size_t at, size_t length) {
    if (chars == nullptr) return IsSpace(CharAt(bytes, at));
    const std::string_view one = bytes.substr(at, length);
    for (size_t i = 0; i < chars->size(); i += CharLength(*chars, i)) {
      if (std::string_view(*chars).substr(i, CharLength(*chars, i)) == one) return true;
    }
    return false;
  };
  ByteRange range{0, bytes.size()};
  while (left && range.begin < range.end) {
    const size_t length = CharLength(bytes, range.begin);
    if (!strips(range.begin, length)) break;
    range.begin += length;
  }
  while (right && range.begin < range.end) {
    size_t at = range.end - 1;
    while (at > range.begin && at + 4 > range.end && (static_cast<unsigned char>(bytes[at]) & 0xc0) == 0x80) --at;
    if (at + CharLength(bytes, at) != range.end) at = range.end - 1;  // not UTF-8: byte by byte
    if (!strips(at, range.end - at)) break;
    range.end = at;
  }
  return range;
}

namespace {

// Characters whose other case is several characters: SpecialCasing.txt's unconditional lines that chat text may meet.
struct SpecialCase {
  uint32_t c;
  std::string_view upper, title;
};
constexpr std::array kSpecialCases = {
    SpecialCase{0xdf, "SS", "Ss"},     SpecialCase{0x149, "\xca\xbcN", "\xca\xbcN"},
    SpecialCase{0xfb00, "FF", "Ff"},   SpecialCase{0xfb01, "FI", "Fi"},
    SpecialCase{0xfb02, "FL", "Fl"},   SpecialCase{0xfb03, "FFI", "Ffi"},
    SpecialCase{0xfb04, "FFL", "Ffl"}, SpecialCase{0xfb05, "ST", "St"},
    SpecialCase{0xfb06, "ST", "St"},
};

std::string OneChar(int32_t c) {
  std::string out;
  AppendUtf8(out, static_cast<uint32_t>(c));
  return out;
}

int32_t Code(uint32_t c) { return static_cast<int32_t>(c); }

bool Ignorable(uint32_t c) {
  if (c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xb7 || c == 0x2019) return true;
  const utf8proc_category_t category = utf8proc_category(Code(c));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_LM || category == UTF8PROC_CATEGORY_SK;
}

// Whether the sigma at `at` ends a word: a cased letter before it and none after, case-ignorable characters skipped.
bool IsFinalSigma(std::string_view bytes, size_t at) {
  bool before = false;
  for (size_t i = at; i > 0;) {
    size_t previous = i - 1;
    while (previous > 0 && (static_cast<unsigned char>(bytes[previous]) & 0xc0) == 0x80) --previous;
    i = previous;
    const uint32_t c = CharAt(bytes, i);
    if (Ignorable(c)) continue;
    before = IsCased(c);
    break;
  }
  if (!before) return false;
  for (size_t i = at + CharLength(bytes, at); i < bytes.size(); i += CharLength(bytes, i)) {
    const uint32_t c = CharAt(bytes, i);
    if (!Ignorable(c)) return !IsCased(c);
  }
  return true;
}

}  // namespace

std::string UpperChar(uint32_t c) {
  for (const SpecialCase& special : kSpecialCases) {
    if (special.c == c) return std::string(special.upper);
  }
  return OneChar(utf8proc_toupper(Code(c)));
}

std::string TitleChar(uint32_t c) {
  for (const SpecialCase& special : kSpecialCases) {
    if (special.c == c) return std::string(special.title);
  }
  return OneChar(utf8proc_totitle(Code(c)));
}

std::string LowerChar(std::string_view bytes, size_t at) {
  const uint32_t c = CharAt(bytes, at);
  if (c == 0x3a3) return IsFinalSigma(bytes, at) ? "\xcf\x82" : "\xcf\x83";
  if (c == 0x130) return "i\xcc\x87";
  return OneChar(utf8proc_tolower(Code(c)));
}

bool IsCased(uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(Code(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

bool IsLetter(uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(Code(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsLetterOrNumber(uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(Code(c));
  return IsLetter(c) || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

bool IsPrintable(uint32_t c) {
  if (c == ' ') return true;
  const utf8proc_category_t category = utf8proc_category(Code(c));
  return category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS;  // separators and "other" follow
}

TextPtr MapCase(const Text& text, CaseMap map, Budget* budget) {
  TextBuilder out(budget);
  const std::string_view bytes = text.bytes;
  bool in_word = false;  // the character before belongs to the same word
  for (size_t at = 0, length; at < bytes.size(); at += length) {
    length = CharLength(bytes, at);
    const uint32_t c = CharAt(bytes, at);
    std::string mapped;
    switch (map) {
      case CaseMap::kUpper:
        mapped = UpperChar(c);
        break;
      case CaseMap::kLower:
        mapped = LowerChar(bytes, at);
        break;
      case CaseMap::kTitle:
        mapped = in_word ? LowerChar(bytes, at) : TitleChar(c);
        in_word = IsCased(c);
        break;
      case CaseMap::kCapitalize:
        mapped = in_word ? LowerChar(bytes, at) : TitleChar(c);
        in_word = true;
        break;
      case CaseMap::kJinjaTitle: {  // words begin after whitespace and any of -({[<
        const bool separator = IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
        mapped = in_word ? LowerChar(bytes, at) : UpperChar(c);
        in_word = !separator;
        break;
      }
    }
    if (c >= 0x80 && length == 1) mapped = std::string(1, bytes[at]);  // a stray byte stays as it is
    out.AppendAs(mapped, text, at, at + length);
  }
  if (text.bytes.empty()) out.Append(text);
  return out.TakePtr();
}

}  // namespace hone::jinja
