#include "engine/text/bpe.h"

#include <algorithm>
#include <bit>

#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kShortPiece = 48;  // symbols up to which scanning all pairs beats a heap
constexpr uint32_t kNoRank = UINT32_MAX;
constexpr uint64_t kNoPair = UINT64_MAX;
constexpr size_t kMaxEnds = 8;  // initial symbols a token can begin with: one, but for odd vocabularies

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t PairSlot(uint64_t key, size_t table_size) {
  key *= 0x9E3779B97F4A7C15u;
  return (key ^ key >> 32) & (table_size - 1);
}

// The bytes a token spelt in the byte-level alphabet stands for; nullopt if it has other characters.
std::optional<std::string> ByteLevelBytes(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeUtf8(text, at);
    const std::optional<uint8_t> byte = ByteLevelByte(c.value);
    if (!byte) return std::nullopt;
    bytes += static_cast<char>(*byte);
    at += c.length;
  }
  return bytes;
}

// A heap with the best rank, then the leftmost position, on top.
struct Worse {
  bool operator()(const BpeModel::Candidate& a, const BpeModel::Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  }
};

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(std::vector<std::pair<std::string, int32_t>> vocabulary,
                                          const std::vector<std::pair<std::string, std::string>>& merges,
                                          BpeOptions options) {
  BpeModel model;
  model.options_ = std::move(options);
  HONE_RETURN_IF_ERROR(model.AddVocabulary(std::move(vocabulary)));
  HONE_RETURN_IF_ERROR(model.AddMerges(merges));
  if (model.options_.unk_token) {
    model.unk_id_ = model.TokenId(*model.options_.unk_token);
    if (!model.unk_id_)
      return InvalidArgument("unk_token: \"", *model.options_.unk_token, "\" is not in the vocabulary");
  }
  model.AddInitials();
  model.AddCrossings(merges);
  return model;
}

absl::Status BpeModel::AddVocabulary(std::vector<std::pair<std::string, int32_t>>&& vocabulary) {
  // Tables are as long as the largest id: a small file must not make them large.
  const int64_t limit = std::min<int64_t>(kMaxTokenId, 4 * static_cast<int64_t>(vocabulary.size()) + 65536);
  int32_t largest = -1;
  for (const auto& [text, id] : vocabulary) {
    if (id < 0 || id > limit) {
      return InvalidArgument("vocab: the id ", id, " of \"", text, "\" is outside 0 ... ", limit, " (for ",
                             vocabulary.size(), " tokens)");
    }
    largest = std::max(largest, id);
  }
  texts_.resize(static_cast<size_t>(largest) + 1);
  ids_.reserve(vocabulary.size());
  for (auto& [text, id] : vocabulary) {
    if (texts_[id]) return InvalidArgument("vocab: \"", *texts_[id], "\" and \"", text, "\" have the same id ", id);
    texts_[id] = std::move(text);
    if (!ids_.emplace(*texts_[id], id).second) return InvalidArgument("vocab: \"", *texts_[id], "\" is there twice");
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerges(const std::vector<std::pair<std::string, std::string>>& merges) {
  pairs_.resize(std::bit_ceil(merges.size() * 2 + 2));
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right] = merges[i];
    joined.assign(left).append(right);
    int32_t id[3];
    const std::string* text[3] = {&left, &right, &joined};
    for (int part = 0; part < 3; ++part) {
      const auto it = ids_.find(*text[part]);
      if (it == ids_.end()) return InvalidArgument("merges[", i, "]: \"", *text[part], "\" is not in the vocabulary");
      id[part] = it->second;
    }
    const uint64_t key = PairKey(id[0], id[1]);
    size_t slot = PairSlot(key, pairs_.size());
    while (pairs_[slot].key != kNoPair && pairs_[slot].key != key) slot = (slot + 1) & (pairs_.size() - 1);
    pairs_[slot] = {key, {static_cast<uint32_t>(i), id[2]}};  // of repeats the last counts
  }
  return absl::OkStatus();
}

BpeModel::Initial BpeModel::MakeInitial(std::string_view character) const {
  Initial initial;
  if (const auto it = ids_.find(character); it != ids_.end()) {
    initial.id = it->second;
    return initial;
  }
  if (!options_.byte_fallback) return initial;
  for (const char c : character) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    const auto byte = static_cast<uint8_t>(c);
    const char name[] = {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
    const auto it = ids_.find(std::string_view(name, sizeof(name)));
    if (it == ids_.end()) return {};
    initial.fallback.push_back(it->second);
  }
  return initial;
}

