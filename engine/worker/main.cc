// honed-worker: the process that trains. A complete tool by itself; the daemon runs it with `serve`.
#include <cstdio>
#include <exception>

#include "CLI/CLI.hpp"
#include "engine/worker/verbs.h"
#include "kernels/cpu/blas_check.h"
#include "proto/base/build_info.h"
#include "proto/base/status.h"

int main(int argc, char** argv) {
  // May start the program anew with a core type of OpenBLAS that computes right on this processor.
  if (const absl::Status blas = hone::EnsureSafeBlas(argv); !blas.ok()) {
    std::fprintf(stderr, "honed-worker: %s\n", std::string(blas.message()).c_str());
    return 1;
  }
  CLI::App app("honed-worker: inspects, trains and runs models. JSON lines in on stdin, JSON lines out on stdout.",
               "honed-worker");
  app.require_subcommand(1);
  app.set_version_flag("--version", hone::StrCat("honed-worker ", hone::BuildVersion(), " (", hone::BuildId(),
                                                 "), OpenBLAS ", hone::BlasCoreName()));
  int exit_code = 0;
  hone::AddTextVerbs(app, &exit_code);
  hone::AddModelVerbs(app, &exit_code);
  hone::AddJobVerbs(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {  // a broken invariant ends the job
    std::fprintf(stderr, "honed-worker: %s\n", error.what());
    return 1;
  }
  return exit_code;
}
