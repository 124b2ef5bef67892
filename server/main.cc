// honed: flags, logging, signals, systemd. What it does is in daemon.h.
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "proto/base/build_info.h"
#include "proto/base/status.h"
#include "server/daemon.h"
#include "server/grpc_log.h"
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
  std::string admin_socket;
  TcpOptions tcp;
  double hang_factor = 10;
  uint64_t hang_minimum = 60, quiet_limit = 1800, cancel_grace = 120, term_grace = 10;
  uint64_t min_free_disk = uint64_t{64} << 20, reserve = uint64_t{4} << 20;
  int max_failures = 3;
  uint64_t max_jobs = 20000, max_jobs_per_user = 10000;
  uint64_t slow_reader = 30, hold_poll = 2;
  double keep_logs_days = 0, keep_checkpoints_days = 0, keep_events_days = 0;
  uint64_t keep_log_bytes = 0, keep_checkpoint_bytes = 0, keep_events = 0, retention_every = 600;
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

void ApplyLimits(const Flags& flags, DaemonOptions* options) {
  using std::chrono::seconds;
  const auto days = [](double count) { return seconds(static_cast<int64_t>(count * 86400)); };
  options->runner.hang_factor = flags.hang_factor;
  options->runner.hang_minimum = seconds(flags.hang_minimum);
  options->runner.quiet_limit = seconds(flags.quiet_limit);
  options->runner.cancel_grace = seconds(flags.cancel_grace);
  options->runner.term_grace = seconds(flags.term_grace);
  options->runner.max_failures = flags.max_failures;
  options->runner.min_free_disk = flags.min_free_disk;
  options->ballast_bytes = flags.reserve;
  options->scheduler.hold_poll = seconds(flags.hold_poll);
  options->max_jobs = flags.max_jobs;
  options->max_jobs_per_user = flags.max_jobs_per_user;
  options->slow_reader = seconds(flags.slow_reader);
  options->retention = {days(flags.keep_logs_days),    days(flags.keep_checkpoints_days), days(flags.keep_events_days),
                        flags.keep_log_bytes,          flags.keep_checkpoint_bytes,       flags.keep_events,
                        seconds(flags.retention_every)};
}

// Each connection takes a descriptor; the default of 1024 is for programs that use select().
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 1 << 16);
  setrlimit(RLIMIT_NOFILE, &limit);
}

void AddLimitFlags(CLI::App* app, Flags* flags) {
  const auto add = [app](const char* name, auto* value, const char* help, const char* unit) {
    app->add_option(name, *value, help)->capture_default_str()->type_name(unit);
  };
  add("--hang-factor", &flags->hang_factor, "A worker silent for so many step times has hung and is ended", "N");
  add("--hang-minimum", &flags->hang_minimum, "but not before so long", "SECONDS");
  add("--quiet-limit", &flags->quiet_limit, "The same between steps: loading, evaluating, exporting", "SECONDS");
  add("--cancel-grace", &flags->cancel_grace, "From asking a worker to stop to SIGTERM", "SECONDS");
  add("--term-grace", &flags->term_grace, "From SIGTERM to SIGKILL", "SECONDS");
  add("--max-failures", &flags->max_failures, "Attempts in a row without a new checkpoint that fail a job", "N");
  add("--min-free-disk", &flags->min_free_disk, "No job starts with less free in the state folder", "BYTES");
  add("--reserve", &flags->reserve, "Disk space kept for recording what happens on a full disk", "BYTES");
  add("--hold-poll", &flags->hold_poll, "How often jobs that wait for a resource are looked at", "SECONDS");
  add("--max-jobs", &flags->max_jobs, "Unfinished jobs in all", "N");
  add("--max-jobs-per-user", &flags->max_jobs_per_user, "Unfinished jobs of one user", "N");
  add("--slow-reader", &flags->slow_reader, "A watcher that takes longer over one message is cut off", "SECONDS");
  add("--keep-logs-days", &flags->keep_logs_days, "Of ended jobs; 0: for ever", "DAYS");
  add("--keep-checkpoints-days", &flags->keep_checkpoints_days, "Of ended jobs; 0: for ever", "DAYS");
  add("--keep-events-days", &flags->keep_events_days, "Of ended jobs; 0: for ever", "DAYS");
  add("--keep-log-bytes", &flags->keep_log_bytes, "Logs of all ended jobs together; 0: no limit", "BYTES");
  add("--keep-checkpoint-bytes", &flags->keep_checkpoint_bytes, "Checkpoints of all ended jobs together; 0: no limit",
      "BYTES");
  add("--keep-events", &flags->keep_events, "Events of all ended jobs together; 0: no limit", "N");
  add("--retention-every", &flags->retention_every, "How often old things are looked for", "SECONDS");
}

int Serve(const Flags& flags) {
  // Blocked before any thread exists, so that only this one takes them.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  RaiseDescriptorLimit();
  umask(0027);

  const Places places = DefaultPlaces(flags.system, Absolute(flags.state_dir));
  DaemonOptions options;
  options.state_dir = places.state_dir;
  options.socket = flags.socket.empty() ? places.socket : Absolute(flags.socket);
  options.metrics_address = flags.metrics;
  options.admin_socket = Absolute(flags.admin_socket.empty() ? places.admin_socket : flags.admin_socket);
  options.tcp = flags.tcp;
  ApplyLimits(flags, &options);
  options.worker_program = Absolute(flags.worker);
  options.request_shutdown = [] { kill(getpid(), SIGTERM); };
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  if (!daemon.ok()) {
    spdlog::error("{}", std::string(daemon.status().message()));
    return 1;
  }
  spdlog::info("honed {} ({}) serves on {}, state in {}, metrics on {}", BuildVersion(), BuildId(), options.socket,
               options.state_dir, (*daemon)->metrics_address().empty() ? "nothing" : (*daemon)->metrics_address());
  Notify(StrCat("READY=1\nSTATUS=", (*daemon)->Summary()));

  const timespec tick = {5, 0};
  int signal = 0;
  while ((signal = sigtimedwait(&signals, nullptr, &tick)) < 0 || signal == SIGHUP) {
    (*daemon)->Tick();
    RefreshGrpcLog();
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
  app.add_option("--admin-socket", flags.admin_socket,
                 "A second socket, for the daemon's owner (default with --system: /run/honed/admin.sock)");
  app.add_option("--listen", flags.tcp.listen, "HOST:PORT to serve on as well; needs TLS and a way to know clients");
  app.add_option("--tls-certificate", flags.tcp.certificate, "PEM file; read again when it changes");
  app.add_option("--tls-key", flags.tcp.key, "PEM file, mode 0600; read again when it changes");
  app.add_option("--tls-client-ca", flags.tcp.client_ca, "Clients must show a certificate signed by this");
  app.add_option("--token-file", flags.tcp.token_file, "SHA-256 of a token a line, mode 0600; clients send the token");
  AddLimitFlags(&app, &flags);
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "A file with the same options: name=value a line, without the dashes");
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
  RouteGrpcLog();
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
