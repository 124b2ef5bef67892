#include "proto/base/json.h"

#include <string>
#include <unordered_set>
#include <vector>

#include "proto/base/status.h"

namespace hone {
namespace {

using nlohmann::json;

// Checks depth and duplicate keys while nlohmann's parser runs, and keeps the first error instead of throwing it.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  StrictBuilder(json& root, int max_depth) : dom_(root, /*allow_exceptions=*/false), max_depth_(max_depth) {}

  bool null() override { return dom_.null(); }
  bool boolean(bool value) override { return dom_.boolean(value); }
  bool number_integer(number_integer_t value) override { return dom_.number_integer(value); }
  bool number_unsigned(number_unsigned_t value) override { return dom_.number_unsigned(value); }
  bool number_float(number_float_t value, const string_t& text) override { return dom_.number_float(value, text); }
  bool string(string_t& value) override { return dom_.string(value); }
  bool binary(binary_t& value) override { return dom_.binary(value); }

  bool start_object(size_t elements) override {
    if (!Enter()) return false;
    keys_.emplace_back();
    return dom_.start_object(elements);
  }
  bool key(string_t& value) override {
    if (!keys_.back().insert(value).second) return Fail(StrCat("duplicate key ", json(value).dump()));
    return dom_.key(value);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return dom_.end_object();
  }
  bool start_array(size_t elements) override { return Enter() && dom_.start_array(elements); }
  bool end_array() override {
    --depth_;
    return dom_.end_array();
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    // The parser's text opens with "[json.exception.parse_error.101] parse error at line 1, column 5: ".
    std::string_view text = error.what();
    if (const size_t cut = text.find(": "); cut != std::string_view::npos) text.remove_prefix(cut + 2);
    error_ = StrCat("byte ", position == 0 ? 0 : position - 1, ": ", text);
    return false;
  }

  const std::string& error() const { return error_; }
  bool located() const { return error_.starts_with("byte "); }

 private:
  bool Enter() {
    if (++depth_ > max_depth_) return Fail(StrCat("nested deeper than ", max_depth_, " levels"));
    return true;
  }
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }

  nlohmann::detail::json_sax_dom_parser<json> dom_;
  std::vector<std::unordered_set<std::string>> keys_;
  int max_depth_;
  int depth_ = 0;
  std::string error_;
};

// An input range that tells how far the parser has read, for errors that we raise and the parser cannot locate.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** furthest;
  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    ++at;
    *furthest = at;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
  bool operator!=(const CountingIterator& other) const { return at != other.at; }
};

}  // namespace

absl::StatusOr<json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return InvalidArgument("JSON of ", text.size(), " bytes is larger than the limit of ", limits.max_bytes, " bytes");
  }
  if (size_t offset = 0; !IsValidUtf8(text, &offset)) return InvalidArgument("byte ", offset, ": invalid UTF-8");
  json root;
  StrictBuilder builder(root, limits.max_depth);
  const char* furthest = text.data();
  bool ok = false;
  try {
    ok = json::sax_parse(CountingIterator{text.data(), &furthest},
                         CountingIterator{text.data() + text.size(), &furthest}, &builder);
  } catch (const std::exception& error) {  // json exceptions that the SAX interface does not route, bad_alloc
    return InvalidArgument("invalid JSON: ", error.what());
  }
  if (ok) return root;
  if (builder.located()) return InvalidArgument("invalid JSON at ", builder.error());
  return InvalidArgument("invalid JSON near byte ", furthest - text.data(), ": ",
                         builder.error().empty() ? std::string("number out of range") : builder.error());
}

bool IsValidUtf8(std::string_view text, size_t* offset) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  const auto fail = [&](size_t at) {
    if (offset != nullptr) *offset = at;
    return false;
  };
  for (size_t i = 0; i < size;) {
    const unsigned char lead = bytes[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    size_t length = 0;
    unsigned char low = 0x80,
                  high = 0xBF;  // bounds of the second byte: no overlong forms, surrogates or beyond U+10FFFF
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return fail(i);
    }
    if (size - i < length || bytes[i + 1] < low || bytes[i + 1] > high) return fail(i);
    for (size_t k = 2; k < length; ++k) {
      if ((bytes[i + k] & 0xC0) != 0x80) return fail(i);
    }
    i += length;
  }
  return true;
}

}  // namespace hone
