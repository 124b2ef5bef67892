// hone models import, ls, get, rm.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "client/commands.h"
#include "client/places.h"
#include "client/report.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

void PrintModel(const Context& context, const v1::Model& model, bool details) {
  if (context.json()) {
    Out(MessageToJson(model) + "\n");
  } else if (context.format == "name") {
    Out(model.id() + "\n");
  } else {
    std::string out = StrCat("model   ", Printable(model.id()), "\npath    ", Printable(model.path()), "\nfamily  ",
                             Printable(model.family()), "\nsize    ", FormatBytes(model.bytes()), "\n");
    if (!model.digest().empty()) out += StrCat("digest  ", Printable(model.digest()), "\n");
    if (details && !model.inspect_json().empty())
      out += "\n" + RenderReport(model.inspect_json(), context.terminal.out_colours);
    Out(out);
  }
}

// A worker writes the quantised form of `model` to `output`: this program opens no model itself.
absl::Status Quantise(const std::string& model, const std::string& format, const std::string& output) {
  const std::string program = ProgramDirectory() + "/honed-worker";
  std::vector<std::string> words = {program, "export", "--model", model, "--format", format, "--output", output};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);  // its receipt; errors stay on stderr
  pid_t pid = 0;
  const int spawned = posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (spawned != 0) return FailedPrecondition("cannot start ", program, ": ", std::strerror(spawned));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return Internal("waiting for ", program, ": ", std::strerror(errno));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return FailedPrecondition("quantising ", model, " failed; what honed-worker said is above");
}

}  // namespace

int RunModelsImport(Context& context, const ModelImportOptions& options) {
  std::string absolute = AbsolutePath(context.environment, options.path);
  while (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();
  std::error_code error;
  if (!std::filesystem::exists(absolute, error)) return Fail(context, InvalidArgument("nothing at ", absolute));
  if (options.quantize.empty() && !options.output.empty()) {
    return Fail(context, InvalidArgument("--output is for --quantize: other models stay where they are"));
  }
  // Without --output the daemon writes the copy, where it keeps its own; with it this program's worker does.
  std::string by_daemon = options.quantize;
  if (!options.output.empty()) {
    const std::string output = AbsolutePath(context.environment, options.output);
    Note(context, StrCat("Writing ", options.quantize, " of ", absolute, " to ", output));
    if (const absl::Status written = Quantise(absolute, options.quantize, output); !written.ok()) {
      return Fail(context, written);
    }
    absolute = output;
    by_daemon.clear();
  }
  if (!by_daemon.empty())
    Note(context, StrCat("The daemon writes ", by_daemon, " of ", absolute, "; this may take minutes"));
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Model model, client->ImportModel(options.name, absolute, by_daemon));
  PrintModel(context, model, false);
  return kExitOk;
}

int RunModelsList(Context& context) {
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const std::vector<v1::Model> models, client->ListModels());
  if (context.json() || context.format == "name") {
    for (const v1::Model& model : models) PrintModel(context, model, false);
    return kExitOk;
  }
  if (models.empty()) {
    Note(context, "No models. Import one: hone models import PATH");
    return kExitOk;
  }
  Table table({"NAME", "FAMILY", "SIZE", "PATH"});
  table.AlignRight(2);
  for (const v1::Model& model : models) {
    table.Add({Printable(model.id()), Printable(model.family()), FormatBytes(model.bytes()), Printable(model.path())});
  }
  Out(table.Render(context.terminal.out_colours));
  return kExitOk;
}

int RunModelsGet(Context& context, const std::string& name) {
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Model model, client->GetModel(name));
  PrintModel(context, model, true);
  return kExitOk;
}

int RunModelsRemove(Context& context, const std::vector<std::string>& names) {
  HONE_TRY(Client* const client, context.Connect());
  int code = kExitOk;
  for (const std::string& name : names) {
    const absl::Status status = client->DeleteModel(name);
    if (!status.ok()) {
      code = Fail(context, status);
    } else {
      Note(context, StrCat("Forgot model ", Printable(name), "; its files stay."));
    }
  }
  return code;
}

}  // namespace hone
