// The command line of `hone`: every command, flag, help text and example. Not here: what commands do (commands.h).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "client/context.h"

namespace hone {

class CommandLine {
 public:
  explicit CommandLine(Context& context);
  ~CommandLine();
  CLI::App& app() { return app_; }
  // Parses and runs; the exit code. Prints help, versions and usage errors itself.
  int Run(int argc, const char* const* argv);

 private:
  struct Options;
  CLI::App* Command(CLI::App& parent, const std::string& name, const std::string& help, const std::string& examples);
  void AddJobs();
  void AddQueue();
  void AddReports();
  void AddConfig();
  void AddData();
  void AddModels();
  void AddTools();
  void AddDaemon();
  int UsageError(const CLI::ParseError& error, int argc, const char* const* argv);

  Context& context_;
  CLI::App app_;
  std::unique_ptr<Options> options_;
  std::function<int()> chosen_;
};

// A completion script for "bash", "zsh" or "fish", made from the commands and flags of `app`.
std::string CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace hone
