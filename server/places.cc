#include "server/places.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>

namespace hone {
namespace {

// Absolute, as the XDG specification demands; anything else is as if it were not set.
std::string AbsoluteVariable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && value[0] == '/' ? value : "";
}

std::string Home() {
  const std::string home = AbsoluteVariable("HOME");
  if (!home.empty()) return home;
  const passwd* user = getpwuid(getuid());
  return user != nullptr && user->pw_dir != nullptr && user->pw_dir[0] == '/' ? user->pw_dir : "/tmp";
}

}  // namespace

Places DefaultPlaces(bool system, const std::string& state_dir) {
  if (system) {
    return {state_dir.empty() ? "/var/lib/honed" : state_dir, "/run/honed/honed.sock", "/run/honed/admin.sock"};
  }
  Places places;
  places.state_dir = state_dir;
  if (places.state_dir.empty()) {
    const std::string state = AbsoluteVariable("XDG_STATE_HOME");
    places.state_dir = (state.empty() ? Home() + "/.local/state" : state) + "/hone";
  }
  const std::string runtime = AbsoluteVariable("XDG_RUNTIME_DIR");
  places.socket = runtime.empty() ? places.state_dir + "/honed.sock" : runtime + "/hone/honed.sock";
  return places;
}

}  // namespace hone
