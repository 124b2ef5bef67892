// A tokenizer.json from a stranger, then a text through it: the input is the file, the text and
// a tokenizer_config.json, with zero bytes between them.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  std::string_view text = zero == std::string_view::npos ? "a b 12\n<s>" : input.substr(zero + 1);
  std::string_view config;
  if (const size_t second = text.find('\0'); second != std::string_view::npos) {
    config = text.substr(second + 1);
    text = text.substr(0, second);
  }
  const auto tokenizer = hone::Tokenizer::FromJson(input.substr(0, zero), config);
  if (!tokenizer.ok()) return 0;
  const auto encoding = (*tokenizer)->Encode(text, true);
  if (!encoding.ok()) return 0;
  HONE_CHECK(encoding->ids.size() == encoding->spans.size());
  for (size_t i = 0; i < encoding->ids.size(); ++i) {
    HONE_CHECK(encoding->ids[i] >= 0 && encoding->ids[i] < (*tokenizer)->vocab_size());
    HONE_CHECK(encoding->spans[i].first <= encoding->spans[i].second && encoding->spans[i].second <= text.size());
  }
  for (const bool skip : {false, true}) HONE_CHECK(hone::IsValidUtf8((*tokenizer)->Decode(encoding->ids, skip)));
  return 0;
}
