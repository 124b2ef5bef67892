// Text on its way to the tokens that remembers, byte by byte, which bytes of the input it came from. NFC, prepending
// and replacing build a new AlignedText out of an old one. Not here: which of them run (normalizer.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hone {

using ByteSpan = std::pair<uint32_t, uint32_t>;  // [begin, end) of the input

class AlignedText {
 public:
  // A piece of the input as it is; `input` must outlive this. `offset`: where it begins in the input.
  AlignedText(std::string_view input, uint32_t offset) : view_(input), offset_(offset) {}
  // sources: for each byte of `text`, the characters of the input it came from.
  AlignedText(std::string text, std::vector<ByteSpan> sources)
      : owned_(std::move(text)), sources_(std::move(sources)), is_owned_(true) {}

  std::string_view text() const { return is_owned_ ? std::string_view(owned_) : view_; }
  // Where bytes [begin, end) of text() came from, widened to whole characters. An empty range gives an empty span.
  ByteSpan Source(size_t begin, size_t end) const;

 private:
  std::string_view view_;
  uint32_t offset_ = 0;
  std::string owned_;
  std::vector<ByteSpan> sources_;
  bool is_owned_ = false;
};

// Writes a changed copy of `source`.
class AlignedTextBuilder {
 public:
  explicit AlignedTextBuilder(const AlignedText& source) : source_(source) {}
  void Reserve(size_t bytes);
  void Copy(size_t begin, size_t end);                  // source bytes, whole characters
  void Append(std::string_view text, ByteSpan origin);  // new text that stands for `origin`
  AlignedText Finish() { return AlignedText(std::move(text_), std::move(sources_)); }

 private:
  const AlignedText& source_;
  std::string text_;
  std::vector<ByteSpan> sources_;
};

// Normalisation Form C (UAX 15) as Hugging Face has it, by the tables of Unicode 9. Unchanged text is not copied. Where
// characters compose or reorder, the result stands for all of them together.
AlignedText NormalizeNfc(AlignedText text);

}  // namespace hone
