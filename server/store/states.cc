#include "server/store/states.h"

#include <algorithm>
#include <initializer_list>

namespace hone {
namespace {

bool In(v1::JobState state, std::initializer_list<v1::JobState> list) {
  return std::find(list.begin(), list.end(), state) != list.end();
}

}  // namespace

bool IsLegalTransition(v1::JobState from, v1::JobState to) {
  using namespace v1;  // NOLINT: the enumerators only
  switch (from) {
    case JOB_STATE_UNSPECIFIED:
      return to == VALIDATING;
    case VALIDATING:
      return In(to, {QUEUED, FAILED, CANCELLED});
    case QUEUED:
      return In(to, {STARTING, FAILED, CANCELLED, PAUSED, HELD});
    case STARTING:
      return In(to, {RUNNING, QUEUED, FAILED, CANCELLING, PAUSING, HELD});
    case RUNNING:
      return In(to, {FINALIZING, QUEUED, FAILED, CANCELLING, PAUSING, HELD});
    case FINALIZING:
      return In(to, {SUCCEEDED, QUEUED, FAILED, CANCELLING, HELD});
    case CANCELLING:
      return In(to, {CANCELLED, SUCCEEDED, FAILED});
    case PAUSING:
      return In(to, {PAUSED, SUCCEEDED, FAILED, CANCELLING, QUEUED});
    case PAUSED:
    case HELD:
      return In(to, {QUEUED, CANCELLED});
    default:
      return false;
  }
}

bool IsTerminal(v1::JobState state) { return In(state, {v1::SUCCEEDED, v1::FAILED, v1::CANCELLED}); }

bool IsAtRest(v1::JobState state) { return IsTerminal(state) || In(state, {v1::PAUSED, v1::HELD}); }

bool IsActive(v1::JobState state) {
  return In(state, {v1::STARTING, v1::RUNNING, v1::FINALIZING, v1::CANCELLING, v1::PAUSING});
}

std::string_view StateName(v1::JobState state) {
  const std::string& name = v1::JobState_Name(state);
  return name;
}

}  // namespace hone
