#include "client/contexts.h"

#include <filesystem>

#include "client/commands.h"
#include "client/foreign_job.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxFile = 1 << 20;

struct Entry {
  const char* name;
  std::string Target::*member;
};
constexpr Entry kEntries[] = {{"socket", &Target::socket}, {"address", &Target::address},
                              {"ca", &Target::ca},         {"certificate", &Target::certificate},
                              {"key", &Target::key},       {"token_file", &Target::token_file}};

Json ToJson(const Target& target) {
  Json json = Json::object();
  for (const Entry& entry : kEntries) {
    if (!(target.*entry.member).empty()) json[entry.name] = target.*entry.member;
  }
  return json;
}

bool IsName(const std::string& name) {
  return !name.empty() && name.size() <= 63 && name[0] != '-' &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
             std::string::npos;
}

}  // namespace

std::string ContextsPath(const Environment& environment) {
  const std::string base =
      environment.xdg_config_home.empty() ? environment.home + "/.config" : environment.xdg_config_home;
  return base + "/hone/contexts.json";
}

absl::StatusOr<Contexts> LoadContexts(const Environment& environment) {
  const std::string path = ContextsPath(environment);
  Contexts contexts;
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxFile);
  if (absl::IsNotFound(text.status())) return contexts;
  if (!text.ok()) return text.status();
  const absl::StatusOr<nlohmann::json> json = ParseJson(*text);
  if (!json.ok() || !json->is_object()) {
    return InvalidArgument(path,
                           ": cannot be understood: ", json.ok() ? "an object is expected" : json.status().message(),
                           "; mend or remove it");
  }
  const auto text_of = [](const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  contexts.current = text_of(*json, "current");
  if (const auto all = json->find("contexts"); all != json->end() && all->is_object()) {
    for (const auto& [name, value] : all->items()) {
      if (!value.is_object()) continue;
      Target& target = contexts.all[name];
      for (const Entry& entry : kEntries) target.*entry.member = text_of(value, entry.name);
    }
  }
  return contexts;
}

absl::Status SaveContexts(const Environment& environment, const Contexts& contexts) {
  Json json = {{"current", contexts.current}, {"contexts", Json::object()}};
  for (const auto& [name, target] : contexts.all) json["contexts"][name] = ToJson(target);
  const std::string path = ContextsPath(environment);
  HONE_RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(path).parent_path().string(), 0700));
  return WriteFileDurably(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

absl::StatusOr<Target> CheckTarget(const Environment& environment, const Target& target) {
  if (target.socket.empty() == target.address.empty()) {
    return InvalidArgument("give --at-socket PATH or --address HOST:PORT");
  }
  Target checked = target;
  for (std::string Target::*member :
       {&Target::socket, &Target::ca, &Target::certificate, &Target::key, &Target::token_file}) {
    if (!(checked.*member).empty()) checked.*member = AbsolutePath(environment, checked.*member);
  }
  if (target.address.empty()) return checked;
  if (target.address.find(':') == std::string::npos) return InvalidArgument("--address: HOST:PORT is expected");
  if (target.ca.empty()) return InvalidArgument("--ca: the certificate that signed the daemon's is expected");
  if (target.certificate.empty() != target.key.empty()) return InvalidArgument("--certificate and --key go together");
  if (target.certificate.empty() && target.token_file.empty()) {
    return InvalidArgument("give --certificate and --key, or --token-file: the daemon wants to know who comes");
  }
  return checked;
}

int RunConfigList(Context& context) {
  HONE_TRY(const Contexts contexts, LoadContexts(context.environment));
  if (context.format == "name") {
    for (const auto& [name, target] : contexts.all) Out(name + "\n");
    return kExitOk;
  }
  if (context.json()) {
    for (const auto& [name, target] : contexts.all) {
      Json json = {{"name", name}, {"current", name == contexts.current}};
      json.update(ToJson(target));
      Out(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    }
    return kExitOk;
  }
  if (contexts.all.empty()) {
    Note(context,
         "No contexts: hone talks to this user's daemon. Name another: hone config set lab --address HOST:PORT ...");
    return kExitOk;
  }
  Table table({"", "NAME", "WHERE", "IDENTITY"});
  for (const auto& [name, target] : contexts.all) {
    table.Add({name == contexts.current ? "*" : "", name, target.address.empty() ? target.socket : target.address,
               !target.certificate.empty()  ? target.certificate
               : !target.token_file.empty() ? "token in " + target.token_file
                                            : "this user"});
  }
  Out(table.Render(context.terminal.out_colours));
  return kExitOk;
}

int RunConfigSet(Context& context, const std::string& name, const Target& target) {
  if (!IsName(name)) return Fail(context, InvalidArgument("NAME: letters, digits and . _ - are expected"));
  HONE_TRY(Contexts contexts, LoadContexts(context.environment));
  HONE_TRY(contexts.all[name], CheckTarget(context.environment, target));
  const absl::Status saved = SaveContexts(context.environment, contexts);
  if (!saved.ok()) return Fail(context, saved);
  Note(context, StrCat("Context ", name, " is set. Use it: hone config use ", name, ", or once: hone --context ", name,
                       " status"));
  return kExitOk;
}

int RunConfigUse(Context& context, const std::string& name) {
  HONE_TRY(Contexts contexts, LoadContexts(context.environment));
  const bool none = name == "-";
  if (!none && contexts.all.count(name) == 0) {
    return Fail(context, NotFound("no context ", name, "; `hone config ls` lists them"));
  }
  contexts.current = none ? "" : name;
  const absl::Status saved = SaveContexts(context.environment, contexts);
  if (!saved.ok()) return Fail(context, saved);
  Note(context, none ? "hone talks to this user's daemon again." : StrCat("hone talks to ", name, " from now on."));
  return kExitOk;
}

int RunConfigRemove(Context& context, const std::string& name) {
  HONE_TRY(Contexts contexts, LoadContexts(context.environment));
  if (contexts.all.erase(name) == 0)
    return Fail(context, NotFound("no context ", name, "; `hone config ls` lists them"));
  if (contexts.current == name) contexts.current.clear();
  const absl::Status saved = SaveContexts(context.environment, contexts);
  return saved.ok() ? static_cast<int>(kExitOk) : Fail(context, saved);
}

int RunImport(Context& context, const ImportOptions& options) {
  HONE_TRY(const std::string text, ReadFile(options.file, kMaxFile));
  HONE_TRY(const ForeignJob job, ReadForeignJob(text, options.file, options.from));
  for (const std::string& line : job.not_mapped) Warn(context, StrCat("not mapped: ", line));
  const std::string yaml = ForeignJobYaml(job, options.file);
  if (options.output.empty()) {
    Out(yaml);
  } else {
    const absl::Status written = WriteFileDurably(options.output, yaml);
    if (!written.ok()) return Fail(context, written);
  }
  Note(context,
       StrCat(job.mapped.size(), " keys mapped, ", job.not_needed.size(), " not needed, ", job.not_mapped.size(),
              " not mapped (warnings above, comments in the file). Check it: hone spec --resolve FILE"));
  return kExitOk;
}

}  // namespace hone
