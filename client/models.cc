// hone models import, ls, get, rm.
#include <filesystem>

#include "client/commands.h"
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

}  // namespace

int RunModelsImport(Context& context, const std::string& path, const std::string& name) {
  const std::string absolute = AbsolutePath(context.environment, path);
  std::error_code error;
  if (!std::filesystem::exists(absolute, error)) return Fail(context, InvalidArgument("nothing at ", absolute));
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Model model, client->ImportModel(name, absolute));
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
