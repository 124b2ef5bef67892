#include "engine/text/chat_template.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parser.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {

namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;

absl::Status FaultStatus(const jinja::TemplateFault& fault) {
  const std::string message = StrCat("chat template line ", std::max(1, fault.line), ": ", fault.what());
  return fault.fault == jinja::Fault::kTooMuch ? ResourceExhausted(message) : InvalidArgument(message);
}

bool HasText(const nlohmann::ordered_json& content) {
  if (content.is_string()) return !content.get_ref<const std::string&>().empty();
  if (!content.is_array()) return false;
  return std::any_of(content.begin(), content.end(), [](const nlohmann::ordered_json& part) {
    if (!part.is_object()) return false;
    const auto text = part.find("text");
    return text != part.end() && text->is_string() && !text->get_ref<const std::string&>().empty();
  });
}

bool IsAssistant(const nlohmann::ordered_json& message) {
  const auto role = message.find("role");
  return role != message.end() && role->is_string() && role->get_ref<const std::string&>() == "assistant";
}

// The parts of a content that is a list: their "text" is what was said.
jinja::Value PartsFromJson(const nlohmann::ordered_json& parts, int32_t source) {
  std::vector<jinja::Value> items;
  for (const auto& part : parts) {
    if (!part.is_object()) {
      items.push_back(jinja::FromJson(part, source));
      continue;
    }
    std::vector<std::pair<jinja::Value, jinja::Value>> fields;
    for (const auto& [key, value] : part.items()) {
      fields.emplace_back(jinja::MakeText(key, jinja::kOtherData),
                          jinja::FromJson(value, key == "text" ? source : jinja::kOtherData));
    }
    items.push_back(jinja::MakeDict(std::move(fields)));
  }
  return jinja::MakeList(std::move(items));
}

jinja::Value MessageFromJson(const nlohmann::ordered_json& message, int32_t index) {
  const bool assistant = IsAssistant(message);
  std::vector<std::pair<jinja::Value, jinja::Value>> fields;
  for (const auto& [key, value] : message.items()) {
    const int32_t source = assistant && key == "content" ? index : jinja::kOtherData;
    fields.emplace_back(jinja::MakeText(key, jinja::kOtherData), source != jinja::kOtherData && value.is_array()
                                                                     ? PartsFromJson(value, source)
                                                                     : jinja::FromJson(value, source));
  }
  return jinja::MakeDict(std::move(fields));
}

absl::Status CheckRequest(const RenderRequest& request) {
  if (!request.messages.is_array())
    return InvalidArgument("messages: expected an array of objects with 'role' and 'content'");
  for (size_t i = 0; i < request.messages.size(); ++i) {
    if (!request.messages[i].is_object())
      return InvalidArgument("messages[", i, "]: expected an object with 'role' and 'content'");
  }
  if (!request.tools.is_null() && !request.tools.is_array()) return InvalidArgument("tools: expected an array");
  if (request.variables.is_null()) return absl::OkStatus();
  if (!request.variables.is_object()) return InvalidArgument("template variables: expected an object");
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    if (request.variables.contains(name))
      return InvalidArgument("template variables: '", name, "' cannot be given here");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::tm> Now(const nlohmann::ordered_json& variables) {
  std::tm now{};
  if (!variables.is_object() || !variables.contains("strftime_now")) {
    const std::time_t clock = std::time(nullptr);
    localtime_r(&clock, &now);
    return now;
  }
  const auto& given = variables["strftime_now"];
  const std::string text = given.is_string() ? given.get<std::string>() : "";
  const int fields = std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d", &now.tm_year, &now.tm_mon, &now.tm_mday,
                                 &now.tm_hour, &now.tm_min, &now.tm_sec);
  if ((fields != 3 && fields != 6) || now.tm_mon < 1 || now.tm_mon > 12 || now.tm_mday < 1 || now.tm_mday > 31 ||
      now.tm_hour > 23 || now.tm_min > 59 || now.tm_sec > 60) {
    return InvalidArgument(
        "template variable 'strftime_now': expected a date such as \"2025-01-31\" or \"2025-01-31T12:00:00\"");
  }
  now.tm_year -= 1900;
  now.tm_mon -= 1;
  now.tm_isdst = -1;
  std::tm normal = now;
  normal.tm_hour = 12;
  (void)timegm(&normal);  // fills in the day of the week and of the year
  now.tm_wday = normal.tm_wday;
  now.tm_yday = normal.tm_yday;
  return now;
}

}  // namespace

struct ChatTemplate::Impl {
  std::string source;
  jinja::Body body;
  TemplateTokens tokens;
  std::vector<std::string> ends;  // special tokens, longest first
  TemplateLimits limits;

  void Define(jinja::Evaluator* evaluator, const RenderRequest& request) const;
  size_t TurnEnd(std::string_view text, size_t begin, size_t end) const;
  std::vector<TurnSpan> Turns(const jinja::Text& text) const;
};

