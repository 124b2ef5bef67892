// hone status, hone daemon start|stop|restart|status.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "client/commands.h"
#include "nlohmann/json.hpp"
#include "proto/base/build_info.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

using SteadyClock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr size_t kLogTailBytes = 2000;
constexpr uint64_t kMaxLogBytes = uint64_t{64} << 20;

std::string DumpLine(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

// Where a daemon of this user listens; in the state folder where there is no runtime folder for it.
std::string TargetSocket(const Context& context) {
  const std::vector<std::string> candidates = SocketCandidates(context.environment, context.socket_flag);
  if (!context.socket_flag.empty() || context.environment.xdg_runtime_dir.empty()) return candidates.front();
  const std::string folder = std::filesystem::path(candidates.front()).parent_path().string();
  return MakeDirectories(folder, 0700).ok() ? candidates.front() : UserStateDir(context.environment) + "/honed.sock";
}

std::string StateDir(const Context& context, const DaemonCommandOptions& options) {
  return options.state_dir.empty() ? UserStateDir(context.environment)
                                   : AbsolutePath(context.environment, options.state_dir);
}

// Gone, or dead and waiting for a parent that does not ask.
bool ProcessEnded(int64_t pid) {
  const absl::StatusOr<std::string> stat = ReadFile(StrCat("/proc/", pid, "/stat"), 4096);
  if (!stat.ok()) return kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH;
  const size_t paren = stat->rfind(')');
  return paren != std::string::npos && paren + 2 < stat->size() &&
         ((*stat)[paren + 2] == 'Z' || (*stat)[paren + 2] == 'X');
}

std::string LogTail(const std::string& path, uint64_t from) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxLogBytes);
  if (!text.ok() || text->size() <= from) return "";
  const size_t start = std::max<size_t>(from, text->size() > kLogTailBytes ? text->size() - kLogTailBytes : 0);
  return text->substr(start);
}

struct Spawned {
  pid_t pid = 0;
  std::string log_path;
  uint64_t log_start = 0;
};

// A session of its own, no terminal, output in the state folder's honed.log.
absl::StatusOr<Spawned> Spawn(const Context& context, const DaemonCommandOptions& options, const std::string& socket) {
  const std::string program = options.program.empty() ? ProgramDirectory() + "/honed" : options.program;
  if (access(program.c_str(), X_OK) != 0) {
    return NotFound("no program ", program, "; honed is expected beside hone, --program names another");
  }
  const std::string state_dir = StateDir(context, options);
  HONE_RETURN_IF_ERROR(MakeDirectories(state_dir, 0750));
  HONE_RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(socket).parent_path().string(), 0700));
  Spawned spawned;
  spawned.log_path = state_dir + "/honed.log";
  std::error_code error;
  spawned.log_start = std::filesystem::file_size(spawned.log_path, error);
  if (error) spawned.log_start = 0;

  std::vector<std::string> words = {program, "--state-dir", state_dir, "--socket", socket};
  if (!options.metrics.empty()) words.insert(words.end(), {"--metrics", options.metrics});
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, spawned.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0640);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  const int result = posix_spawn(&spawned.pid, program.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (result != 0) return FailedPrecondition("cannot start ", program, ": ", std::strerror(result));
  return spawned;
}

