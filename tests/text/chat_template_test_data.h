// What the chat template tests share: golden files, foreign templates and short ways to render.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/chat_template.h"
#include "nlohmann/json.hpp"

namespace hone {

inline std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

inline nlohmann::ordered_json ReadGolden(const std::string& name) {
  return nlohmann::ordered_json::parse(ReadText(std::string(HONE_GOLDEN) + "/text/" + name));
}

// The template named in chat_template_models.json; empty if it lies in HONE_TEST_DATA and that is not there.
inline std::string GoldenTemplateSource(const nlohmann::ordered_json& entry) {
  if (entry.contains("source")) return entry["source"];
  const char* data = std::getenv("HONE_TEST_DATA");
  return data == nullptr ? "" : ReadText(std::string(data) + "/templates/" + entry["file"].get<std::string>());
}

inline TemplateTokens GoldenTokens(const nlohmann::ordered_json& entry) {
  return {entry["bos_token"], entry["eos_token"], entry["special_tokens"].get<std::vector<std::string>>()};
}

inline RenderRequest GoldenRequest(const nlohmann::ordered_json& conversation, const nlohmann::ordered_json& variables,
                                   const std::string& date) {
  RenderRequest request;
  request.messages = conversation["messages"];
  if (conversation.contains("tools")) request.tools = conversation["tools"];
  request.add_generation_prompt = conversation.value("add_generation_prompt", false);
  request.variables = variables;
  request.variables["strftime_now"] = date;
  return request;
}

// Renders `source` with messages; tokens <s>, </s> and <end>.
inline absl::StatusOr<RenderedChat> RenderSource(
    std::string_view source, const nlohmann::ordered_json& messages = nlohmann::ordered_json::array(),
    const nlohmann::ordered_json& variables = nullptr, TemplateLimits limits = {}) {
  auto parsed = ChatTemplate::Parse(source, {"<s>", "</s>", {"<end>"}}, limits);
  if (!parsed.ok()) return parsed.status();
  RenderRequest request;
  request.messages = messages;
  request.variables = variables;
  return (*parsed)->Render(request);
}

// The rendered text with trained spans in brackets: "assistant\n⟦X<|im_end|>⟧\n".
inline std::string Marked(const RenderedChat& chat) {
  std::string out;
  size_t at = 0;
  for (const ByteSpan& span : chat.trained) {
    out += chat.text.substr(at, span.begin - at) + "⟦" + chat.text.substr(span.begin, span.end - span.begin) + "⟧";
    at = span.end;
  }
  return out + chat.text.substr(at);
}

}  // namespace hone
