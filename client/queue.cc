// hone pause, resume, hold, release, move, label, wait.
#include <algorithm>
#include <chrono>
#include <map>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/watch.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

// What the state means, and what to do next, for people.
std::string Explained(const v1::Job& job) {
  std::string text = StrCat("Job ", job.id(), " is ", StateText(job.state(), false));
  if (job.state() == v1::PAUSING) text += "; it finishes its step and writes a checkpoint";
  if (job.state() == v1::QUEUED) text += "; it waits for its turn";
  if ((job.state() == v1::HELD || job.state() == v1::FAILED) && !job.state_message().empty()) {
    text += StrCat(": ", Printable(job.state_message()));
  }
  return StrCat(text, ". ", NextStep(job));
}

// One call for each job; goes on after a failure and returns the last one's code.
int ForEach(Context& context, const std::vector<std::string>& names,
            const std::function<absl::StatusOr<v1::Job>(Client&, const std::string&)>& call) {
  HONE_TRY(Client* const client, context.Connect());
  int code = kExitOk;
  for (const std::string& name : names) {
    const absl::StatusOr<v1::Job> job = call(*client, name);
    if (!job.ok()) {
      code = Fail(context, job.status());
    } else if (context.json()) {
      Out(MessageToJson(*job) + "\n");
    } else {
      Note(context, Explained(*job));
    }
  }
  return code;
}

struct Goal {
  std::string name;
  std::function<bool(v1::JobState)> reached;
};

absl::StatusOr<Goal> ParseGoal(const std::string& name) {
  if (name.empty() || name == "ended") return Goal{"ended", IsFinal};
  if (name == "rest") return Goal{name, IsAtRest};
  std::string upper = name;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  v1::JobState state;
  if (!v1::JobState_Parse(upper, &state) || state == v1::JOB_STATE_UNSPECIFIED) {
    return InvalidArgument("--for: ", name,
                           "; expected ended, rest (ended, paused or held) or a state such as running, ",
                           "paused, succeeded");
  }
  return Goal{name, [state](v1::JobState now) { return now == state; }};
}

// Whether the goal can still be reached without somebody's help.
bool CanReach(const Goal& goal, v1::JobState state) {
  if (IsFinal(state)) return goal.reached(state);
  return true;
}

class Waiter {
 public:
  Waiter(Context& context, Client& client, const Goal& goal, Interrupt& interrupt)
      : context_(context), client_(client), goal_(goal), interrupt_(interrupt) {}

  // The exit code; the job as it then is in *job.
  int Wait(const std::string& name, v1::Job* job) {
    while (true) {
      const absl::StatusOr<v1::Job> now = client_.GetJob(name);
      if (interrupt_.interrupted()) return kExitDetached;
      if (interrupt_.timed_out()) return kExitTimeout;
      if (now.ok()) {
        *job = *now;
        if (seen_ || goal_.reached(now->state())) return kExitOk;
        if (!CanReach(goal_, now->state())) return IsStopped(now->state()) ? kExitStopped : kExitFailed;
        if (IsAtRest(now->state())) {  // somebody may take it up again
          interrupt_.Sleep(500);
          continue;
        }
        (void)client_.WatchJob(
            name, now->last_sequence(),
            [this](const v1::JobEvent& event) {
              seen_ = seen_ || (event.has_state() && goal_.reached(event.state().to()));
              return !seen_;
            },
            interrupt_.cancellation());
      } else if (!absl::IsUnavailable(now.status())) {
        return Fail(context_, now.status());
      } else {
        interrupt_.Sleep(300);
      }
    }
  }

 private:
  static bool IsStopped(v1::JobState state) { return state == v1::CANCELLED; }
  Context& context_;
  Client& client_;
  const Goal& goal_;
  Interrupt& interrupt_;
  bool seen_ = false;
};

}  // namespace

int RunPause(Context& context, const std::vector<std::string>& jobs) {
  return ForEach(context, jobs, [](Client& client, const std::string& name) { return client.PauseJob(name); });
}

int RunResume(Context& context, const std::vector<std::string>& jobs) {
  return ForEach(context, jobs, [](Client& client, const std::string& name) { return client.ResumeJob(name); });
}

int RunHold(Context& context, const std::vector<std::string>& jobs, const std::string& message) {
  return ForEach(context, jobs, [&](Client& client, const std::string& name) { return client.HoldJob(name, message); });
}

int RunRelease(Context& context, const std::vector<std::string>& jobs) {
  return ForEach(context, jobs, [](Client& client, const std::string& name) { return client.ReleaseJob(name); });
}

int RunMove(Context& context, const MoveOptions& options) {
  v1::UpdateJobRequest request;
  request.set_name(JobName(options.job));
  if (!options.before.empty()) request.set_before(options.before);
  if (!options.behind.empty()) request.set_behind(options.behind);
  request.set_first(options.first);
  if (options.priority.has_value()) request.set_priority(*options.priority);
  const bool anything = options.first || !options.before.empty() || !options.behind.empty() || options.priority;
  if (!anything) return Fail(context, InvalidArgument("give --first, --before JOB, --behind JOB or --priority N"));
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Job job, client->UpdateJob(request));
  if (context.json()) Out(MessageToJson(job) + "\n");
  Note(context, StrCat("Job ", job.id(), " has priority ", job.priority(), ". The queue: hone queue"));
  return kExitOk;
}

