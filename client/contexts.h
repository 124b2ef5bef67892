// Named daemons: ~/.config/hone/contexts.json. A context is a socket, or an address with the files that TLS needs. Not
// here: connecting (client.h).
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/places.h"

namespace hone {

struct Contexts {
  std::string current;  // empty: this user's daemon, found by itself
  std::map<std::string, Target> all;
};

std::string ContextsPath(const Environment& environment);
// Empty if there is no file; InvalidArgument, naming it, if it cannot be understood.
absl::StatusOr<Contexts> LoadContexts(const Environment& environment);
absl::Status SaveContexts(const Environment& environment, const Contexts& contexts);
// Paths made absolute, contradictions refused.
absl::StatusOr<Target> CheckTarget(const Environment& environment, const Target& target);

}  // namespace hone
