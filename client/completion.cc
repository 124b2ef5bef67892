// Completion scripts, made from the command tree so that they cannot fall behind it.
#include <algorithm>

#include "client/app.h"
#include "proto/base/status.h"

namespace hone {
namespace {

std::vector<const CLI::App*> Children(const CLI::App& app) {
  std::vector<const CLI::App*> children;
  for (const CLI::App* child : app.get_subcommands([](const CLI::App*) { return true; })) children.push_back(child);
  return children;
}

std::vector<std::string> Flags(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_snames()) flags.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

// What the positional argument of a command is: "job", "model", "file", "" (words only).
std::string PositionalKind(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    const std::string& name = option->get_name(true);
    if (name == "JOB") return "job";
    if (name == "NAME") return "model";
    if (name == "CONTEXT") return "context";
    if (name == "FILE" || name == "PATH") return "file";
    if (name == "SHELL") return "shell";
  }
  return "";
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += StrCat(text.empty() ? "" : " ", word);
  return text;
}

struct Row {
  std::string path;  // "models import"
  std::vector<std::string> commands;
  std::vector<std::string> flags;
  std::string positional;
};

void Collect(const CLI::App& app, const std::string& path, const std::vector<std::string>& global,
             std::vector<Row>& rows) {
  Row row;
  row.path = path;
  for (const CLI::App* child : Children(app)) row.commands.push_back(child->get_name());
  row.flags = Flags(app);
  for (const std::string& flag : global) {
    if (std::find(row.flags.begin(), row.flags.end(), flag) == row.flags.end()) row.flags.push_back(flag);
  }
  row.positional = PositionalKind(app);
  rows.push_back(row);
  for (const CLI::App* child : Children(app)) {
    Collect(*child, path.empty() ? child->get_name() : StrCat(path, " ", child->get_name()), global, rows);
  }
}

std::string Paths(const std::vector<Row>& rows) {
  std::string pattern;
  for (const Row& row : rows) {
    if (!row.path.empty()) pattern += StrCat(pattern.empty() ? "" : "|", "\"", row.path, "\"");
  }
  return pattern;
}

// bash and zsh differ only in how words are read and offered.
std::string ShellFunction(const std::vector<Row>& rows, bool zsh) {
  const std::string words = zsh ? "words" : "COMP_WORDS";
  const std::string current = zsh ? "CURRENT" : "COMP_CWORD";
  const std::string first = zsh ? "2" : "1";
  const auto offer = [zsh](const std::string& list) {
    return zsh ? StrCat("compadd -- ", list) : StrCat("COMPREPLY=($(compgen -W \"", list, "\" -- \"$cur\"))");
  };
  const std::string files = zsh ? "_files" : "COMPREPLY=($(compgen -f -- \"$cur\"))";
  const std::string jobs = offer("$(hone ls -o name --limit 200 2>/dev/null)");
  const std::string models = offer("$(hone models ls -o name 2>/dev/null)");
  const std::string contexts = offer("$(hone config ls -o name 2>/dev/null)");
  std::string out = StrCat("_hone() {\n  local cur=\"${", words, "[", current, "]}\" prev=\"${", words, "[", current,
                           "-1]}\" where=\"\" i next\n");
  out += StrCat("  for ((i = ", first, "; i < ", current, "; i++)); do\n    next=\"${where:+$where }${", words,
                "[i]}\"\n    case \"$next\" in\n      ", Paths(rows), ") where=\"$next\" ;;\n    esac\n  done\n");
  if (!zsh) out += "  compopt -o filenames 2>/dev/null\n";
  out += "  case \"$prev\" in\n";
  out += StrCat("    --job|--after|--from|--before|--behind) ", jobs, "; return ;;\n    --model) ", models,
                "; return ;;\n    --context) ", contexts, "; return ;;\n    --for) ",
                offer("ended rest running paused held succeeded"), "; return ;;\n");
  out += StrCat("    -o|--format) ", offer("text json name"), "; return ;;\n");
  out += StrCat("    --file|--output|--socket|--state-dir|--program|--resolve) ", files, "; return ;;\n  esac\n");
  out += "  case \"$where\" in\n";
  for (const Row& row : rows) {
    std::string action = offer(Join(row.commands.empty() ? row.flags : row.commands));
    if (row.positional == "job") action = jobs;
    if (row.positional == "model") action = models;
    if (row.positional == "context") action = contexts;
    if (row.positional == "file") action = files;
    if (row.positional == "shell") action = offer("bash zsh fish");
    out += StrCat("    \"", row.path, "\")\n      if [[ \"$cur\" == -* ]]; then ", offer(Join(row.flags)), "; else ",
                  action, "; fi ;;\n");
  }
  return out + "  esac\n}\n";
}

std::string FishQuoted(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) quoted += (c == '\'' || c == '\\') ? StrCat("\\", c) : std::string(1, c);
  return quoted + "'";
}

void FishCommand(const CLI::App& app, const std::string& condition, std::string& out) {
  std::vector<std::string> names;
  for (const CLI::App* child : Children(app)) names.push_back(child->get_name());
  for (const CLI::App* child : Children(app)) {
    const std::string here = condition.empty()
                                 ? "__fish_use_subcommand"
                                 : StrCat(condition, "; and not __fish_seen_subcommand_from ", Join(names));
    out += StrCat("complete -c hone -f -n ", FishQuoted(here), " -a ", child->get_name(), " -d ",
                  FishQuoted(child->get_description()), "\n");
    const std::string seen =
        StrCat(condition.empty() ? "" : condition + "; and ", "__fish_seen_subcommand_from ", child->get_name());
    for (const CLI::Option* option : child->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        const bool job = name == "job" || name == "after" || name == "before" || name == "behind";
        out += StrCat("complete -c hone -n ", FishQuoted(seen), " -l ", name,
                      option->get_expected_max() > 0 ? " -r" : "", " -d ", FishQuoted(option->get_description()),
                      job ? " -f -a '(hone ls -o name 2>/dev/null)'" : "", "\n");
      }
    }
    const std::string kind = PositionalKind(*child);
    if (kind == "job")
      out += StrCat("complete -c hone -f -n ", FishQuoted(seen), " -a '(hone ls -o name 2>/dev/null)'\n");
    if (kind == "context")
      out += StrCat("complete -c hone -f -n ", FishQuoted(seen), " -a '(hone config ls -o name 2>/dev/null)'\n");
    if (kind == "model")
      out += StrCat("complete -c hone -f -n ", FishQuoted(seen), " -a '(hone models ls -o name 2>/dev/null)'\n");
    if (kind == "file") out += StrCat("complete -c hone -F -n ", FishQuoted(seen), "\n");
    if (kind == "shell") out += StrCat("complete -c hone -f -n ", FishQuoted(seen), " -a 'bash zsh fish'\n");
    FishCommand(*child, seen, out);
  }
}

}  // namespace

std::string CompletionScript(const CLI::App& app, const std::string& shell) {
  if (shell == "fish") {
    std::string out = "# Completion of hone for fish.\n";
    FishCommand(app, "", out);
    return out;
  }
  std::vector<Row> rows;
  Collect(app, "", Flags(app), rows);
  if (shell == "zsh") return StrCat("#compdef hone\n", ShellFunction(rows, true), "compdef _hone hone\n");
  return StrCat("# Completion of hone for bash.\n", ShellFunction(rows, false), "complete -F _hone hone\n");
}

}  // namespace hone
