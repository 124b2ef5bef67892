#include "engine/text/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_text.h"

namespace hone::jinja {

namespace {

std::string Normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool IsNameStart(uint32_t c) { return c == '_' || IsLetter(c); }
bool IsNamePart(uint32_t c) { return c == '_' || IsLetterOrNumber(c); }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> Run() {
    while (at_ < source_.size()) {
      const size_t open = FindOpening();
      if (open == std::string::npos) {
        AddData(source_.substr(at_));
        at_ = source_.size();
        break;
      }
      const char kind = source_[open + 1];
      size_t after = open + 2;
      char sign = 0;
      if (after < source_.size() && (source_[after] == '-' || source_[after] == '+')) sign = source_[after++];
      const size_t raw = kind == '%' ? MatchWord(after, "raw", &raw_end_) : std::string::npos;
      AddData(StripBefore(std::string_view(source_).substr(at_, open - at_), sign, kind == '{'));
      CountLines(at_, open);
      at_ = after;
      if (raw != std::string::npos) {
        Raw();
      } else if (kind == '#') {
        Comment();
      } else {
        Inside(kind == '{');
      }
      line_starting_ = source_[at_ - 1] == '\n';
    }
    Push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void FailAt(int line, const std::string& message) {
    throw TemplateFault(Fault::kInvalid, line, message);
  }

  size_t FindOpening() const {
    for (size_t i = at_; (i = source_.find('{', i)) != std::string::npos; ++i) {
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    }
    return std::string::npos;
  }

  // What a sign or lstrip_blocks leaves of the text before a tag.
  std::string_view StripBefore(std::string_view text, char sign, bool variable) const {
    if (sign == '-') return text.substr(0, StripRange(text, nullptr, false, true).end);
    if (sign == '+' || variable) return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !line_starting_) return text;
    if (line == text.size()) return text;
    const ByteRange rest = StripRange(text.substr(line), nullptr, true, false);
    return rest.begin == rest.end ? text.substr(0, line) : text;
  }

