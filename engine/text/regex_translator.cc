#include <array>
#include <optional>

#include "engine/text/split_regex.h"
#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::array<std::string_view, 36> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn"};
constexpr std::array<std::string_view, 16> kScripts = {
    "Han",    "Hiragana", "Katakana",   "Hangul",  "Latin", "Greek",    "Cyrillic", "Arabic",
    "Hebrew", "Thai",     "Devanagari", "Bengali", "Tamil", "Armenian", "Georgian", "Bopomofo"};

// Oniguruma's word: these besides the ASCII ones. Superscripts and fractions of Latin-1 count, other ones do not.
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view item) {
  for (std::string_view entry : list) {
    if (entry == item) return true;
  }
  return false;
}

bool IsHexDigit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  Translator(std::string_view pattern, bool recent) : pattern_(pattern), recent_(recent) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) HONE_RETURN_IF_ERROR(Next());
    return std::move(out_);
  }

 private:
  absl::Status Next() {
    switch (pattern_[at_]) {
      case '\\':
        return Escape(/*in_class=*/false);
      case '[':
        return Class();
      case '(':
        return Group();
      case '{':
        return Interval();
      case '^':
        return Replace(1, "(?m:^)");  // in Ruby's syntax always the beginning of a line
      case '$':
        return Replace(1, "(?m:$)");
      default:
        out_ += pattern_[at_++];
        return absl::OkStatus();
    }
  }

  absl::Status Replace(size_t length, std::string_view text) {
    at_ += length;
    out_ += text;
    return absl::OkStatus();
  }

  absl::Status Unknown(std::string_view what) const {
    return Unimplemented("regular expression: ", what, " at byte ", at_, " is not implemented");
  }

  // A set of characters that is a whole class outside one and part of it inside.
  absl::Status Set(size_t length, std::string_view inside, bool negated, bool in_class) {
    if (in_class && negated) return Unknown("a negated set inside a character class");
    at_ += length;
    out_ += in_class ? std::string(inside) : StrCat(negated ? "[^" : "[", inside, "]");
    return absl::OkStatus();
  }

  absl::Status Escape(bool in_class) {
    if (at_ + 1 >= pattern_.size()) return Unknown("a backslash at the end");
    const char c = pattern_[at_ + 1];
    switch (c) {
      case 's':
        return Replace(2, R"(\p{White_Space})");
      case 'S':
        return Replace(2, R"(\P{White_Space})");
      case 'd':
      case 'D':
        return Property(2, "Nd", c == 'D', in_class);
      case 'w':
      case 'W':
        return Set(2,
                   recent_ ? StrCat(kWord, RecentCharacters("L"), RecentCharacters("M"), RecentCharacters("Nd"))
                           : std::string(kWord),
                   c == 'W', in_class);
      case 'p':
      case 'P':
        return NamedProperty(in_class);
      case 'n':
      case 'r':
      case 't':
      case 'f':
        return Replace(2, std::string{'\\', c});
      case 'v':
        return Replace(2, R"(\x{b})");
      case 'x':
      case 'u':
        return Hex();
      case 'A':
      case 'z':
        if (!in_class) return Replace(2, std::string{'\\', c});
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x80 && c > ' ' && !IsDigit(c) && !IsLetter(c)) {
          return Replace(2, std::string{'\\', c});
        }
    }
    return Unknown(StrCat("the escape \\", c));
  }

  absl::Status Hex() {
    const bool wide = pattern_[at_ + 1] == 'u';
    size_t digits = at_ + 2, end;
    if (!wide && digits < pattern_.size() && pattern_[digits] == '{') {
      end = pattern_.find('}', ++digits);
      if (end == std::string_view::npos || end == digits || end - digits > 6) return Unknown("this \\x{...}");
    } else {
      end = digits + (wide ? 4 : 2);
    }
    if (end > pattern_.size()) return Unknown("an incomplete \\x or \\u");
    const std::string_view text = pattern_.substr(digits, end - digits);
    for (char c : text) {
      if (!IsHexDigit(c)) return Unknown("a \\x or \\u without hexadecimal digits");
    }
    // Two digits above 7F are a byte to Oniguruma, not a character.
    if (text.size() == 2 && text[0] > '7' && pattern_[digits - 1] != '{')
      return Unknown("\\x of a byte that is not ASCII");
    return Replace(end - at_ + (pattern_[digits - 1] == '{' ? 1 : 0), StrCat("\\x{", text, "}"));
  }

  absl::Status NamedProperty(bool in_class) {
    bool negated = pattern_[at_ + 1] == 'P';
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{') return Unknown("\\p without {name}");
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) return Unknown("\\p{ without }");
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (!Contains(kCategories, name) && !Contains(kScripts, name))
      return Unknown(StrCat("the property \\p{", name, "}"));
    return Property(end + 1 - at_, name, negated, in_class);
  }

  absl::Status Property(size_t length, std::string_view name, bool negated, bool in_class) {
    const std::string known = StrCat(Contains(kScripts, name) ? "sc:" : "", name, "}");
    const std::string_view added = recent_ ? RecentCharacters(name) : std::string_view();
    if (added.empty() || (negated && in_class)) return Replace(length, StrCat(negated ? "\\P{" : "\\p{", known));
    return Set(length, StrCat("\\p{", known, added), negated, in_class);
  }

  absl::Status Class() {
    out_ += '[';
    ++at_;
    if (at_ < pattern_.size() && pattern_[at_] == '^') {
      out_ += '^';
      ++at_;
    }
    for (bool first = true; at_ < pattern_.size(); first = false) {
      const char c = pattern_[at_];
      if (c == ']' && !first) {
        out_ += ']';
        ++at_;
        return absl::OkStatus();
      }
      if (c == ']') return Unknown("a ] that begins a character class");
      if (c == '[') return Unknown("a [ inside a character class");
      if (c == '&' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == '&')
        return Unknown("&& inside a character class");
      if (c == '\\') {
        HONE_RETURN_IF_ERROR(Escape(/*in_class=*/true));
        continue;
      }
      out_ += c;
      ++at_;
    }
    return Unknown("a character class without ]");
  }

  absl::Status Group() {
    const std::string_view rest = pattern_.substr(at_);
    if (rest.starts_with("(*")) return Unknown("a verb or callout");
    if (!rest.starts_with("(?")) return Replace(1, "(?:");  // what groups capture is not used
    for (std::string_view head : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (rest.starts_with(head)) return Replace(head.size(), head);
    }
    return Unknown(StrCat("the group ", rest.substr(0, 4)));
  }

  // {n}, {n,}, {n,m} and {,m}. What follows them differs: {n}+ is not possessive in Ruby, {n}? not lazy.
  absl::Status Interval() {
    size_t end = at_ + 1;
    auto digits = [&] {
      const size_t begin = end;
      while (end < pattern_.size() && IsDigit(pattern_[end])) ++end;
      return pattern_.substr(begin, end - begin);
    };
    const std::string_view low = digits();
    std::optional<std::string_view> high;
    if (end < pattern_.size() && pattern_[end] == ',') {
      ++end;
      high = digits();
    }
    const bool complete = end < pattern_.size() && pattern_[end] == '}' && (!low.empty() || (high && !high->empty()));
    if (!complete) return Unknown("a { that is not a count");
    ++end;
    if (end < pattern_.size() && (pattern_[end] == '+' || pattern_[end] == '?' || pattern_[end] == '*')) {
      return Unknown(StrCat("a ", pattern_[end], " after {...}"));
    }
    std::string text = StrCat("{", low.empty() ? "0" : low);
    if (high) text += StrCat(",", *high);
    return Replace(end - at_, text + "}");
  }

  std::string_view pattern_;
  bool recent_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(std::string_view pattern, bool recent) {
  return Translator(pattern, recent).Run();
}

}  // namespace hone
