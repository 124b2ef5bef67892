// Bytes up to the first NUL are a template, the rest a JSON request {"messages", "tools", "variables"} (a fixed one if
// it is not).
#include <cstdint>
#include <string_view>

#include "engine/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using Json = nlohmann::ordered_json;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t nul = input.find('\0');
  hone::TemplateLimits limits;
  limits.max_steps = 50'000;
  limits.max_output_bytes = 1 << 20;
  auto parsed = hone::ChatTemplate::Parse(input.substr(0, nul), {"<s>", "</s>", {"<end>"}}, limits);
  if (!parsed.ok()) return 0;
  hone::RenderRequest request;
  request.messages = Json::array(
      {{{"role", "user"}, {"content", "Frage é"}}, {{"role", "assistant"}, {"content", " <think>a</think> b\n"}}});
  request.variables = {{"d", {{"a", 1}, {"b", {1.5, nullptr, true}}}}, {"l", {3, 1, 2}}, {"s", "x y"}};
  request.variables["strftime_now"] = "2025-01-31";
  if (nul != std::string_view::npos) {
    const Json given = Json::parse(input.substr(nul + 1), nullptr, false);
    if (given.is_object()) {
      request.messages = given.value("messages", Json::array());
      request.tools = given.value("tools", Json());
      request.variables = given.value("variables", Json());
    }
  }
  auto chat = (*parsed)->Render(request);
  if (!chat.ok()) return 0;
  uint32_t at = 0;
  for (const hone::ByteSpan& span : chat->trained) {
    if (span.begin < at || span.end <= span.begin || span.end > chat->text.size()) __builtin_trap();
    at = span.end;
  }
  return 0;
}
