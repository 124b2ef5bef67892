// Which build this is: the same for honed, hone and honed-worker of one build folder. Written anew by every build.
#pragma once

#include <string_view>

namespace hone {

std::string_view BuildVersion();  // "0.1.0"
// 16 hex digits: a hash of the sources, so it changes exactly when they do. deploy/quickstart.sh restarts a daemon
// whose id differs from its own.
std::string_view BuildId();

}  // namespace hone
