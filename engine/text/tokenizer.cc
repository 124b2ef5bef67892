#include "engine/text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>

#include "engine/text/tokenizer_json.h"
#include "engine/text/tokenizer_model.h"
#include "engine/text/unicode.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;  // of one Encode: bounds its memory
constexpr size_t kMaxCachedPiece = 64;

// Splits one text. The memory of pieces seen before makes repeated words cheap; it lasts for one call.
class Encoder {
 public:
  Encoder(const TokenizerModel& model, std::string_view text) : model_(model), text_(text) {
    cache_.resize(std::clamp<size_t>(std::bit_ceil(text.size() / 8 + 1), 16, 16384));
    scratch_.recent_characters = HasRecentCharacters(text);
  }

  absl::StatusOr<Encoding> Run() {
    std::vector<AddedTokenMatcher::Part> parts;
    model_.raw_matcher.Split(text_, parts);
    for (const AddedTokenMatcher::Part& part : parts) {
      if (part.id >= 0) {
        Add(part.id, {part.begin, part.end});
      } else {
        HONE_RETURN_IF_ERROR(EncodeRaw(AlignedText(text_.substr(part.begin, part.end - part.begin), part.begin)));
      }
    }
    return std::move(encoding_);
  }

 private:
  struct CacheEntry {
    const char* data = nullptr;
    uint32_t size = 0;
    uint32_t first = 0, count = 0;  // its tokens in tokens_
  };

  void Add(int32_t id, ByteSpan span) {
    encoding_.ids.push_back(id);
    encoding_.spans.push_back(span);
  }

  absl::Status EncodeRaw(AlignedText raw) {
    HONE_ASSIGN_OR_RETURN(AlignedText normalized, Normalize(model_.normalizer, std::move(raw), scratch_));
    texts_.push_back(std::move(normalized));
    const AlignedText& text = texts_.back();
    std::vector<AddedTokenMatcher::Part> parts;
    model_.normalized_matcher.Split(text.text(), parts);
    for (const AddedTokenMatcher::Part& part : parts) {
      if (part.id >= 0) {
        Add(part.id, text.Source(part.begin, part.end));
        continue;
      }
      std::vector<Piece> pieces = {{&text, part.begin, part.end}};
      HONE_RETURN_IF_ERROR(PreTokenize(model_.pre_tokenizer, pieces, texts_, scratch_));
      for (const Piece& piece : pieces) EncodePiece(piece);
    }
    return absl::OkStatus();
  }

  void EncodePiece(const Piece& piece) {
    const std::string_view view = piece.view();
    CacheEntry* entry = nullptr;
    if (view.size() <= kMaxCachedPiece) {
      entry = &cache_[std::hash<std::string_view>()(view) & (cache_.size() - 1)];
      if (std::string_view(entry->data, entry->size) == view) {
        for (uint32_t i = 0; i < entry->count; ++i) AddToken(piece, tokens_[entry->first + i]);
        return;
      }
    }
    const size_t first = tokens_.size();
    model_.bpe->Tokenize(view, tokens_, workspace_);
    for (size_t i = first; i < tokens_.size(); ++i) AddToken(piece, tokens_[i]);
    if (entry == nullptr) {
      tokens_.resize(first);
      return;
    }
    *entry = {view.data(), static_cast<uint32_t>(view.size()), static_cast<uint32_t>(first),
              static_cast<uint32_t>(tokens_.size() - first)};
  }

  void AddToken(const Piece& piece, const BpeToken& token) {
    Add(token.id, piece.text->Source(piece.begin + token.begin, piece.begin + token.end));
  }

  const TokenizerModel& model_;
  std::string_view text_;
  Encoding encoding_;
  RegexScratch scratch_;
  std::deque<AlignedText> texts_;  // pieces and cache entries point into these
  std::vector<CacheEntry> cache_;
  std::vector<BpeToken> tokens_;  // of the pieces in the cache
  BpeModel::Workspace workspace_;
};

Encoding EncodeBytes(std::string_view text, int vocabulary) {
  Encoding encoding;
  const AlignedText aligned(text, 0);
  for (size_t i = 0; i < text.size(); ++i) {
    encoding.ids.push_back(static_cast<uint8_t>(text[i]) % vocabulary);
    encoding.spans.push_back(aligned.Source(i, i + 1));
  }
  return encoding;
}

std::string DecodeBytes(std::span<const int32_t> ids, int vocabulary) {
  std::string bytes;
  for (const int32_t id : ids) {
    if (id >= 0 && id < std::min(vocabulary, 256)) {
      bytes += static_cast<char>(id);
    } else {
      bytes += "\uFFFD";
    }
  }
  return ReplaceInvalidUtf8(bytes);
}

}  // namespace

