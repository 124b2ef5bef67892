#include "engine/text/added_tokens.h"

#include <algorithm>

#include "engine/text/unicode.h"

namespace hone {
namespace {

size_t PreviousCharacter(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && IsContinuation(text[at]));
  return at;
}

bool TouchesWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWordCharacter(DecodeUtf8(text, PreviousCharacter(text, begin)).value)) return true;
  return end < text.size() && IsWordCharacter(DecodeUtf8(text, end).value);
}

}  // namespace

void AddedTokenMatcher::Add(std::string content, const AddedToken& token) {
  if (content.empty()) return;
  uint32_t node = 0;
  for (const char c : content) {
    const auto [edge, added] =
        edges_.emplace(uint64_t{node} << 8 | static_cast<uint8_t>(c), static_cast<uint32_t>(ends_.size()));
    if (added) ends_.push_back(-1);
    node = edge->second;
  }
  if (ends_[node] >= 0) return;
  ends_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
  first_[static_cast<uint8_t>(content[0])] = true;
}

std::pair<size_t, const AddedTokenMatcher::Entry*> AddedTokenMatcher::Longest(std::string_view text, size_t at) const {
  std::pair<size_t, const Entry*> longest{0, nullptr};
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ends_[node] >= 0) longest = {i + 1 - at, &tokens_[ends_[node]]};
  }
  return longest;
}

void AddedTokenMatcher::Split(std::string_view text, std::vector<Part>& out) const {
  size_t done = 0;  // text before this is in `out`
  auto add = [&](size_t begin, size_t end, int32_t id) {
    if (begin < end) out.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), id});
  };
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    if (!first_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const auto [length, entry] = Longest(text, at);
    if (length == 0) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + length;
    at = end;
    if (entry->single_word && TouchesWord(text, begin, end)) continue;
    if (entry->lstrip) {
      while (begin > done && IsWhiteSpace(DecodeUtf8(text, PreviousCharacter(text, begin)).value)) {
        begin = PreviousCharacter(text, begin);
      }
      begin = std::max(begin, done);
    }
    while (entry->rstrip && end < text.size()) {
      const CodePoint next = DecodeUtf8(text, end);
      if (!IsWhiteSpace(next.value)) break;
      end += next.length;
    }
    add(done, begin, -1);
    add(begin, end, entry->id);
    done = end;
  }
  if (done != text.size()) add(done, text.size(), -1);
}

}  // namespace hone
