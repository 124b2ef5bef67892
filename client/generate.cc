// hone generate: answers of a job's adapter, of its base, or of both side by side.
#include <map>

#include "client/commands.h"
#include "client/interrupt.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxPrompts = 4096;
constexpr size_t kPromptsACall = 256;  // what the daemon takes at once

struct Prompt {
  Json input;  // {"prompt"}, {"messages"} or {"ids"}: echoed in the output
  v1::GenerateRequest request;
};

struct Answer {
  std::string text;
  std::vector<int32_t> ids;
  std::string finish_reason;
  absl::Status status = absl::UnknownError("the daemon ended the stream before this answer was done");
};

Json UserMessage(const std::string& text) { return Json::array({{{"role", "user"}, {"content", text}}}); }

std::string Dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

void ApplyFlags(const GenerateOptions& options, v1::GenerateRequest& request) {
  if (options.temperature) request.set_temperature(*options.temperature);
  if (options.top_p) request.set_top_p(*options.top_p);
  if (options.top_k) request.set_top_k(*options.top_k);
  if (options.max_new_tokens) request.set_max_new_tokens(*options.max_new_tokens);
  if (options.seed) request.set_seed(*options.seed);
  for (const std::string& stop : options.stop) request.add_stop(stop);
}

// What a row says of sampling wins over the flags.
absl::Status ApplyRow(const nlohmann::json& row, v1::GenerateRequest& request) {
  try {
    if (row.contains("temperature")) request.set_temperature(row.at("temperature").get<double>());
    if (row.contains("top_p")) request.set_top_p(row.at("top_p").get<double>());
    if (row.contains("top_k")) request.set_top_k(row.at("top_k").get<uint32_t>());
    if (row.contains("max_new_tokens")) request.set_max_new_tokens(row.at("max_new_tokens").get<uint32_t>());
    if (row.contains("seed")) request.set_seed(row.at("seed").get<uint64_t>());
    if (row.contains("stop")) {
      request.clear_stop();
      if (row.at("stop").is_string()) request.add_stop(row.at("stop").get<std::string>());
      if (row.at("stop").is_array()) {
        for (const auto& stop : row.at("stop")) request.add_stop(stop.get<std::string>());
      }
    }
  } catch (const std::exception& error) {
    return InvalidArgument("a sampling value has the wrong type: ", error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<Prompt> FromRow(const nlohmann::json& row, const GenerateOptions& options) {
  Prompt prompt;
  ApplyFlags(options, prompt.request);
  if (row.is_string()) {
    prompt.input["messages"] = UserMessage(row.get<std::string>());
  } else if (row.is_object() && row.contains("messages") && row.at("messages").is_array()) {
    prompt.input["messages"] = Json::parse(row.at("messages").dump());
  } else if (row.is_object() && row.contains("question") && row.at("question").is_string()) {
    prompt.input["messages"] = UserMessage(row.at("question").get<std::string>());
  } else if (row.is_object() && row.contains("prompt") && row.at("prompt").is_string()) {
    prompt.input["prompt"] = row.at("prompt").get<std::string>();
  } else if (row.is_object() && row.contains("prompt") && row.at("prompt").is_array()) {
    prompt.input["messages"] = Json::parse(row.at("prompt").dump());  // a training row's conversational prompt
  } else if (row.is_object() && row.contains("ids") && row.at("ids").is_array()) {
    prompt.input["ids"] = row.at("ids").get<std::vector<int64_t>>();
  } else {
    return InvalidArgument(
        "expected {\"messages\": [...]}, {\"question\": \"...\"}, {\"prompt\": \"...\"} or {\"ids\": [...]}");
  }
  if (row.is_object()) HONE_RETURN_IF_ERROR(ApplyRow(row, prompt.request));
  if (prompt.input.contains("messages")) {
    prompt.request.set_messages_json(Dump(prompt.input["messages"]));
  } else if (prompt.input.contains("prompt")) {
    prompt.request.set_prompt(prompt.input["prompt"].get<std::string>());
  } else {
    for (const auto& id : prompt.input["ids"]) prompt.request.mutable_ids()->add_ids(id.get<int32_t>());
  }
  return prompt;
}

absl::StatusOr<Prompt> FromRowText(std::string_view text, const GenerateOptions& options, const std::string& place) {
  const absl::StatusOr<nlohmann::json> row = ParseJson(text);
  if (!row.ok()) return Annotate(row.status(), place);
  try {
    absl::StatusOr<Prompt> prompt = FromRow(*row, options);
    return prompt.ok() ? prompt : Annotate(prompt.status(), place);
  } catch (const std::exception& error) {
    return InvalidArgument(place, ": ", error.what());
  }
}

absl::Status ReadPromptFile(const GenerateOptions& options, std::vector<Prompt>& prompts) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.file, uint64_t{64} << 20));
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    HONE_ASSIGN_OR_RETURN(Prompt prompt, FromRowText(line, options, StrCat(options.file, ":", line_number)));
    prompts.push_back(std::move(prompt));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Prompt>> CollectPrompts(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
  for (const std::string& text : options.prompts) {
    HONE_ASSIGN_OR_RETURN(Prompt prompt, FromRow({{"prompt", text}}, options));
    prompts.push_back(std::move(prompt));
  }
  for (const std::string& text : options.questions) {
    HONE_ASSIGN_OR_RETURN(Prompt prompt, FromRow({{"question", text}}, options));
    prompts.push_back(std::move(prompt));
  }
  for (const std::string& text : options.messages) {
    HONE_ASSIGN_OR_RETURN(Prompt prompt, FromRowText(StrCat("{\"messages\":", text, "}"), options, "--messages"));
    prompts.push_back(std::move(prompt));
  }
  if (!options.file.empty()) HONE_RETURN_IF_ERROR(ReadPromptFile(options, prompts));
  if (prompts.empty()) return InvalidArgument("nothing to answer: give --ask, --prompt, --messages or --file");
  if (prompts.size() > kMaxPrompts)
    return InvalidArgument(prompts.size(), " prompts; at most ", kMaxPrompts, " at once");
  return prompts;
}

using OnText = std::function<void(const std::string&)>;

// One call answers [begin, end).
absl::Status AskSome(Client& client, const GenerateOptions& options, bool base, const std::vector<Prompt>& prompts,
                     size_t begin, size_t end, const OnText& on_text, Interrupt& interrupt,
                     std::vector<Answer>& answers) {
  v1::GenerateModelRequest request;
  request.set_model(options.model);
  request.set_job(options.job.empty() ? "" : JobName(options.job));
  request.set_base_only(base);
  for (size_t i = begin; i < end; ++i) {
    v1::GenerateRequest& one = *request.add_requests();
    one = prompts[i].request;
    one.set_request(i - begin);
    one.set_use_adapter(!base && !options.job.empty());
  }
  return client.Generate(
      request,
      [&](const v1::GenerateChunk& chunk) {
        if (chunk.request() >= end - begin) return;
        Answer& answer = answers[begin + chunk.request()];
        answer.text += chunk.text();
        answer.ids.insert(answer.ids.end(), chunk.ids().begin(), chunk.ids().end());
        if (on_text && !chunk.text().empty()) on_text(chunk.text());
        if (!chunk.done()) return;
        answer.finish_reason = chunk.finish_reason();
        answer.status = absl::Status(static_cast<absl::StatusCode>(chunk.error_code()), chunk.error_message());
      },
      interrupt.cancellation());
}

absl::StatusOr<std::vector<Answer>> Ask(Client& client, const GenerateOptions& options, bool base,
                                        const std::vector<Prompt>& prompts, const OnText& on_text,
                                        Interrupt& interrupt) {
  std::vector<Answer> answers(prompts.size());
  for (size_t at = 0; at < prompts.size(); at += kPromptsACall) {
    const size_t end = std::min(prompts.size(), at + kPromptsACall);
    HONE_RETURN_IF_ERROR(AskSome(client, options, base, prompts, at, end, on_text, interrupt, answers));
  }
  return answers;
}

Json AnswerJson(const Answer& answer) {
  Json json;
  json["text"] = answer.text;
  json["ids"] = answer.ids;
  json["finish_reason"] = answer.finish_reason;
  if (!answer.status.ok())
    json["error"] = {{"code", absl::StatusCodeToString(answer.status.code())},
                     {"message", std::string(answer.status.message())}};
  return json;
}

std::string Question(const Prompt& prompt) {
  if (prompt.input.contains("prompt")) return prompt.input["prompt"].get<std::string>();
  if (prompt.input.contains("ids")) return Dump(prompt.input["ids"]);
  const Json& messages = prompt.input["messages"];
  if (messages.empty() || !messages.back().is_object() || !messages.back().contains("content")) return Dump(messages);
  const Json& content = messages.back()["content"];
  return content.is_string() ? content.get<std::string>() : Dump(content);
}

std::string AnswerText(const Answer& answer) {
  if (!answer.status.ok()) return StrCat("error: ", Printable(ToStd(answer.status.message())));
  return StrCat(Printable(answer.text), answer.finish_reason == "length" ? " [cut: max_new_tokens]" : "");
}

struct Side {
  std::string label;
  std::vector<Answer> answers;
};

void Print(const Context& context, const std::vector<Prompt>& prompts, const std::vector<Side>& sides) {
  const bool colours = context.terminal.out_colours;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (context.json()) {
      Json row = {{"index", i}};
      row.update(prompts[i].input);
      if (sides.size() == 1) {
        row.update(AnswerJson(sides[0].answers[i]));
      } else {
        for (const Side& side : sides) row[side.label] = AnswerJson(side.answers[i]);
      }
      Out(Dump(row) + "\n");
      continue;
    }
    if (prompts.size() > 1 || sides.size() > 1) {
      Out(StrCat(Paint(colours, Colour::kBold, StrCat("[", i + 1, "] ", Printable(Question(prompts[i])))), "\n"));
    }
    for (const Side& side : sides) {
      const std::string label = sides.size() > 1 ? Paint(colours, Colour::kDim, StrCat("  ", side.label, ": ")) : "";
      Out(StrCat(label, AnswerText(side.answers[i]), "\n"));
    }
  }
}

