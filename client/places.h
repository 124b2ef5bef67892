// Where things are for this user: the daemon's socket, the state folder, programs beside this one. The environment is
// read once in main and passed in, so that tests can give their own.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace hone {

struct Environment {
  std::string home;
  std::string xdg_state_home;
  std::string xdg_runtime_dir;
  std::string xdg_config_home;
  std::string context;  // $HONE_CONTEXT
  bool no_color = false;
  bool dumb_terminal = false;
};
Environment ReadEnvironment();

// $XDG_STATE_HOME/hone, else ~/.local/state/hone.
std::string UserStateDir(const Environment& environment);
// $XDG_RUNTIME_DIR/hone/honed.sock, else honed.sock in the state folder.
std::string UserSocket(const Environment& environment);
inline constexpr char kSystemSocket[] = "/run/honed/honed.sock";

enum class SocketState { kAnswers, kMissing, kRefused, kDenied, kNotASocket, kTooLong };
// Tries to connect, without gRPC.
SocketState ProbeSocket(const std::string& path);
std::string Describe(SocketState state);

// All places a socket may be, in order: the flag alone if given, else user, user's state folder, system.
std::vector<std::string> SocketCandidates(const Environment& environment, const std::string& flag);
// The first candidate that answers; Unavailable (or PermissionDenied) naming every place that was tried.
absl::StatusOr<std::string> FindSocket(const Environment& environment, const std::string& flag);

// The folder of this executable.
std::string ProgramDirectory();
// Absolute and cleaned, "~" expanded; files need not exist.
std::string AbsolutePath(const Environment& environment, const std::string& path);

}  // namespace hone
