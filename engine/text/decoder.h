// The decoders of tokenizer.json: ByteFallback, Fuse, Strip, Replace, ByteLevel, and their sequences: from the texts of
// tokens to text. Not here: which ids are left out (tokenizer.cc).
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "engine/text/normalizer.h"

namespace hone {

struct ByteFallbackStep {};  // <0xXX> tokens in a row become their UTF-8 text, or one U+FFFD each
struct FuseStep {};          // all tokens become one
struct StripStep {           // off each token, at most `start` of `content` in front and `stop` behind
  char32_t content;
  size_t start, stop;
};
struct ByteLevelDecodeStep {};  // the byte-level alphabet back to bytes, those to UTF-8; all tokens become one
using DecoderStep = std::variant<ByteFallbackStep, FuseStep, StripStep, ReplaceStep, ByteLevelDecodeStep>;

// Never fails: a replacement that exceeds its bounds is left out.
std::string DecodeTokens(const std::vector<DecoderStep>& steps, std::vector<std::string> tokens);

}  // namespace hone