int AwaitReady(Context& context, const Spawned& spawned, const std::string& socket, int wait_seconds) {
  const auto deadline = SteadyClock::now() + std::chrono::seconds(wait_seconds);
  while (SteadyClock::now() < deadline) {
    int status = 0;
    if (waitpid(spawned.pid, &status, WNOHANG) == spawned.pid) {
      Err(StrCat("hone: ", Paint(context.terminal.err_colours, Colour::kRed, "error:"), " honed ended while starting; ",
                 spawned.log_path, " says:\n", Printable(LogTail(spawned.log_path, spawned.log_start))));
      return kExitFailed;
    }
    if (ProbeSocket(socket) == SocketState::kAnswers) {
      Client client(socket);
      const absl::StatusOr<v1::DaemonStatus> ready = client.GetStatus(5);
      if (ready.ok()) {
        if (context.json()) {
          Out(MessageToJson(*ready) + "\n");
        } else {
          Note(context, StrCat("honed ", ready->version(), " (build ", ready->build_id(), ") is ready, pid ",
                               ready->pid(), ", socket ", socket, ", log ", spawned.log_path,
                               ".\nSubmit a job: hone submit job.yaml --watch. Stop it: hone daemon stop"));
        }
        return kExitOk;
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  Err(StrCat("hone: honed (pid ", spawned.pid, ") is not ready after ", wait_seconds, " s; it goes on starting. See ",
             spawned.log_path, "\n"));
  return kExitTimeout;
}

// Starting and stopping are about this user's own daemon, never about one that a context names.
int NotHere(Context& context) {
  return Fail(context, InvalidArgument("--context: a daemon is started and stopped on its own machine; leave --context "
                                       "out for this user's"));
}

int StopAt(Context& context, const std::string& socket, int wait_seconds) {
  Client client(socket);
  const absl::StatusOr<v1::DaemonStatus> status = client.GetStatus();
  if (!status.ok()) return Fail(context, status.status());
  const absl::Status asked = client.Shutdown();
  if (!asked.ok() && kill(static_cast<pid_t>(status->pid()), SIGTERM) != 0 && errno != ESRCH)
    return Fail(context, asked);
  const auto deadline = SteadyClock::now() + std::chrono::seconds(wait_seconds);
  while (!ProcessEnded(status->pid())) {
    if (SteadyClock::now() > deadline) {
      Err(StrCat("hone: honed (pid ", status->pid(), ") is still writing its checkpoint after ", wait_seconds,
                 " s; it will end by itself\n"));
      return kExitTimeout;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  Note(context, StrCat("honed (pid ", status->pid(), ") has stopped; queued jobs are kept."));
  return kExitOk;
}

Json StatusJson(const v1::DaemonStatus& status, const std::string& socket) {
  Json json = Json::parse(MessageToJson(status));
  json["running"] = true;
  json["socket"] = socket;
  return json;
}

int NotRunning(Context& context, const absl::Status& status) {
  if (context.json()) Out(DumpLine({{"running", false}}));
  return Fail(context, status);
}

std::string StatusText(const v1::DaemonStatus& status, const std::string& socket) {
  std::string out =
      StrCat("daemon     honed ", status.version(), " (build ", status.build_id(), "), pid ", status.pid(),
             status.draining() ? ", draining" : "", "\nsocket     ", socket, "\nstate      ",
             Printable(status.state_dir()), ", ", FormatBytes(status.disk_free_bytes()), " free\n");
  if (!status.metrics_address().empty())
    out += StrCat("metrics    http://", Printable(status.metrics_address()), "/metrics\n");
  std::string jobs;
  for (const auto& [state, count] : std::map<std::string, uint64_t>(status.jobs().begin(), status.jobs().end())) {
    if (count > 0) jobs += StrCat(jobs.empty() ? "" : ", ", count, " ", Printable(state));
  }
  out += StrCat("jobs       ", jobs.empty() ? "none" : jobs, "\n");
  if (!status.problem().empty()) out += StrCat("problem    ", Printable(status.problem()), "\n");
  if (status.has_caller_uid()) {
    out += StrCat("you        user ", status.caller_uid(), status.caller_is_admin() ? ", admin" : "", "\n");
  }
  for (const std::string& id : status.running_jobs()) out += StrCat("running    ", Printable(id), "\n");
  if (status.build_id() != BuildId()) {
    out += StrCat("note       this client is build ", BuildId(), "; `hone daemon restart` brings both together\n");
  }
  return out;
}

}  // namespace

int RunStatus(Context& context) {
  const absl::StatusOr<Client*> client = context.Connect();
  if (!client.ok()) return NotRunning(context, client.status());
  const absl::StatusOr<v1::DaemonStatus> status = (*client)->GetStatus();
  if (!status.ok()) return NotRunning(context, status.status());
  HONE_TRY(const v1::ListDevicesResponse devices, (*client)->ListDevices());
  if (context.json()) {
    Json json = StatusJson(*status, context.socket);
    json["devices"] = Json::parse(MessageToJson(devices))["devices"];
    Out(DumpLine(json));
    return kExitOk;
  }
  std::string out = StatusText(*status, context.socket);
  for (const v1::DeviceInfo& device : devices.devices()) {
    out += StrCat("device     ", Printable(device.name()), "  ", Printable(device.description()));
    if (device.total_bytes() > 0)
      out += StrCat(", ", FormatBytes(device.free_bytes()), " of ", FormatBytes(device.total_bytes()), " free");
    out += StrCat(device.note().empty() ? "" : StrCat(" (", Printable(device.note()), ")"), "\n");
  }
  Out(out);
  return kExitOk;
}

int RunDaemonStatus(Context& context) {
  const absl::StatusOr<Client*> client = context.Connect();
  if (!client.ok()) return NotRunning(context, client.status());
  const absl::StatusOr<v1::DaemonStatus> status = (*client)->GetStatus();
  if (!status.ok()) return NotRunning(context, status.status());
  Out(context.json() ? DumpLine(StatusJson(*status, context.socket)) : StatusText(*status, context.socket));
  return kExitOk;
}

int RunDaemonStart(Context& context, const DaemonCommandOptions& options) {
  if (!context.context_flag.empty()) return NotHere(context);
  const std::string socket = TargetSocket(context);
  const SocketState state = ProbeSocket(socket);
  if (state == SocketState::kDenied)
    return Fail(context, absl::PermissionDeniedError(StrCat(socket, ": ", Describe(state))));
  if (state == SocketState::kTooLong || state == SocketState::kNotASocket) {
    return Fail(context, InvalidArgument(socket, ": ", Describe(state)));
  }
  if (state == SocketState::kAnswers) {
    Client client(socket);
    HONE_TRY(const v1::DaemonStatus running, client.GetStatus());
    const bool stale = running.build_id() != BuildId();
    if (!stale || !options.if_stale) {
      if (context.json()) Out(DumpLine(StatusJson(running, socket)));
      Note(context,
           StrCat("honed ", running.version(), " (build ", running.build_id(), ") already runs, pid ", running.pid(),
                  ", socket ", socket,
                  stale ? StrCat("; this client is build ", BuildId(), ": `hone daemon restart` replaces it") : "."));
      return kExitOk;
    }
    if (const int code = StopAt(context, socket, 120); code != kExitOk) return code;
  }
  HONE_TRY(const Spawned spawned, Spawn(context, options, socket));
  return AwaitReady(context, spawned, socket, options.wait_seconds);
}

int RunDaemonStop(Context& context, int wait_seconds) {
  if (!context.context_flag.empty()) return NotHere(context);
  const absl::StatusOr<std::string> socket = FindSocket(context.environment, context.socket_flag);
  if (absl::IsUnavailable(socket.status())) {
    Note(context, "No daemon is running.");
    return kExitOk;
  }
  if (!socket.ok()) return Fail(context, socket.status());
  return StopAt(context, *socket, wait_seconds);
}

int RunDaemonRestart(Context& context, const DaemonCommandOptions& options) {
  if (!context.context_flag.empty()) return NotHere(context);
  const std::string socket = TargetSocket(context);
  DaemonCommandOptions again = options;
  if (ProbeSocket(socket) == SocketState::kAnswers) {
    // The same state folder, unless another was asked for: a restart must not lose the queue.
    Client client(socket);
    HONE_TRY(const v1::DaemonStatus running, client.GetStatus());
    if (again.state_dir.empty()) again.state_dir = running.state_dir();
    if (again.metrics.empty()) again.metrics = running.metrics_address().empty() ? "off" : running.metrics_address();
    if (const int code = StopAt(context, socket, 120); code != kExitOk) return code;
  }
  return RunDaemonStart(context, again);
}

}  // namespace hone