  void AddData(std::string_view text) {
    if (!text.empty()) Push(TokenKind::kData, std::string(text));
  }
  void Push(TokenKind kind, std::string text) {
    Token token;
    token.kind = kind;
    token.line = line_;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }
  void CountLines(size_t begin, size_t end) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<long>(begin), source_.begin() + static_cast<long>(end), '\n'));
  }
  size_t SkipSpace(size_t at) const {
    while (at < source_.size() && IsSpace(CharAt(source_, at))) at += CharLength(source_, at);
    return at;
  }

  // At `at`: spaces, the word, spaces, a block end. Returns the position after the block end (its sign in *sign), or
  // npos.
  size_t MatchWord(size_t at, std::string_view word, size_t* end) const {
    at = SkipSpace(at);
    if (source_.compare(at, word.size(), word) != 0) return std::string::npos;
    at = SkipSpace(at + word.size());
    const bool minus = at < source_.size() && source_[at] == '-';
    const bool plus = at < source_.size() && source_[at] == '+' && word == "endraw";
    if (minus || plus) ++at;
    if (source_.compare(at, 2, "%}") != 0) return std::string::npos;
    at += 2;
    if (minus) {
      at = SkipSpace(at);
    } else if (!plus && word == "endraw" && at < source_.size() && source_[at] == '\n') {
      ++at;
    }
    *end = at;
    return at;
  }

  void Raw() {
    const int begun = line_;
    CountLines(at_, raw_end_);
    at_ = raw_end_;
    for (size_t i = at_; (i = source_.find("{%", i)) != std::string::npos; i += 2) {
      size_t after = i + 2, end = 0;
      char sign = 0;
      if (after < source_.size() && (source_[after] == '-' || source_[after] == '+')) sign = source_[after++];
      if (MatchWord(after, "endraw", &end) == std::string::npos) continue;
      line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
      AddData(StripBefore(std::string_view(source_).substr(at_, i - at_), sign, false));
      CountLines(at_, end);
      at_ = end;
      return;
    }
    FailAt(begun, "a raw block is not closed by {% endraw %}");
  }

  void Comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) FailAt(line_, "a comment is not closed by #}");
    const char sign = close > at_ ? source_[close - 1] : 0;
    size_t end = close + 2;
    if (sign == '-') {
      end = SkipSpace(end);
    } else if (sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    CountLines(at_, end);
    at_ = end;
  }

  // The tokens of a {{ }} or {% %} up to and including its end.
  void Inside(bool variable) {
    const int begun = line_;
    Push(variable ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
    std::string open_brackets;
    while (at_ < source_.size()) {
      const uint32_t c = CharAt(source_, at_);
      if (IsSpace(c)) {
        if (c == '\n') ++line_;
        at_ += CharLength(source_, at_);
      } else if (open_brackets.empty() && Closes(variable)) {
        return;
      } else if (c == '"' || c == '\'') {
        String();
      } else if (IsDigit(static_cast<char>(c)) && c < 0x80) {
        Number();
      } else if (IsNameStart(c)) {
        Name();
      } else {
        Operator(&open_brackets);
      }
    }
    FailAt(begun, variable ? "{{ is not closed by }}" : "{% is not closed by %}");
  }

  bool Closes(bool variable) {
    size_t at = at_;
    const bool minus = source_[at] == '-';
    const bool plus = source_[at] == '+' && !variable;
    if (minus || plus) ++at;
    if (source_.compare(at, 2, variable ? "}}" : "%}") != 0) return false;
    Push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
    at += 2;
    if (minus) {
      at = SkipSpace(at);
    } else if (!variable && !plus && at < source_.size() && source_[at] == '\n') {
      ++at;  // trim_blocks
    }
    CountLines(at_, at);
    at_ = at;
    return true;
  }

  void Name() {
    const size_t begin = at_;
    while (at_ < source_.size() && IsNamePart(CharAt(source_, at_))) at_ += CharLength(source_, at_);
    Push(TokenKind::kName, source_.substr(begin, at_ - begin));
  }

  // Digits with single underscores between them, appended without the underscores.
  void Digits(std::string* out) {
    while (at_ < source_.size()) {
      if (IsDigit(source_[at_])) {
        out->push_back(source_[at_++]);
      } else if (source_[at_] == '_' && at_ + 1 < source_.size() && IsDigit(source_[at_ + 1])) {
        ++at_;
      } else {
        return;
      }
    }
  }
  bool DigitAt(size_t at) const { return at < source_.size() && IsDigit(source_[at]); }

  void Number() {
    std::string digits;
    int base = 10;
    const char second = at_ + 1 < source_.size() ? static_cast<char>(source_[at_ + 1] | 0x20) : 0;
    if (source_[at_] == '0' && (second == 'x' || second == 'o' || second == 'b')) {
      base = second == 'x' ? 16 : second == 'o' ? 8 : 2;
      at_ += 2;
      while (at_ < source_.size() &&
             (IsNamePart(CharAt(source_, at_)) && static_cast<unsigned char>(source_[at_]) < 0x80)) {
        if (source_[at_] != '_') digits.push_back(source_[at_]);
        ++at_;
      }
    } else {
      Digits(&digits);
    }
    bool real = false;
    if (base == 10) {
      if (at_ < source_.size() && source_[at_] == '.' && DigitAt(at_ + 1)) {
        real = true;
        digits.push_back('.');
        ++at_;
        Digits(&digits);
      }
      const size_t exponent =
          at_ + 1 + (at_ + 1 < source_.size() && (source_[at_ + 1] == '+' || source_[at_ + 1] == '-'));
      if (at_ < source_.size() && (source_[at_] == 'e' || source_[at_] == 'E') && DigitAt(exponent)) {
        real = true;
        digits.push_back('e');
        if (source_[at_ + 1] == '-') digits.push_back('-');
        at_ = exponent;
        Digits(&digits);
      }
    }
    Push(real ? TokenKind::kFloat : TokenKind::kInteger, digits);
    Token& token = tokens_.back();
    const char *first = digits.data(), *last = digits.data() + digits.size();
    const auto result =
        real ? std::from_chars(first, last, token.number) : std::from_chars(first, last, token.integer, base);
    if (result.ec != std::errc() || result.ptr != last || first == last)
      FailAt(line_, StrCat("not a number: ", digits));
  }

  void String() {
    const char quote = source_[at_];
    const int begun = line_;
    std::string value;
    for (size_t i = at_ + 1; i < source_.size();) {
      if (source_[i] == quote) {
        at_ = i + 1;
        Push(TokenKind::kString, std::move(value));
        tokens_.back().line = begun;
        return;
      }
      if (source_[i] == '\n') ++line_;
      if (source_[i] != '\\') {
        value.push_back(source_[i++]);
        continue;
      }
      i = Escape(i + 1, &value);
    }
    FailAt(begun, "a string is not closed");
  }

  // The escape whose character after the backslash is at i; returns the position after it.
  size_t Escape(size_t i, std::string* value) {
    if (i >= source_.size()) return i;
    const char c = source_[i];
    static constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t k = kNames.find(c); k != std::string_view::npos) {
      value->push_back(kValues[k]);
      return i + 1;
    }
    if (c == '\n') {
      ++line_;
      return i + 1;
    }
    if (c >= '0' && c <= '7') {
      uint32_t code = 0;
      size_t end = i;
      while (end < source_.size() && end < i + 3 && source_[end] >= '0' && source_[end] <= '7')
        code = code * 8 + static_cast<uint32_t>(source_[end++] - '0');
      AppendUtf8(*value, code);
      return end;
    }
    if (c == 'x' || c == 'u' || c == 'U') return HexEscape(i, value);
    if (c == 'N') FailAt(line_, "\\N{...} in a string is not supported: write the character itself");
    value->push_back('\\');
    value->push_back(c);
    return i + 1;
  }

  size_t HexEscape(size_t i, std::string* value) {
    const size_t digits = source_[i] == 'x' ? 2 : source_[i] == 'u' ? 4 : 8;
    if (i + 1 + digits > source_.size()) FailAt(line_, "a \\x, \\u or \\U escape is cut short");
    uint32_t code = 0;
    const char *first = source_.data() + i + 1, *last = first + digits;
    const auto result = std::from_chars(first, last, code, 16);
    if (result.ec != std::errc() || result.ptr != last)
      FailAt(line_, "a \\x, \\u or \\U escape needs hexadecimal digits");
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) FailAt(line_, "a \\u escape names no character");
    AppendUtf8(*value, code);
    return i + 1 + digits;
  }

  void Operator(std::string* open_brackets) {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    for (std::string_view two : kTwo) {
      if (source_.compare(at_, 2, two) != 0) continue;
      Push(TokenKind::kOperator, std::string(two));
      at_ += 2;
      return;
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      FailAt(line_, StrCat("unexpected character '", source_.substr(at_, CharLength(source_, at_)), "'"));
    }
    if (c == '(' || c == '[' || c == '{') open_brackets->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open_brackets->empty() || open_brackets->back() != c) FailAt(line_, StrCat("unexpected '", c, "'"));
      open_brackets->pop_back();
    }
    Push(TokenKind::kOperator, std::string(1, c));
    ++at_;
  }

  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  size_t raw_end_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) { return Lexer(Normalize(source)).Run(); }

}  // namespace hone::jinja
