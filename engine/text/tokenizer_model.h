// What stands behind Tokenizer: the parts of a tokenizer.json, read and ready to run. Private to this room.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/decoder.h"
#include "engine/text/normalizer.h"
#include "engine/text/pretokenizer.h"

namespace hone {

class TokenizerModel {
 public:
  // Plain bytes modulo this, and nothing else below is used; 0: BPE.
  int byte_vocabulary = 0;

  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::optional<BpeModel> bpe;
  std::vector<AddedToken> added;        // in the file's order, ids fixed
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around a text
  bool has_decoder = false;             // without one, decoding puts spaces between tokens
  std::vector<DecoderStep> decoder;
  std::optional<int32_t> bos, eos, pad;
  std::string json;  // the tokenizer.json itself

  // Computed from the above by Finish(), again if `added` has changed.
  AddedTokenMatcher raw_matcher, normalized_matcher;
  std::unordered_map<int32_t, const AddedToken*> added_by_id;
  std::unordered_map<std::string_view, int32_t> added_ids;
  std::unordered_set<std::string_view> special;  // texts
  int id_count = 0;                              // largest id + 1
  absl::Status Finish();
};

}  // namespace hone
