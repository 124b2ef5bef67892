#include "engine/text/decoder.h"

#include <algorithm>
#include <optional>

#include "engine/text/unicode.h"
#include "proto/base/json.h"

namespace hone {
namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<char> FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const int high = HexValue(token[3]), low = HexValue(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high << 4 | low);
}

void Fuse(std::vector<std::string>& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  tokens.assign(1, all);
}

void ByteFallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  auto flush = [&] {
    if (bytes.empty()) return;
    if (IsValidUtf8(bytes)) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\uFFFD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const std::optional<char> byte = FallbackByte(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  tokens = std::move(out);
}

void Strip(const StripStep& step, std::string& token) {
  std::string content;
  AppendUtf8(content, step.content);
  std::string_view rest = token;
  for (size_t i = 0; i < step.start && rest.starts_with(content); ++i) rest.remove_prefix(content.size());
  for (size_t i = 0; i < step.stop && rest.ends_with(content); ++i) rest.remove_suffix(content.size());
  token = std::string(rest);
}

void ByteLevelDecode(std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    const size_t before = bytes.size();
    for (size_t at = 0; at < token.size();) {
      const CodePoint c = DecodeUtf8(token, at);
      const std::optional<uint8_t> byte = ByteLevelByte(c.value);
      if (!byte) {  // an added token with other characters: as it is
        bytes.resize(before);
        bytes += token;
        break;
      }
      bytes += static_cast<char>(*byte);
      at += c.length;
    }
  }
  tokens.assign(1, ReplaceInvalidUtf8(bytes));
}

size_t TotalBytes(const std::vector<std::string>& tokens) {
  size_t total = 0;
  for (const std::string& token : tokens) total += token.size();
  return total;
}

void Replace(const ReplaceStep& step, size_t limit, std::vector<std::string>& tokens) {
  RegexScratch scratch;
  size_t total = TotalBytes(tokens);
  for (std::string& token : tokens) {
    const size_t others = total - token.size();
    if (others >= limit) return;
    absl::StatusOr<std::string> replaced = ReplaceMatches(step, token, limit - others, scratch);
    if (!replaced.ok()) continue;
    token = *std::move(replaced);
    total = others + token.size();
  }
}

}  // namespace

std::string DecodeTokens(const std::vector<DecoderStep>& steps, std::vector<std::string> tokens) {
  const size_t limit =
      TotalBytes(tokens) * kMaxGrowth + 64 * 1024;  // a hostile file's replacements could double and double
  for (const DecoderStep& step : steps) {
    if (std::holds_alternative<ByteFallbackStep>(step)) ByteFallback(tokens);
    if (std::holds_alternative<FuseStep>(step)) Fuse(tokens);
    if (std::holds_alternative<ByteLevelDecodeStep>(step)) ByteLevelDecode(tokens);
    if (const auto* replace = std::get_if<ReplaceStep>(&step)) Replace(*replace, limit, tokens);
    if (const auto* strip = std::get_if<StripStep>(&step)) {
      for (std::string& token : tokens) Strip(*strip, token);
    }
  }
  Fuse(tokens);
  return std::move(tokens[0]);
}

}  // namespace hone
