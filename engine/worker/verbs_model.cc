#include <unistd.h>

#include <optional>
#include <string>

#include "engine/io/peft.h"
#include "engine/worker/device.h"
#include "engine/worker/device_flags.h"
#include "engine/worker/job.h"
#include "engine/worker/lines.h"
#include "engine/worker/text_session.h"
#include "engine/worker/verbs.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

struct ModelFlags {
  std::string model, adapter;
  DeviceFlags device;
};

struct Opened {
  std::unique_ptr<ModelFiles> files;
  std::unique_ptr<Backend> backend;
  std::optional<LoraAdapter> adapter;
  const LoraAdapter* lora() const { return adapter ? &*adapter : nullptr; }
};

absl::StatusOr<Opened> Open(const ModelFlags& flags) {
  Opened opened;
  HONE_ASSIGN_OR_RETURN(const DeviceChoice wanted, flags.device.Choice());
  HONE_ASSIGN_OR_RETURN(DeviceChoice device, ResolveDevice(wanted));
  device.cache_folder = MachineCacheFolder();
  HONE_ASSIGN_OR_RETURN(opened.files, ModelFiles::Open(flags.model));
  if (!flags.adapter.empty()) {
    HONE_ASSIGN_OR_RETURN(opened.adapter, ReadPeftAdapter(flags.adapter, opened.files->config()));
  }
  HONE_ASSIGN_OR_RETURN(opened.backend, OpenBackend(device));
  return opened;
}

int Score(const ModelFlags& flags) {
  const auto opened = Open(flags);
  if (!opened.ok()) return Fail(opened.status());
  const auto session = InferenceSession::Open(*opened->backend, *opened->files, opened->lora());
  if (!session.ok()) return Fail(session.status());
  return ForEachLine([&](const nlohmann::ordered_json& line) -> absl::StatusOr<nlohmann::ordered_json> {
    if (!line.contains("ids") || !line["ids"].is_array()) return InvalidArgument("ids: expected a list of token ids");
    std::vector<int32_t> ids;
    for (const auto& id : line["ids"]) {
      if (!id.is_number_integer()) return InvalidArgument("ids: expected integers");
      ids.push_back(id.get<int32_t>());
    }
    HONE_ASSIGN_OR_RETURN(const std::vector<float> log_probs, (*session)->Score(ids));
    return nlohmann::ordered_json{{"log_probs", log_probs}};
  });
}

// Requests that wait together are answered together, batched.
constexpr size_t kMostTogether = 64;

int GenerateVerb(const ModelFlags& flags) {
  const auto opened = Open(flags);
  if (!opened.ok()) return Fail(opened.status());
  const auto session = TextSession::Open(*opened->backend, *opened->files, opened->lora());
  if (!session.ok()) return Fail(session.status());
  LineReader reader(STDIN_FILENO);
  std::string line;
  while (true) {
    std::vector<v1::GenerateRequest> requests;
    std::vector<nlohmann::ordered_json> answers;
    while ((requests.empty() || (answers.size() < kMostTogether && reader.Ready())) && reader.Next(&line)) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      auto request = GenerateRequestFromJson(line);
      answers.push_back(request.ok() ? nlohmann::ordered_json{{"text", ""}, {"ids", nlohmann::ordered_json::array()}}
                                     : ErrorLine(request.status()));
      if (!request.ok()) {
        if (requests.empty()) break;
        continue;
      }
      request->set_request(answers.size() - 1);
      requests.push_back(*std::move(request));
    }
    if (answers.empty()) return 0;
    (*session)->Answer(requests, [&](const v1::GenerateChunk& chunk) {
      nlohmann::ordered_json& answer = answers[chunk.request()];
      if (chunk.error_code() != 0) {
        answer = {{"error", chunk.error_message()}};
        return;
      }
      answer["text"] = answer["text"].get<std::string>() + chunk.text();
      for (int32_t id : chunk.ids()) answer["ids"].push_back(id);
      if (chunk.done()) answer["finish_reason"] = chunk.finish_reason();
    });
    for (const auto& answer : answers) PrintLine(answer);
  }
}

int Export(const ModelFlags& flags, const std::string& format, const std::string& output) {
  const auto opened = Open(flags);
  if (!opened.ok()) return Fail(opened.status());
  const auto receipt = ExportJob(*opened->files, flags.adapter, format, output, *opened->backend);
  if (!receipt.ok()) return Fail(receipt.status());
  PrintLine(*receipt);
  return 0;
}

std::shared_ptr<ModelFlags> AddModelFlags(CLI::App* verb) {
  auto flags = std::make_shared<ModelFlags>();
  verb->add_option("--model", flags->model, "A Hugging Face folder, a .gguf file or random:DIR/config.json")
      ->required();
  verb->add_option("--adapter", flags->adapter, "A PEFT LoRA folder");
  flags->device.Add(verb);
  return flags;
}

}  // namespace

void AddModelVerbs(CLI::App& app, int* exit_code) {
  {
    CLI::App* verb = app.add_subcommand("score", "{\"ids\"} -> {\"log_probs\"} of each next token; needs no tokenizer");
    auto flags = AddModelFlags(verb);
    verb->callback([=] { *exit_code = Score(*flags); });
  }
  {
    CLI::App* verb = app.add_subcommand(
        "generate", "{\"prompt\" | \"messages\" | \"ids\", ...} -> {\"text\", \"ids\", \"finish_reason\"}");
    auto flags = AddModelFlags(verb);
    verb->callback([=] { *exit_code = GenerateVerb(*flags); });
  }
  {
    CLI::App* verb = app.add_subcommand(
        "export",
        "Write base + adapter as peft, merged, merged:f32, gguf:f16 or gguf:q8_0, or the base as nf4; prints the "
        "receipt");
    auto flags = AddModelFlags(verb);
    auto format = std::make_shared<std::string>();
    auto output = std::make_shared<std::string>();
    verb->add_option("--format", *format, "peft, merged, merged:f32, gguf:f16, gguf:q8_0, nf4")->required();
    verb->add_option("--output", *output, "A folder, or a .gguf file")->required();
    verb->callback([=] { *exit_code = Export(*flags, *format, *output); });
  }
}

}  // namespace hone
