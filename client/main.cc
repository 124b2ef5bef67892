// hone: the command-line client.
#include <signal.h>

#include <exception>

#include "client/app.h"
#include "proto/base/status.h"

int main(int argc, char** argv) {
  // A closed pipe (`hone ls | head`) ends the output, not the program with a signal that shells report.
  signal(SIGPIPE, SIG_IGN);
  try {
    hone::Context context;
    context.environment = hone::ReadEnvironment();
    context.terminal = hone::DetectTerminal(context.environment.no_color, context.environment.dumb_terminal);
    return hone::CommandLine(context).Run(argc, argv);
  } catch (const std::exception& error) {
    hone::Err(hone::StrCat("hone: internal error: ", error.what(), "\n"));
    return hone::kExitFailed;
  }
}
