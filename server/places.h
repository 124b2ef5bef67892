// Where a daemon's state and socket lie when no flag says so (the contract's "Places").
#pragma once

#include <string>

namespace hone {

struct Places {
  std::string state_dir;
  std::string socket;
  std::string admin_socket;  // system mode only: in user mode the daemon's user is the admin
};

// User mode: XDG. System mode: /var/lib/honed and /run/honed/honed.sock. With a state_dir given, and no runtime folder,
// the socket lies in that state folder.
Places DefaultPlaces(bool system, const std::string& state_dir);

}  // namespace hone