void ChatTemplate::Impl::Define(jinja::Evaluator* evaluator, const RenderRequest& request) const {
  std::vector<jinja::Value> messages;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    messages.push_back(MessageFromJson(request.messages[i], static_cast<int32_t>(i)));
  }
  evaluator->Define("messages", jinja::MakeList(std::move(messages)));
  evaluator->Define("tools", jinja::FromJson(request.tools, jinja::kOtherData));
  evaluator->Define("add_generation_prompt", request.add_generation_prompt);
  if (request.variables.is_object()) {
    for (const auto& [name, value] : request.variables.items()) {
      if (name != "strftime_now") evaluator->Define(name, jinja::FromJson(value, jinja::kOtherData));
    }
  }
  // As transformers passes them; the first definition of a name counts.
  evaluator->Define("documents", jinja::None{});
  if (!tokens.bos_token.empty()) evaluator->Define("bos_token", jinja::MakeText(tokens.bos_token));
  if (!tokens.eos_token.empty()) evaluator->Define("eos_token", jinja::MakeText(tokens.eos_token));
}

// The end of the first special token in [begin, end), or npos.
size_t ChatTemplate::Impl::TurnEnd(std::string_view text, size_t begin, size_t end) const {
  const std::string_view gap = text.substr(begin, end - begin);
  size_t first = std::string_view::npos, length = 0;
  for (const std::string& token : ends) {
    const size_t found = gap.find(token);
    if (found < first) {
      first = found;
      length = token.size();
    }
  }
  return first == std::string_view::npos ? first : begin + first + length;
}

std::vector<TurnSpan> ChatTemplate::Impl::Turns(const jinja::Text& text) const {
  std::vector<TurnSpan> turns;
  for (size_t i = 0; i < text.runs.size(); ++i) {
    const jinja::TextRun& run = text.runs[i];
    if (run.source == jinja::kOtherData) continue;
    const bool last = i + 1 == text.runs.size();
    const size_t limit = last ? text.bytes.size() : text.runs[i + 1].begin;
    size_t end = TurnEnd(text.bytes, run.end, limit);
    if (end == std::string_view::npos) end = !last && text.runs[i + 1].source == run.source ? limit : run.end;
    const ByteSpan span{run.begin, static_cast<uint32_t>(end)};
    if (!turns.empty() && turns.back().message == run.source && turns.back().bytes.end == span.begin) {
      turns.back().bytes.end = span.end;
    } else if (span.begin < span.end) {
      turns.push_back({span, run.source});
    }
  }
  return turns;
}

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;
std::string_view ChatTemplate::source() const { return impl_->source; }

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source, TemplateTokens tokens,
                                                                  TemplateLimits limits) {
  if (source.size() > kMaxSourceBytes) return InvalidArgument("chat template: larger than ", kMaxSourceBytes, " bytes");
  size_t offset = 0;
  if (!IsValidUtf8(source, &offset)) return InvalidArgument("chat template: invalid UTF-8 at byte ", offset);
  auto impl = std::make_unique<Impl>();
  impl->source = std::string(source);
  impl->limits = limits;
  impl->ends = tokens.special_tokens;
  impl->ends.push_back(tokens.bos_token);
  impl->ends.push_back(tokens.eos_token);
  std::erase(impl->ends, "");
  std::stable_sort(impl->ends.begin(), impl->ends.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
  impl->ends.erase(std::unique(impl->ends.begin(), impl->ends.end()), impl->ends.end());
  impl->tokens = std::move(tokens);
  try {
    impl->body = jinja::ParseTemplate(impl->source);
  } catch (const jinja::TemplateFault& fault) {
    return FaultStatus(fault);
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const RenderRequest& request) const {
  HONE_RETURN_IF_ERROR(CheckRequest(request));
  HONE_ASSIGN_OR_RETURN(const std::tm now, Now(request.variables));
  jinja::Text text;
  try {
    jinja::Budget budget(impl_->limits.max_steps, std::min<uint64_t>(impl_->limits.max_output_bytes, UINT32_MAX / 2));
    jinja::Evaluator evaluator(&budget, now, impl_->limits.max_call_depth);
    impl_->Define(&evaluator, request);
    text = evaluator.Render(impl_->body);
  } catch (const jinja::TemplateFault& fault) {
    return FaultStatus(fault);
  }
  RenderedChat chat;
  chat.turns = impl_->Turns(text);
  const bool traced = std::any_of(text.runs.begin(), text.runs.end(), [](const auto& run) { return run.source >= 0; });
  for (size_t i = 0; i < request.messages.size() && !traced; ++i) {
    const auto content = request.messages[i].find("content");
    if (IsAssistant(request.messages[i]) && content != request.messages[i].end() && HasText(*content)) {
      return InvalidArgument(
          "chat template: none of the assistant's content (messages[", i,
          "]) can be traced in the rendered text, so it is unknown what to train; the template drops it or turns "
          "it into something else");
    }
  }
  for (const TurnSpan& turn : chat.turns) {
    if (!chat.trained.empty() && chat.trained.back().end == turn.bytes.begin) {
      chat.trained.back().end = turn.bytes.end;
    } else {
      chat.trained.push_back(turn.bytes);
    }
  }
  chat.text = std::move(text.bytes);
  return chat;
}

}  // namespace hone
