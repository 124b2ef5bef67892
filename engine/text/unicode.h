// UTF-8 and the character properties the tokenizers need: decoding, numbers, white space, words, the byte-level
// alphabet of GPT-2, NFC (by utf8proc). Not here: regular expressions (split_regex.h).
//
// Hugging Face's tokenizers knows Unicode 16 (its regular expressions), 17 (Rust's char) and 9 (NFC); Debian's PCRE2
// knows 14 and utf8proc 15. The characters assigned in between are listed here, so that ids agree on those too.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hone {

struct CodePoint {
  char32_t value;
  uint32_t length;  // bytes
};

// The character at byte `at`. `text` is valid UTF-8 and `at` a character's first byte.
CodePoint DecodeUtf8(std::string_view text, size_t at);
void AppendUtf8(std::string& out, char32_t c);
inline bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }
// Invalid sequences become U+FFFD, one for each maximal subpart (Unicode 3.9, table 3-8), as Rust's from_utf8_lossy.
std::string ReplaceInvalidUtf8(std::string_view bytes);

bool IsNumeric(char32_t c);        // general category N
bool IsWhiteSpace(char32_t c);     // property White_Space
bool IsWordCharacter(char32_t c);  // UTS 18 \w: alphabetic, marks, decimal digits, connectors, joiners

// Characters that Hugging Face's NFC leaves where they are though they combine or decompose: its tables are Unicode 9.
bool IsOpaqueToNfc(char32_t c);

// GPT-2's printable alphabet: byte -> character, and back.
char32_t ByteLevelCharacter(uint8_t byte);
std::optional<uint8_t> ByteLevelByte(char32_t c);

// Whether some character of `text` was assigned after Unicode 14.
bool HasRecentCharacters(std::string_view text);
// Those of them that have general category `category` (L, Lu, N, ...), as the inside of a character class of PCRE2.
std::string_view RecentCharacters(std::string_view category);

}  // namespace hone