int CodeOf(const std::vector<Side>& sides) {
  for (const Side& side : sides) {
    for (const Answer& answer : side.answers) {
      if (!answer.status.ok()) return kExitFailed;
    }
  }
  return kExitOk;
}

}  // namespace

int RunGenerate(Context& context, const GenerateOptions& given) {
  GenerateOptions options = given;
  if (options.job.empty() == options.model.empty())
    return Fail(context, InvalidArgument("give one of --job and --model"));
  if ((options.compare || options.base) && options.job.empty()) {
    return Fail(context, InvalidArgument("--base and --compare need --job"));
  }
  if (options.model.find('/') != std::string::npos || options.model.ends_with(".gguf")) {
    options.model = AbsolutePath(context.environment, options.model);
  }
  HONE_TRY(const std::vector<Prompt> prompts, CollectPrompts(options));
  HONE_TRY(Client* const client, context.Connect());
  Interrupt interrupt;
  const bool stream = prompts.size() == 1 && !options.compare && !context.json();
  bool streamed = false;
  OnText on_text;
  if (stream) {
    on_text = [&](const std::string& text) {
      streamed = true;
      Out(context.terminal.out_is_terminal ? Printable(text) : text);
    };
  }
  std::vector<Side> sides;
  // The adapter first: if there is none, that is said before the base has spent its time.
  std::vector<bool> runs = {options.base};
  if (options.compare) runs = {false, true};
  for (const bool base : runs) {
    absl::StatusOr<std::vector<Answer>> answers = Ask(*client, options, base, prompts, on_text, interrupt);
    if (interrupt.interrupted()) return kExitDetached;
    if (!answers.ok()) return Fail(context, answers.status());
    sides.push_back({base ? "base" : "adapter", *std::move(answers)});
  }
  if (options.compare) std::swap(sides[0], sides[1]);
  if (!stream) {
    Print(context, prompts, sides);
  } else if (sides[0].answers[0].status.ok()) {
    Out("\n");
  } else {
    if (streamed) Out("\n");
    return Fail(context, sides[0].answers[0].status);
  }
  return CodeOf(sides);
}

}  // namespace hone
