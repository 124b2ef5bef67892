#include "client/places.h"

#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "proto/base/status.h"

namespace hone {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The XDG specification has relative paths ignored, and honed does so, too.
std::string AbsoluteVariable(const char* name) {
  const std::string value = Variable(name);
  return value.rfind('/', 0) == 0 ? value : "";
}

std::string HomeFolder() {
  const std::string home = AbsoluteVariable("HOME");
  if (!home.empty()) return home;
  const passwd* user = getpwuid(getuid());
  return user != nullptr && user->pw_dir != nullptr && user->pw_dir[0] == '/' ? user->pw_dir : "/tmp";
}

}  // namespace

Environment ReadEnvironment() {
  Environment environment;
  environment.home = HomeFolder();
  environment.xdg_state_home = AbsoluteVariable("XDG_STATE_HOME");
  environment.xdg_runtime_dir = AbsoluteVariable("XDG_RUNTIME_DIR");
  environment.xdg_config_home = AbsoluteVariable("XDG_CONFIG_HOME");
  environment.context = Variable("HONE_CONTEXT");
  environment.no_color = !Variable("NO_COLOR").empty();
  environment.dumb_terminal = Variable("TERM") == "dumb";
  return environment;
}

std::string UserStateDir(const Environment& environment) {
  if (!environment.xdg_state_home.empty()) return environment.xdg_state_home + "/hone";
  return environment.home + "/.local/state/hone";
}

std::string UserSocket(const Environment& environment) {
  if (!environment.xdg_runtime_dir.empty()) return environment.xdg_runtime_dir + "/hone/honed.sock";
  return UserStateDir(environment) + "/honed.sock";
}

SocketState ProbeSocket(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return errno == EACCES ? SocketState::kDenied : SocketState::kMissing;
  if (!S_ISSOCK(info.st_mode)) return SocketState::kNotASocket;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return SocketState::kTooLong;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return SocketState::kRefused;
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  close(fd);
  // EAGAIN: its queue of new connections is full, so somebody listens.
  if (result == 0 || error == EAGAIN || error == EINPROGRESS) return SocketState::kAnswers;
  return error == EACCES || error == EPERM ? SocketState::kDenied : SocketState::kRefused;
}

std::string Describe(SocketState state) {
  switch (state) {
    case SocketState::kAnswers:
      return "answers";
    case SocketState::kMissing:
      return "not there";
    case SocketState::kRefused:
      return "nobody listens (a daemon ended without cleaning up)";
    case SocketState::kDenied:
      return "permission denied";
    case SocketState::kNotASocket:
      return "not a socket";
    case SocketState::kTooLong:
      return "path too long for a socket (107 bytes at most)";
  }
  return "";
}

std::vector<std::string> SocketCandidates(const Environment& environment, const std::string& flag) {
  if (!flag.empty()) return {AbsolutePath(environment, flag.rfind("unix:", 0) == 0 ? flag.substr(5) : flag)};
  std::vector<std::string> candidates = {UserSocket(environment)};
  const std::string in_state = UserStateDir(environment) + "/honed.sock";
  if (in_state != candidates.front()) candidates.push_back(in_state);
  candidates.push_back(kSystemSocket);
  return candidates;
}

absl::StatusOr<std::string> FindSocket(const Environment& environment, const std::string& flag) {
  std::string tried;
  bool denied = false;
  for (const std::string& path : SocketCandidates(environment, flag)) {
    const SocketState state = ProbeSocket(path);
    if (state == SocketState::kAnswers) return path;
    denied = denied || state == SocketState::kDenied;
    tried += StrCat(tried.empty() ? "" : "; ", path, ": ", Describe(state));
  }
  const std::string message = StrCat("no daemon answers (", tried, ")");
  if (denied) return absl::PermissionDeniedError(message);
  return absl::UnavailableError(message);
}

std::string ProgramDirectory() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "." : self.parent_path().string();
}

std::string AbsolutePath(const Environment& environment, const std::string& path) {
  std::filesystem::path expanded = path;
  if (path == "~") expanded = environment.home;
  if (path.rfind("~/", 0) == 0) expanded = std::filesystem::path(environment.home) / path.substr(2);
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(expanded, error);
  return error ? path : absolute.lexically_normal().string();
}

}  // namespace hone
