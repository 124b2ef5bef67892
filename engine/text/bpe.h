// Byte-pair encoding of one piece of text: characters (or, for byte-level models, bytes) become symbols, and the pair
// of neighbours with the best rank merges until none is left; of equal ranks the leftmost. Vocabulary lookups both
// ways. Not here: how text is cut into pieces (pretokenizer.h), special tokens (added_tokens.h).
//
// A piece of n symbols takes O(n log n) time and about 40 n bytes, so a megabyte without a break is no problem. A long
// piece is first cut between neighbours that no token can hold together (for most vocabularies that is between words).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

inline constexpr int32_t kMaxTokenId = (1 << 22) - 1;  // bounds the tables a file can make us allocate

struct BpeOptions {
  std::optional<std::string> unk_token;
  bool fuse_unk = false;       // neighbouring unknown characters make one unk
  bool byte_fallback = false;  // an unknown character becomes tokens <0xXX>
  bool ignore_merges = false;  // a piece that is a token is that token
  bool byte_level = false;     // the vocabulary is spelt in ByteLevelCharacter, pieces are bytes
};

// A token of a piece and the bytes of the piece it stands for.
struct BpeToken {
  int32_t id;
  uint32_t begin, end;
};

class BpeModel {
 public:
  struct Symbol {
    int32_t id;
    uint32_t begin, end;     // bytes of the piece
    int32_t previous, next;  // neighbours; -1: none
    bool gone;               // merged into its left neighbour
  };
  struct Candidate {
    uint32_t rank, position;
    int32_t id;  // of the merged token
  };
  // Memory that calls can share; one for each thread.
  struct Workspace {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // vocabulary: texts and ids, both without repeats, ids in [0, kMaxTokenId]. merges: best first; both halves and their
  // concatenation must be in the vocabulary. Errors name the entry ("merges[3]").
  static absl::StatusOr<BpeModel> Create(std::vector<std::pair<std::string, int32_t>> vocabulary,
                                         const std::vector<std::pair<std::string, std::string>>& merges,
                                         BpeOptions options);
  BpeModel(BpeModel&&) = default;
  BpeModel& operator=(BpeModel&&) = default;

  // Appends the tokens of `piece`: valid UTF-8, or any bytes if the model is byte-level.
  void Tokenize(std::string_view piece, std::vector<BpeToken>& out, Workspace& workspace) const;

  std::optional<int32_t> TokenId(std::string_view text) const;
  // Null where no token has this id.
  const std::string* TokenText(int32_t id) const;
  int32_t id_count() const { return static_cast<int32_t>(texts_.size()); }  // largest id + 1
  size_t token_count() const { return ids_.size(); }
  const BpeOptions& options() const { return options_; }

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  struct PairEntry {
    uint64_t key = UINT64_MAX;
    Merge merge{};
  };
  // What one character begins as: a token, else its fallback bytes, else unknown.
  struct Initial {
    int32_t id = -1;
    std::vector<int32_t> fallback;
  };

  BpeModel() = default;
  absl::Status AddVocabulary(std::vector<std::pair<std::string, int32_t>>&& vocabulary);
  absl::Status AddMerges(const std::vector<std::pair<std::string, std::string>>& merges);
  void AddInitials();
  void AddCrossings(const std::vector<std::pair<std::string, std::string>>& merges);
  Initial MakeInitial(std::string_view character) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;
  std::optional<int32_t> WholePiece(std::string_view piece) const;
  void MakeSymbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  bool MayCross(int32_t left, int32_t right) const;
  // Merge the symbols in place and return how many are left, at the front.
  size_t MergeShort(std::span<Symbol> symbols) const;
  size_t MergeLong(std::span<Symbol> symbols, std::vector<Candidate>& heap) const;

  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  std::vector<std::optional<std::string>> texts_;      // by id
  std::unordered_map<std::string_view, int32_t> ids_;  // views into texts_
  std::unordered_map<std::string, int32_t> whole_;     // byte-level with ignore_merges: the bytes a token stands for
  std::vector<PairEntry> pairs_;                       // open addressing; size a power of two
  // Pairs of initial symbols that stand side by side inside some merged token (open addressing); empty: any may.
  std::vector<uint64_t> crossings_;
  std::array<Initial, 256> initials_;  // by byte if byte-level, else by ASCII character
};

}  // namespace hone
