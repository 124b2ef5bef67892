// Strings of the template engine: UTF-8 bytes that remember where they came from. Positions that templates use (length,
// slices, index) count code points, as Python does; positions here are bytes unless named otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hone::jinja {

// Where bytes came from: a run names a message whose assistant content they are, or kOtherData for every other string
// of the request. Bytes without a run are the template's own.
inline constexpr int32_t kOtherData = -1;
struct TextRun {
  uint32_t begin = 0, end = 0;  // begin == end marks where an empty or fully stripped content stood
  int32_t source = kOtherData;
};

struct Text {
  std::string bytes;
  std::vector<TextRun> runs;  // ascending, apart
};
using TextPtr = std::shared_ptr<const Text>;

// What all evaluation of one rendering may spend. Spend throws TemplateFault (kTooMuch).
class Budget {
 public:
  Budget(uint64_t max_steps, uint64_t max_bytes) : steps_(max_steps), max_bytes_(max_bytes) {}
  void Spend(uint64_t steps) {
    if (steps > steps_) Exhausted();
    steps_ -= steps;
  }
  void SpendBytes(uint64_t bytes) { Spend(1 + bytes / 64); }
  // Before building a string of this size.
  void CheckSize(uint64_t bytes) {
    if (bytes > max_bytes_) TooLarge();
  }
  uint64_t max_bytes() const { return max_bytes_; }

 private:
  [[noreturn]] void Exhausted() const;
  [[noreturn]] void TooLarge() const;
  uint64_t steps_;
  uint64_t max_bytes_;
};

class TextBuilder {
 public:
  explicit TextBuilder(Budget* budget) : budget_(budget) {}
  void Literal(std::string_view bytes);
  void Append(const Text& text) { AppendSlice(text, 0, text.bytes.size()); }
  // Bytes [begin, end) of text with their runs. An empty slice of a text that is all one content keeps a mark.
  void AppendSlice(const Text& text, size_t begin, size_t end);
  // `bytes` in place of bytes [begin, end) of text: an escape or another case of them.
  void AppendAs(std::string_view bytes, const Text& text, size_t begin, size_t end);
  size_t size() const { return text_.bytes.size(); }
  Text Take() { return std::move(text_); }
  TextPtr TakePtr() { return std::make_shared<const Text>(std::move(text_)); }

 private:
  void AddRun(uint32_t begin, uint32_t end, int32_t source);
  void Grow(size_t bytes);
  Budget* budget_;
  Text text_;
};

TextPtr MakeText(std::string_view bytes);
TextPtr MakeText(std::string_view bytes, int32_t source);  // one run over all of it

// UTF-8 walking. Invalid bytes count as one character each.
size_t CharLength(std::string_view bytes, size_t at);  // bytes of the character at `at`, at least 1
uint32_t CharAt(std::string_view bytes, size_t at);    // its code point
void AppendUtf8(std::string& out, uint32_t code_point);
size_t CountChars(std::string_view bytes);
size_t ByteOfChar(std::string_view bytes, size_t chars);  // byte position of the character number `chars`, or size()

// Python's str.isspace for one code point, and the line ends of str.splitlines.
bool IsSpace(uint32_t code_point);
bool IsLineEnd(uint32_t code_point);

// Byte range left after str.strip: whitespace if chars is null, else any character of *chars.
struct ByteRange {
  size_t begin = 0, end = 0;
};
ByteRange StripRange(std::string_view bytes, const std::string* chars, bool left, bool right);

// One character in another case, as Python maps it (one to several code points), except for a few dozen rare characters
// of Unicode's SpecialCasing.txt.
std::string UpperChar(uint32_t c);
std::string TitleChar(uint32_t c);
std::string LowerChar(std::string_view bytes, size_t at);  // in context: a final sigma
bool IsCased(uint32_t c);
bool IsLetter(uint32_t c);
bool IsLetterOrNumber(uint32_t c);
bool IsPrintable(uint32_t c);  // Python's str.isprintable

enum class CaseMap { kUpper, kLower, kTitle, kCapitalize, kJinjaTitle };
TextPtr MapCase(const Text& text, CaseMap map, Budget* budget);

}  // namespace hone::jinja