int RunLabel(Context& context, const std::string& job_name, const std::vector<std::string>& labels) {
  v1::UpdateJobRequest request;
  request.set_name(JobName(job_name));
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    const bool removes = equals == std::string::npos && !label.empty() && label.back() == '-';
    if (equals == std::string::npos && !removes) {
      return Fail(context, InvalidArgument(label, ": KEY=VALUE sets a label, KEY- removes it"));
    }
    (*request.mutable_labels())[removes ? label.substr(0, label.size() - 1) : label.substr(0, equals)] =
        removes ? "" : label.substr(equals + 1);
  }
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Job job, client->UpdateJob(request));
  if (context.json()) Out(MessageToJson(job) + "\n");
  std::string now;
  for (const auto& [key, value] :
       std::map<std::string, std::string>(job.options().labels().begin(), job.options().labels().end())) {
    now += StrCat(now.empty() ? "" : ", ", Printable(key), "=", Printable(value));
  }
  Note(context, StrCat("Job ", job.id(), " has ", now.empty() ? "no labels" : StrCat("the labels ", now),
                       ". Find jobs by one: hone ls --label KEY=VALUE"));
  return kExitOk;
}

int RunQueue(Context& context) {
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(std::vector<v1::Job> jobs,
           client->ListJobs({v1::QUEUED, v1::STARTING, v1::RUNNING, v1::FINALIZING, v1::PAUSING, v1::CANCELLING}, 0));
  SortAsQueue(jobs);
  if (context.json() || context.format == "name") {
    for (const v1::Job& job : jobs) Out(StrCat(context.json() ? MessageToJson(job) : job.id(), "\n"));
    return kExitOk;
  }
  if (jobs.empty()) {
    Note(context, "Nothing runs and nothing waits. Submit a job: hone submit job.yaml --watch");
    return kExitOk;
  }
  Table table({"#", "ID", "NAME", "STATE", "PRIORITY", "WHY"});
  table.AlignRight(0);
  table.AlignRight(4);
  int place = 0;
  for (const v1::Job& job : jobs) {
    std::string why = job.state_message().empty() ? job.state_reason() : job.state_message();
    if (job.state() == v1::RUNNING && job.has_last_step()) {
      why = StrCat("step ", job.last_step().step(), "/", job.last_step().steps());
    }
    if (job.state() == v1::QUEUED && job.options().after_size() > 0) why += StrCat(", after ", job.options().after(0));
    table.Add({job.state() == v1::QUEUED ? StrCat(++place) : "-", job.id(), Clip(Printable(job.display_name()), 40),
               StateText(job.state(), false), StrCat(job.priority()), Printable(why)});
  }
  Out(table.Render(context.terminal.out_colours));
  return kExitOk;
}

void SortAsQueue(std::vector<v1::Job>& jobs) {
  std::stable_sort(jobs.begin(), jobs.end(), [](const v1::Job& a, const v1::Job& b) {
    if ((a.state() == v1::QUEUED) != (b.state() == v1::QUEUED)) return b.state() == v1::QUEUED;
    if (a.priority() != b.priority()) return a.priority() > b.priority();
    return a.queue_rank() < b.queue_rank();
  });
}

int RunWait(Context& context, const WaitOptions& options) {
  HONE_TRY(const Goal goal, ParseGoal(options.goal));
  HONE_TRY(Client* const client, context.Connect());
  Interrupt interrupt(options.timeout_seconds);
  int code = kExitOk;
  for (const std::string& name : options.jobs) {
    v1::Job job;
    const int one = Waiter(context, *client, goal, interrupt).Wait(name, &job);
    if (one == kExitTimeout) {
      Err(StrCat("hone: --timeout passed; job ", name, " is ", StateText(job.state(), false), "\n"));
      return one;
    }
    if (one == kExitDetached) return one;
    if (context.json() && !job.id().empty()) Out(MessageToJson(job) + "\n");
    if (one == kExitOk && !context.json() && !job.id().empty()) Note(context, Explained(job));
    if (one != kExitOk && !job.id().empty()) {
      Err(StrCat("hone: job ", job.id(), " is ", StateText(job.state(), false), " and will not be ", goal.name, ": ",
                 Printable(job.state_message()), "\n"));
    }
    // `hone wait JOB` without a goal says how the job ended.
    const int by_end = goal.name != "ended" || job.state() == v1::SUCCEEDED ? one
                       : job.state() == v1::CANCELLED                       ? static_cast<int>(kExitStopped)
                       : job.state() == v1::FAILED                          ? static_cast<int>(kExitFailed)
                                                                            : one;
    code = std::max(code, by_end);
  }
  return code;
}

}  // namespace hone