void BpeModel::AddInitials() {
  for (int b = 0; b < (options_.byte_level ? 256 : 128); ++b) {
    std::string character;
    AppendUtf8(character, options_.byte_level ? ByteLevelCharacter(static_cast<uint8_t>(b)) : static_cast<char32_t>(b));
    initials_[b] = MakeInitial(character);
  }
  if (!options_.byte_level || !options_.ignore_merges) return;
  for (const auto& [text, id] : ids_) {
    if (std::optional<std::string> bytes = ByteLevelBytes(text)) whole_.emplace(*std::move(bytes), id);
  }
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const uint64_t key = PairKey(left, right);
  for (size_t slot = PairSlot(key, pairs_.size());; slot = (slot + 1) & (pairs_.size() - 1)) {
    if (pairs_[slot].key == key) return &pairs_[slot].merge;
    if (pairs_[slot].key == kNoPair) return nullptr;
  }
}

std::optional<int32_t> BpeModel::TokenId(std::string_view text) const {
  const auto it = ids_.find(text);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const std::string* BpeModel::TokenText(int32_t id) const {
  if (id < 0 || id >= id_count() || !texts_[id]) return nullptr;
  return &*texts_[id];
}

std::optional<int32_t> BpeModel::WholePiece(std::string_view piece) const {
  if (!options_.byte_level) return TokenId(piece);
  const auto it = whole_.find(std::string(piece));
  if (it == whole_.end()) return std::nullopt;
  return it->second;
}

void BpeModel::MakeSymbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  auto add = [&](int32_t id, uint32_t begin, uint32_t end) { symbols.push_back({id, begin, end, -1, -1, false}); };
  std::optional<std::pair<uint32_t, uint32_t>> unknown;  // waits for what follows, to be fused with it
  Initial other;
  for (uint32_t at = 0; at < piece.size();) {
    const auto byte = static_cast<uint8_t>(piece[at]);
    const bool in_table = options_.byte_level || byte < 0x80;
    const uint32_t length = in_table ? 1 : DecodeUtf8(piece, at).length;
    if (!in_table) other = MakeInitial(piece.substr(at, length));
    const Initial& initial = in_table ? initials_[byte] : other;
    const uint32_t end = at + length;
    if (initial.id >= 0) {
      if (unknown) add(*unk_id_, unknown->first, unknown->second);
      unknown.reset();
      add(initial.id, at, end);
    } else if (!initial.fallback.empty()) {
      // Bytes of one character; a byte-level character may be spelt by two. All stand for the whole of it.
      for (const int32_t id : initial.fallback) add(id, at, end);
    } else if (unk_id_) {
      if (unknown && !options_.fuse_unk) add(*unk_id_, unknown->first, unknown->second);
      unknown = {unknown && options_.fuse_unk ? unknown->first : at, end};
    }
    at = end;
  }
  if (unknown) add(*unk_id_, unknown->first, unknown->second);
}

// Which initial symbols a token can begin and end with. A merge's token does so as its halves do; halves are shorter
// than their token, so going by length every half is done before it is needed.
void BpeModel::AddCrossings(const std::vector<std::pair<std::string, std::string>>& merges) {
  struct Ends {
    std::vector<int32_t> first, last;
  };
  std::vector<Ends> ends(texts_.size());
  auto add = [](std::vector<int32_t>& list, int32_t id) {
    if (std::find(list.begin(), list.end(), id) == list.end()) list.push_back(id);
  };
  for (int32_t id = 0; id < id_count(); ++id) {
    const std::string* text = TokenText(id);
    if (text == nullptr) continue;
    const bool one_character = !text->empty() && DecodeUtf8(*text, 0).length == text->size();
    const bool fallback = options_.byte_fallback && text->size() == 6 && text->starts_with("<0x");
    if (one_character || fallback || id == unk_id_) ends[id] = {{id}, {id}};
  }
  std::vector<size_t> order(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    if (merges[i].first.empty() || merges[i].second.empty()) return;  // not shorter
    order[i] = i;
  }
  auto length = [&](size_t i) { return merges[i].first.size() + merges[i].second.size(); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return length(a) < length(b); });
  std::vector<uint64_t> found;
  for (const size_t i : order) {
    const int32_t left = ids_.at(merges[i].first), right = ids_.at(merges[i].second);
    Ends& merged = ends[ids_.at(merges[i].first + merges[i].second)];
    for (const int32_t id : ends[left].first) add(merged.first, id);
    for (const int32_t id : ends[right].last) add(merged.last, id);
    if (merged.first.size() > kMaxEnds || merged.last.size() > kMaxEnds) return;
    for (const int32_t before : ends[left].last) {
      for (const int32_t after : ends[right].first) found.push_back(PairKey(before, after));
    }
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  crossings_.assign(std::bit_ceil(found.size() * 2 + 2), kNoPair);
  for (const uint64_t key : found) {
    size_t slot = PairSlot(key, crossings_.size());
    while (crossings_[slot] != kNoPair) slot = (slot + 1) & (crossings_.size() - 1);
    crossings_[slot] = key;
  }
}

