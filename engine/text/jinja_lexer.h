// Template source to tokens, with Jinja's whitespace rules: trim_blocks and lstrip_blocks on, `-` and `+` signs, one
// newline at the end of the source dropped, newlines normalised to \n.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hone::jinja {

enum class TokenKind {
  kData,  // text of the template
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,   // text: the unescaped value
  kInteger,  // text: digits, as int64 in `integer`
  kFloat,
  kOperator,  // text: the operator
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 0;
  std::string text;
  int64_t integer = 0;
  double number = 0;
};

// Throws TemplateFault.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace hone::jinja
