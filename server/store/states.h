// The states of a job and the ways between them: pure functions, no storage.
#pragma once

#include <string_view>

#include "hone/v1/jobs.pb.h"

namespace hone {

// Whether a job may go from one state to the other. JOB_STATE_UNSPECIFIED stands for "not yet there".
bool IsLegalTransition(v1::JobState from, v1::JobState to);

// SUCCEEDED, FAILED, CANCELLED: never changes again.
bool IsTerminal(v1::JobState state);
// Terminal, PAUSED or HELD: nothing will happen by itself; a Watch ends here.
bool IsAtRest(v1::JobState state);
// A worker process belongs to it: STARTING, RUNNING, FINALIZING, CANCELLING, PAUSING.
bool IsActive(v1::JobState state);

// "RUNNING"
std::string_view StateName(v1::JobState state);

}  // namespace hone
