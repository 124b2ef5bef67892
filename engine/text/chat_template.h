// Chat templates: a sandboxed, bounded subset of Jinja that renders a conversation exactly as the jinja2 environment of
// Hugging Face transformers' apply_chat_template does (trim_blocks, lstrip_blocks, loop controls, `raise_exception`,
// `strftime_now`, `tojson` without HTML escapes, `{% generation %}` tolerated), and that knows which bytes of the
// result came from what an assistant said. Not here: tokenising the result (tokenizer.h), which files hold the template
// (engine/io).
//
// Provenance: every string remembers, byte by byte, whether it came from the `content` of a message whose role is
// "assistant", through concatenation, slices, strip, split, join, replace, case changes and the other filters. Only
// text survives: a content that the template turns into a number is no longer known as the assistant's.
//
// Errors (INVALID_ARGUMENT) give the line of the template: syntax, unknown names of filters, tests or methods,
// undefined values used as strings, raise_exception's message; RESOURCE_EXHAUSTED for a template that loops or grows
// past the bounds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

// Bytes [begin, end) of a text.
struct ByteSpan {
  uint32_t begin = 0, end = 0;
  friend bool operator==(const ByteSpan&, const ByteSpan&) = default;
};

struct RenderRequest {
  nlohmann::ordered_json messages;  // array of {"role", "content", ...}
  nlohmann::ordered_json tools;     // null or array
  nlohmann::ordered_json
      variables;  // further template variables, object or null; `strftime_now` here is a date as text
                  // ("2025-01-31" or "2025-01-31T12:00:00") that stands in for the clock
  bool add_generation_prompt = false;
};

// A trained span and the index of the message whose content it is.
struct TurnSpan {
  ByteSpan bytes;
  int32_t message = 0;
};

struct RenderedChat {
  std::string text;
  // What is trained: assistant content and the end-of-turn after it (the template's own text up to and including its
  // first special token; nothing if other data or the end of the text comes before one), ascending, merged where they
  // touch. Template text between two pieces of one content is trained too, unless a special token ends the turn there.
  std::vector<ByteSpan> trained;
  std::vector<TurnSpan> turns;  // the same, not merged across messages
};

struct TemplateTokens {
  std::string bos_token, eos_token;         // the variables of these names; empty: undefined
  std::vector<std::string> special_tokens;  // texts of all special tokens: the first after a content ends the turn
};

struct TemplateLimits {
  uint64_t max_steps = 5'000'000;           // nodes evaluated, plus bytes copied / 64
  uint64_t max_output_bytes = 64ull << 20;  // of the result and of any one string made on the way
  int max_call_depth = 64;                  // macros inside macros
};

class ChatTemplate {
 public:
  // At most 1 MiB of source, 100 levels of nesting.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source, TemplateTokens tokens,
                                                             TemplateLimits limits = {});
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // Thread-safe. An error if an assistant message with content is there but nothing of any can be traced in the result.
  absl::StatusOr<RenderedChat> Render(const RenderRequest& request) const;
  std::string_view source() const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone
