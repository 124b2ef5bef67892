// Added tokens: texts that are cut out of the input before anything else happens (normalized: false), or out of the
// normalised text (normalized: true), as Hugging Face's AddedVocabulary does. Not here: how they are read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace hone {

inline constexpr size_t kMaxAddedTokenBytes = 1024;  // bounds the time of a search

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // searched for in the normalised text
  bool special = false;      // left out by Decode with skip_special_tokens
};

// Finds tokens in a text: leftmost first, of those the longest.
class AddedTokenMatcher {
 public:
  // `content`: what to look for, which for normalised tokens is not token.content. The first of two equal ones counts.
  void Add(std::string content, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  struct Part {
    uint32_t begin, end;
    int32_t id;  // -1: text between tokens
  };
  // The parts of `text`, in order; none is empty. A part after a token that took white space may overlap it.
  void Split(std::string_view text, std::vector<Part>& out) const;

 private:
  struct Entry {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  // Length of the longest token at `at` and its entry; length 0: none.
  std::pair<size_t, const Entry*> Longest(std::string_view text, size_t at) const;

  std::vector<Entry> tokens_;
  // A trie: (node << 8 | byte) -> node. Node 0 is the root; ends_[node] is the token that ends there, or -1.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> ends_ = {-1};
  bool first_[256] = {};  // bytes that begin a token
};

}  // namespace hone
