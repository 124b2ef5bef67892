// The daemon's end of a worker: `honed-worker serve --fd 3`. Reads one Assign, answers Hello, runs the verb, sends
// events, then exactly one Done. A reader thread takes Cancel, Checkpoint and Generate meanwhile. The daemon's end
// closing means: stop.
#pragma once

#include <string>

namespace hone {

// Returns the process's exit code. `fault`: ParseInjectedFault, tests alone.
int Serve(int fd, const std::string& fault = "");

}  // namespace hone
