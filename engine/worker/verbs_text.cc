#include <cstdio>
#include <optional>
#include <string>

#include "engine/io/model_files.h"
#include "engine/worker/inspect.h"
#include "engine/worker/lines.h"
#include "engine/worker/verbs.h"
#include "proto/base/file.h"
#include "proto/base/status.h"

namespace hone {
namespace {

int Inspect(const std::string& model) {
  const auto report = InspectModel(model);
  if (!report.ok()) return Fail(report.status());
  PrintLine(*report);
  return 0;
}

int Tokenize(const std::string& model, bool no_special_tokens) {
  const auto tokenizer = ModelFiles::OpenTokenizerOnly(model);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  return ForEachLine([&](const nlohmann::ordered_json& line) -> absl::StatusOr<nlohmann::ordered_json> {
    if (!line.contains("text") || !line["text"].is_string()) return InvalidArgument("text: expected a string");
    HONE_ASSIGN_OR_RETURN(const Encoding encoding,
                          (*tokenizer)->Encode(line["text"].get<std::string>(), !no_special_tokens));
    return nlohmann::ordered_json{{"ids", encoding.ids}, {"decoded", (*tokenizer)->Decode(encoding.ids)}};
  });
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> OpenTemplate(const std::string& model, const std::string& template_file) {
  TemplateTokens tokens;
  if (!model.empty()) {
    HONE_ASSIGN_OR_RETURN(tokens, ModelFiles::ReadTemplateTokensOnly(model));
  }
  std::string source;
  if (!template_file.empty()) {
    HONE_ASSIGN_OR_RETURN(source, ReadFile(template_file, 1 << 20));
  } else {
    HONE_ASSIGN_OR_RETURN(source, ModelFiles::ReadChatTemplateOnly(model));
  }
  return ChatTemplate::Parse(source, tokens);
}

int Render(const std::string& model, const std::string& template_file) {
  const auto chat = OpenTemplate(model, template_file);
  if (!chat.ok()) return Fail(chat.status());
  return ForEachLine([&](const nlohmann::ordered_json& line) -> absl::StatusOr<nlohmann::ordered_json> {
    RenderRequest request;
    request.variables = nlohmann::ordered_json::object();
    for (const auto& [key, value] : line.items()) {
      if (key == "messages") {
        request.messages = value;
      } else if (key == "tools") {
        request.tools = value;
      } else if (key == "add_generation_prompt") {
        if (!value.is_boolean()) return InvalidArgument("add_generation_prompt: expected true or false");
        request.add_generation_prompt = value.get<bool>();
      } else {
        request.variables[key] = value;
      }
    }
    if (!request.messages.is_array()) return InvalidArgument("messages: expected a list");
    HONE_ASSIGN_OR_RETURN(const RenderedChat rendered, (*chat)->Render(request));
    nlohmann::ordered_json out{{"text", rendered.text}, {"trained", nlohmann::ordered_json::array()}};
    for (const ByteSpan& span : rendered.trained) out["trained"].push_back({span.begin, span.end});
    return out;
  });
}

}  // namespace

void AddTextVerbs(CLI::App& app, int* exit_code) {
  {
    auto model = std::make_shared<std::string>();
    CLI::App* verb = app.add_subcommand("inspect", "Say what a model is: one JSON object");
    verb->add_option("MODEL", *model, "A Hugging Face folder, a .gguf file or random:DIR/config.json")->required();
    verb->callback([=] { *exit_code = Inspect(*model); });
  }
  {
    auto model = std::make_shared<std::string>();
    auto plain = std::make_shared<bool>(false);
    CLI::App* verb = app.add_subcommand("tokenize", "{\"text\"} -> {\"ids\", \"decoded\"}; needs only tokenizer files");
    verb->add_option("--model", *model, "Where the tokenizer is")->required();
    verb->add_flag("--no-special-tokens", *plain, "Add no BOS or EOS");
    verb->callback([=] { *exit_code = Tokenize(*model, *plain); });
  }
  {
    auto model = std::make_shared<std::string>();
    auto file = std::make_shared<std::string>();
    CLI::App* verb =
        app.add_subcommand("render", "{\"messages\", \"tools\", ...} -> {\"text\", \"trained\": byte spans}");
    verb->add_option("--model", *model, "Whose template and special tokens");
    verb->add_option("--template", *file, "A template of your own");
    verb->callback([=] {
      *exit_code = model->empty() && file->empty() ? Fail(InvalidArgument("render: give --model or --template"))
                                                   : Render(*model, *file);
    });
  }
}

}  // namespace hone
