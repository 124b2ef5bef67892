// Following a job: progress on stderr (a redrawn line on a terminal, a line every ten seconds elsewhere) or its events
// as JSON lines on stdout. Survives lost connections by resuming from the last sequence number.
#pragma once

#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/context.h"

namespace hone {

struct WatchOptions {
  int timeout_seconds = 0;                // 0: none
  int patience_seconds = 60;              // how long an unreachable daemon is waited for
  bool submitted_here = false;            // exit 6 where the plan does not fit
  std::vector<std::string> already_said;  // warnings that need no repeating
};

// Until the job is at rest. Returns the exit code.
int WatchJob(Context& context, Client& client, const std::string& id, const WatchOptions& options);

// What an event looks like to a person. Keeps what the progress line needs.
class WatchView {
 public:
  explicit WatchView(std::string label, const std::vector<std::string>& already_said = {})
      : label_(std::move(label)), warned_(already_said.begin(), already_said.end()) {}
  // Lasting text for the event, or "" (steps have none).
  std::string Take(const v1::JobEvent& event);
  // "short-answers ███░░ 24/48 50% loss 0.41 ▇▅▃ 1,234 tok/s ETA 1m23s"; `width` columns.
  std::string ProgressLine(size_t width) const;
  // The same without bar and sparkline.
  std::string PlainLine() const;
  bool has_progress() const { return step_.has_value() || progress_.has_value(); }
  std::optional<double> EtaSeconds() const;

 private:
  void TakeStep(const v1::StepRecord& step);
  std::string Figures() const;

  std::string label_;
  std::set<std::string> warned_;  // planning and every attempt say the same
  std::optional<v1::StepRecord> step_;
  std::optional<v1::Progress> progress_;
  std::vector<double> losses_;
  std::deque<double> recent_seconds_;
  std::deque<double> recent_tokens_;
};

// What came of a job, for people.
std::string JobSummary(const v1::Job& job, bool colours);
std::string StateText(v1::JobState state, bool colours);
// What a person may do next with a job in this state: "Watch it: hone watch ID"; without a full stop.
std::string NextStep(const v1::Job& job);

}  // namespace hone
