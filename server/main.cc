// honed: flags, logging, signals, systemd. What it does is in daemon.h.
#include <signal.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "proto/base/build_info.h"
#include "proto/base/status.h"
#include "server/daemon.h"
#include "server/places.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

struct Flags {
  std::string state_dir;
  std::string socket;
  std::string metrics = "127.0.0.1:9464";
  std::string worker;
  std::string log_level = "info";
  bool system = false;
  bool foreground = false;
};

void SetUpLogging(const std::string& level) {
  auto logger = spdlog::stderr_logger_mt("honed");
  spdlog::set_default_logger(logger);
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  spdlog::set_level(spdlog::level::from_str(level));
}

void Notify(const std::string& text) { sd_notify(0, text.c_str()); }

std::string Absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

int Serve(const Flags& flags) {
  // Blocked before any thread exists, so that only this one takes them.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  umask(0027);

  const Places places = DefaultPlaces(flags.system, Absolute(flags.state_dir));
  DaemonOptions options;
  options.state_dir = places.state_dir;
  options.socket = flags.socket.empty() ? places.socket : Absolute(flags.socket);
  options.metrics_address = flags.metrics;
  options.worker_program = Absolute(flags.worker);
  options.request_shutdown = [] { kill(getpid(), SIGTERM); };
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  if (!daemon.ok()) {
    spdlog::error("{}", std::string(daemon.status().message()));
    return 1;
  }
  spdlog::info("honed {} ({}) serves on {}, state in {}, metrics on {}; every job runs on the CPU", BuildVersion(),
               BuildId(), options.socket, options.state_dir,
               (*daemon)->metrics_address().empty() ? "nothing" : (*daemon)->metrics_address());
  Notify(StrCat("READY=1\nSTATUS=", (*daemon)->Summary()));

  const timespec tick = {5, 0};
  int signal = 0;
  while ((signal = sigtimedwait(&signals, nullptr, &tick)) < 0 || signal == SIGHUP) {
    (*daemon)->Tick();
    Notify(StrCat("STATUS=", (*daemon)->Summary()));
  }
  spdlog::info("signal {}: draining; what runs writes a checkpoint and stays in the queue", signal);
  Notify("STOPPING=1\nSTATUS=draining");
  (*daemon)->Stop();
  spdlog::info("stopped");
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("honed: the daemon of Hone. It keeps the queue and runs one worker process per job.", "honed");
  Flags flags;
  app.add_option("--state-dir", flags.state_dir, "Where everything is kept (default: $XDG_STATE_HOME/hone)");
  app.add_option("--socket", flags.socket, "Unix socket to serve on (default: $XDG_RUNTIME_DIR/hone/honed.sock)");
  app.add_option("--metrics", flags.metrics, "HOST:PORT for Prometheus, port 0 for any free one, or off")
      ->capture_default_str();
  app.add_option("--worker", flags.worker, "The worker program (default: honed-worker beside honed)");
  app.add_option("--log-level", flags.log_level, "What is logged to stderr")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_flag("--system", flags.system, "Use /var/lib/honed and /run/honed/honed.sock");
  app.add_flag("--foreground", flags.foreground,
               "Stay in the foreground; honed always does, `hone daemon start` detaches it");
  app.set_version_flag("--version", StrCat("honed ", BuildVersion(), " (", BuildId(), ")"));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  SetUpLogging(flags.log_level);
  return Serve(flags);
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  try {
    return hone::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "honed: %s\n", error.what());
    return 1;
  }
}
