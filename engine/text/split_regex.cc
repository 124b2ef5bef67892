#include "engine/text/split_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/text/unicode.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxPatternBytes = 64 * 1024;
constexpr uint32_t kMatchLimit = 50'000'000;  // steps of one match; a run of a million spaces takes about a million
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kJitStackBytes = size_t{8} << 20;

std::string ErrorText(int code) {
  PCRE2_UCHAR8 buffer[256];
  pcre2_get_error_message_8(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct SplitRegex::Code {
  pcre2_code_8* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free_8(code); }

  static absl::StatusOr<std::unique_ptr<Code>> Compile(const std::string& translated) {
    std::unique_ptr<pcre2_compile_context_8, decltype(&pcre2_compile_context_free_8)> context(
        pcre2_compile_context_create_8(nullptr), &pcre2_compile_context_free_8);
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto result = std::make_unique<Code>();
    result->code = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get());
    if (result->code == nullptr) return InvalidArgument("regular expression: ", ErrorText(error));
    result->jit = pcre2_jit_compile_8(result->code, PCRE2_JIT_COMPLETE) == 0;
    return result;
  }
};

RegexScratch::RegexScratch()
    : match_(pcre2_match_data_create_8(1, nullptr)), context_(pcre2_match_context_create_8(nullptr)) {
  HONE_CHECK(match_ != nullptr && context_ != nullptr, "out of memory");
  pcre2_set_match_limit_8(context_, kMatchLimit);
  pcre2_set_heap_limit_8(context_, kHeapLimitKib);
}

RegexScratch::~RegexScratch() {
  pcre2_jit_stack_free_8(stack_);
  pcre2_match_context_free_8(context_);
  pcre2_match_data_free_8(match_);
}

SplitRegex::SplitRegex(std::string pattern, std::unique_ptr<Code> code, std::unique_ptr<Code> recent_code)
    : pattern_(std::move(pattern)), code_(std::move(code)), recent_code_(std::move(recent_code)) {}
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;
SplitRegex::~SplitRegex() = default;

absl::StatusOr<SplitRegex> SplitRegex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return InvalidArgument("regular expression: ", pattern.size(), " bytes; at most ", kMaxPatternBytes, " are read");
  }
  HONE_ASSIGN_OR_RETURN(const std::string plain, TranslatePattern(pattern, false));
  HONE_ASSIGN_OR_RETURN(const std::string recent, TranslatePattern(pattern, true));
  HONE_ASSIGN_OR_RETURN(std::unique_ptr<Code> code, Code::Compile(plain));
  std::unique_ptr<Code> recent_code;
  if (recent != plain) {
    HONE_ASSIGN_OR_RETURN(recent_code, Code::Compile(recent));
  }
  return SplitRegex(std::string(pattern), std::move(code), std::move(recent_code));
}

absl::Status SplitRegex::Tile(std::string_view text, RegexScratch& scratch, std::vector<MatchSpan>& out) const {
  const Code& code = scratch.recent_characters && recent_code_ != nullptr ? *recent_code_ : *code_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR8>(text.data());
  const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer_8(scratch.match_);
  uint32_t tiled = 0;
  bool matched_before = false;
  for (size_t start = 0; start <= text.size();) {
    int rc = code.jit ? pcre2_jit_match_8(code.code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, scratch.match_,
                                          scratch.context_)
                      : pcre2_match_8(code.code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, scratch.match_,
                                      scratch.context_);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && scratch.stack_ == nullptr) {
      scratch.stack_ = pcre2_jit_stack_create_8(32 * 1024, kJitStackBytes, nullptr);
      if (scratch.stack_ == nullptr) return ResourceExhausted("regular expression: no memory for its stack");
      pcre2_jit_stack_assign_8(scratch.context_, nullptr, scratch.stack_);
      continue;
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return ResourceExhausted("the tokenizer's regular expression ", pattern_, " fails on a text of ", text.size(),
                               " bytes at byte ", start, ": ", ErrorText(rc));
    }
    const auto begin = static_cast<uint32_t>(ovector[0]);
    const auto end = static_cast<uint32_t>(ovector[1]);
    if (begin >= end && matched_before && end == tiled) {  // an empty match directly after a match
      if (start >= text.size()) break;
      start += DecodeUtf8(text, start).length;
      continue;
    }
    if (end < begin) return InvalidArgument("the tokenizer's regular expression ", pattern_, " matches backwards");
    if (begin > tiled) out.push_back({tiled, begin, false});
    out.push_back({begin, end, true});
    tiled = end;
    matched_before = true;
    start = end;
  }
  if (tiled < text.size() || text.empty()) out.push_back({tiled, static_cast<uint32_t>(text.size()), false});
  return absl::OkStatus();
}

}  // namespace hone