absl::Status TokenizerModel::Finish() {
  id_count = bpe->id_count();
  raw_matcher = normalized_matcher = {};
  added_by_id.clear();
  added_ids.clear();
  special.clear();
  RegexScratch scratch;
  for (const AddedToken& token : added) {
    id_count = std::max(id_count, token.id + 1);
    added_by_id[token.id] = &token;
    added_ids[token.content] = token.id;
    if (token.special) special.insert(token.content);
  }
  for (const bool want_special : {true, false}) {
    for (const AddedToken& token : added) {
      if (token.special != want_special) continue;
      if (!token.normalized) {
        raw_matcher.Add(token.content, token);
        continue;
      }
      HONE_ASSIGN_OR_RETURN(const AlignedText content, Normalize(normalizer, AlignedText(token.content, 0), scratch));
      normalized_matcher.Add(std::string(content.text()), token);
    }
  }
  for (const auto* ids : {&prefix, &suffix}) {
    for (const int32_t id : *ids) {
      if (bpe->TokenText(id) == nullptr && !added_by_id.contains(id)) {
        return InvalidArgument("tokenizer.json: post_processor: the id ", id, " is not a token");
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view tokenizer_json,
                                                               std::string_view tokenizer_config_json) {
  HONE_ASSIGN_OR_RETURN(std::unique_ptr<TokenizerModel> model, ReadTokenizerJson(tokenizer_json));
  if (!tokenizer_config_json.empty()) HONE_RETURN_IF_ERROR(ReadTokenizerConfigJson(tokenizer_config_json, *model));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(model)));
}

std::unique_ptr<Tokenizer> Tokenizer::Bytes(int vocab_size) {
  HONE_CHECK(vocab_size > 0, "vocab_size ", vocab_size);
  auto model = std::make_unique<TokenizerModel>();
  model->byte_vocabulary = model->id_count = vocab_size;
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(model)));
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerModel> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<Encoding> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("a text of ", text.size(), " bytes: at most ", kMaxTextBytes,
                           " are tokenized at once; split it");
  }
  size_t offset = 0;
  if (!IsValidUtf8(text, &offset)) return InvalidArgument("the text is not valid UTF-8 at byte ", offset);
  if (model_->byte_vocabulary > 0) return EncodeBytes(text, model_->byte_vocabulary);
  HONE_ASSIGN_OR_RETURN(Encoding encoding, Encoder(*model_, text).Run());
  if (!add_special_tokens) return encoding;
  const auto end = static_cast<uint32_t>(text.size());
  encoding.ids.insert(encoding.ids.begin(), model_->prefix.begin(), model_->prefix.end());
  encoding.spans.insert(encoding.spans.begin(), model_->prefix.size(), {0, 0});
  encoding.ids.insert(encoding.ids.end(), model_->suffix.begin(), model_->suffix.end());
  encoding.spans.insert(encoding.spans.end(), model_->suffix.size(), {end, end});
  return encoding;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  if (model_->byte_vocabulary > 0) return DecodeBytes(ids, model_->byte_vocabulary);
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    std::string text = TokenText(id);
    if (text.empty() && !model_->added_by_id.contains(id) && model_->bpe->TokenText(id) == nullptr) text = "\uFFFD";
    if (!skip_special_tokens || !model_->special.contains(text)) tokens.push_back(std::move(text));
  }
  if (model_->has_decoder) return DecodeTokens(model_->decoder, std::move(tokens));
  std::string joined;
  for (size_t i = 0; i < tokens.size(); ++i) joined += (i > 0 ? " " : "") + tokens[i];
  return joined;
}

int Tokenizer::vocab_size() const { return model_->id_count; }
std::optional<int32_t> Tokenizer::bos_id() const { return model_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return model_->eos; }
std::optional<int32_t> Tokenizer::pad_id() const { return model_->pad; }

std::string Tokenizer::TokenText(int32_t id) const {
  if (model_->byte_vocabulary > 0) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    if (id < 0 || id >= std::min(model_->byte_vocabulary, 256)) return "";
    return {'<', '0', 'x', kHex[id >> 4], kHex[id & 15], '>'};
  }
  if (const auto it = model_->added_by_id.find(id); it != model_->added_by_id.end()) return it->second->content;
  const std::string* text = model_->bpe->TokenText(id);
  return text != nullptr ? *text : "";
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const {
  if (model_->byte_vocabulary > 0) return std::nullopt;
  if (const auto it = model_->added_ids.find(token); it != model_->added_ids.end()) return it->second;
  return model_->bpe->TokenId(token);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const auto it = model_->added_by_id.find(id);
  return it != model_->added_by_id.end() && it->second->special;
}

std::string_view Tokenizer::kind() const {
  if (model_->byte_vocabulary > 0) return "bytes";
  if (model_->bpe->options().byte_level) return "byte-level BPE";
  return model_->bpe->options().byte_fallback ? "byte-fallback BPE" : "BPE";
}

bool Tokenizer::normalizes() const {
  if (model_->byte_vocabulary > 0) return model_->byte_vocabulary < 256;
  if (!model_->normalizer.empty() || !model_->has_decoder) return true;
  for (const PreTokenizerStep& step : model_->pre_tokenizer) {
    const auto* split = std::get_if<SplitStep>(&step);
    if (split != nullptr && split->behavior == SplitBehavior::kRemoved) return true;
    const auto* byte_level = std::get_if<ByteLevelStep>(&step);
    if (byte_level != nullptr && byte_level->add_prefix_space) return true;
  }
  return std::any_of(model_->added.begin(), model_->added.end(),
                     [](const AddedToken& token) { return token.lstrip || token.rstrip; });
}

std::vector<std::pair<std::string, int32_t>> Tokenizer::added_tokens() const {
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (const AddedToken& token : model_->added) tokens.emplace_back(token.content, token.id);
  return tokens;
}

std::string Tokenizer::ToTokenizerJson() const { return model_->json; }

}  // namespace hone