bool BpeModel::MayCross(int32_t left, int32_t right) const {
  if (crossings_.empty()) return true;
  const uint64_t key = PairKey(left, right);
  for (size_t slot = PairSlot(key, crossings_.size());; slot = (slot + 1) & (crossings_.size() - 1)) {
    if (crossings_[slot] == key) return true;
    if (crossings_[slot] == kNoPair) return false;
  }
}

size_t BpeModel::MergeShort(std::span<Symbol> symbols) const {
  Merge merges[kShortPiece];  // of the pair that begins here
  size_t count = symbols.size();
  auto look_up = [&](size_t i) {
    const Merge* merge = FindMerge(symbols[i].id, symbols[i + 1].id);
    merges[i] = merge != nullptr ? *merge : Merge{kNoRank, -1};
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best].id = merges[best].id;
    symbols[best].end = symbols[best + 1].end;
    std::copy(symbols.begin() + best + 2, symbols.begin() + count, symbols.begin() + best + 1);
    std::copy(merges + best + 2, merges + count, merges + best + 1);
    --count;
    if (best > 0) look_up(best - 1);
    if (best + 1 < count) look_up(best);
  }
  return count;
}

size_t BpeModel::MergeLong(std::span<Symbol> symbols, std::vector<Candidate>& heap) const {
  heap.clear();
  const auto count = static_cast<int32_t>(symbols.size());
  auto consider = [&](int32_t at) {
    const Merge* merge = FindMerge(symbols[at].id, symbols[symbols[at].next].id);
    if (merge == nullptr) return false;
    heap.push_back({merge->rank, static_cast<uint32_t>(at), merge->id});
    return true;
  };
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  std::make_heap(heap.begin(), heap.end(), Worse());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Worse());
    const Candidate top = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(top.position);
    Symbol& left = symbols[at];
    if (left.gone || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;  // one of the two has changed since
    left.id = top.id;
    left.end = right.end;
    right.gone = true;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = at;
    if (left.previous >= 0 && consider(left.previous)) std::push_heap(heap.begin(), heap.end(), Worse());
    if (left.next >= 0 && consider(at)) std::push_heap(heap.begin(), heap.end(), Worse());
  }
  const auto end = std::remove_if(symbols.begin(), symbols.end(), [](const Symbol& symbol) { return symbol.gone; });
  return static_cast<size_t>(end - symbols.begin());
}

void BpeModel::Tokenize(std::string_view piece, std::vector<BpeToken>& out, Workspace& workspace) const {
  if (options_.ignore_merges) {
    if (const std::optional<int32_t> id = WholePiece(piece)) {
      out.push_back({*id, 0, static_cast<uint32_t>(piece.size())});
      return;
    }
  }
  workspace.symbols.clear();
  MakeSymbols(piece, workspace.symbols);
  const std::span<Symbol> symbols(workspace.symbols);
  for (size_t begin = 0, end; begin < symbols.size(); begin = end) {
    end = symbols.size();
    if (symbols.size() > kShortPiece) {
      end = begin + 1;
      while (end < symbols.size() && MayCross(symbols[end - 1].id, symbols[end].id)) ++end;
    }
    const std::span<Symbol> part = symbols.subspan(begin, end - begin);
    const size_t count = part.size() <= kShortPiece ? MergeShort(part) : MergeLong(part, workspace.heap);
    for (const Symbol& symbol : part.first(count)) out.push_back({symbol.id, symbol.begin, symbol.end});
  }
}

}  // namespace hone
