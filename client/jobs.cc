// hone ls, get, watch, logs, cancel.
#include <unistd.h>

#include <ctime>
#include <map>

#include "client/commands.h"
#include "client/interrupt.h"
#include "client/watch.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

std::string Age(const google::protobuf::Timestamp& stamp) {
  if (stamp.seconds() == 0) return "-";
  const double seconds = static_cast<double>(std::time(nullptr) - stamp.seconds());
  return FormatDuration(std::max(10.0, seconds));
}

std::string LocalTime(const google::protobuf::Timestamp& stamp) {
  const std::time_t time = static_cast<std::time_t>(stamp.seconds());
  std::tm parts{};
  char text[64];
  if (localtime_r(&time, &parts) == nullptr) return "-";
  return std::string(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts));
}

absl::StatusOr<std::vector<v1::JobState>> ParseStates(const std::vector<std::string>& names) {
  std::vector<v1::JobState> states;
  for (std::string name : names) {
    for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    v1::JobState state;
    if (!v1::JobState_Parse(name, &state) || state == v1::JOB_STATE_UNSPECIFIED) {
      return InvalidArgument("--state: unknown state ", name,
                             "; known: validating, queued, starting, running, finalizing, "
                             "succeeded, failed, cancelling, cancelled, pausing, paused, held");
    }
    states.push_back(state);
  }
  return states;
}

std::string StepText(const v1::Job& job) {
  if (!job.has_last_step()) return "-";
  return StrCat(job.last_step().step(), "/", job.last_step().steps());
}

void AppendPair(std::string& out, std::string_view label, const std::string& value) {
  if (value.empty()) return;
  std::string padded(label);
  padded.resize(std::max<size_t>(14, padded.size() + 1), ' ');
  out += StrCat(padded, value, "\n");
}

std::string ModelAndObjective(const v1::JobSpec& spec) {
  const std::string objective = spec.objective().has_kto() ? "kto" : spec.objective().has_sft() ? "sft" : "?";
  return StrCat(objective, " on ", Printable(spec.model().source()));
}

std::string DescribeJob(const v1::Job& job, bool colours) {
  std::string out;
  AppendPair(out, "job", job.id());
  AppendPair(out, "name", Printable(job.display_name()));
  AppendPair(out, "state", StateText(job.state(), colours));
  AppendPair(out, "reason", Printable(job.state_reason()));
  AppendPair(out, "", Printable(job.state_message()));
  AppendPair(out, "what", ModelAndObjective(job.has_resolved_spec() ? job.resolved_spec() : job.spec()));
  if (job.priority() != 0) AppendPair(out, "priority", StrCat(job.priority()));
  if (job.has_owner_uid() && job.owner_uid() != static_cast<int64_t>(getuid()))
    AppendPair(out, "owner", StrCat("user ", job.owner_uid()));
  for (const std::string& after : job.options().after()) AppendPair(out, "after", after);
  for (const auto& [key, value] :
       std::map<std::string, std::string>(job.options().labels().begin(), job.options().labels().end())) {
    AppendPair(out, "label", StrCat(Printable(key), "=", Printable(value)));
  }
  if (job.options().time_limit_seconds() > 0)
    AppendPair(out, "time limit",
               StrCat(FormatDuration(static_cast<double>(job.options().time_limit_seconds())), ", ",
                      FormatDuration(job.run_seconds()), " used by ended attempts"));
  if (job.has_create_time()) AppendPair(out, "created", LocalTime(job.create_time()));
  if (job.has_start_time()) AppendPair(out, "started", LocalTime(job.start_time()));
  if (job.has_end_time()) AppendPair(out, "ended", LocalTime(job.end_time()));
  if (job.has_last_step()) {
    const v1::StepRecord& step = job.last_step();
    AppendPair(out, "step",
               StrCat(StepText(job), ", loss ", FormatNumber(step.loss()), ", ", FormatCount(step.tokens_per_second()),
                      " tok/s"));
  }
  if (job.has_last_eval())
    AppendPair(out, "evaluation",
               StrCat("loss ", FormatNumber(job.last_eval().loss()), " at step ", job.last_eval().step()));
  if (job.has_plan())
    AppendPair(out, "memory",
               StrCat(FormatBytes(job.plan().bytes().total()), " planned on ", Printable(job.plan().device())));
  for (const v1::ArenaUse& arena : job.memory().arenas()) {
    AppendPair(out, StrCat("  ", Printable(arena.name())),
               StrCat(FormatBytes(arena.actual_bytes()), " used of ", FormatBytes(arena.planned_bytes())));
  }
  for (const v1::Attempt& attempt : job.attempts()) {
    AppendPair(
        out, StrCat("attempt ", attempt.number()),
        StrCat(attempt.exit().empty() ? "running" : attempt.exit(), ", steps ", attempt.first_step(), " to ",
               attempt.last_step(), attempt.message().empty() ? "" : StrCat(": ", Printable(attempt.message()))));
  }
  for (const v1::Artifact& artifact : job.artifacts()) {
    AppendPair(
        out, "file",
        StrCat(Printable(artifact.path()), "  ", FormatBytes(artifact.bytes()), "  ", artifact.sha256().substr(0, 12)));
  }
  AppendPair(out, "next", NextStep(job));
  return out;
}

}  // namespace

int RunList(Context& context, const ListOptions& options) {
  HONE_TRY(const std::vector<v1::JobState> states, ParseStates(options.states));
  HONE_TRY(Client* const client, context.Connect());
  v1::ListJobsRequest request;
  for (const v1::JobState state : states) request.add_states(state);
  for (const std::string& label : options.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos)
      return Fail(context, InvalidArgument("--label ", label, ": KEY=VALUE is expected"));
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  request.set_name_contains(options.name);
  if (options.mine) request.set_owner_uid(getuid());
  HONE_TRY(const std::vector<v1::Job> jobs, client->ListJobs(request, options.limit));
  if (context.json() || context.format == "name") {
    for (const v1::Job& job : jobs) Out(StrCat(context.json() ? MessageToJson(job) : job.id(), "\n"));
    return kExitOk;
  }
  if (jobs.empty()) {
    const bool all = options.states.empty() && options.labels.empty() && options.name.empty() && !options.mine;
    Note(context, all ? "No jobs. Submit one: hone submit job.yaml --watch" : "No job matches. All of them: hone ls");
    return kExitOk;
  }
  Table table({"ID", "NAME", "STATE", "STEP", "LOSS", "AGE"});
  table.AlignRight(3);
  table.AlignRight(4);
  table.AlignRight(5);
  for (const v1::Job& job : jobs) {
    table.Add({job.id(), Clip(Printable(job.display_name()), 40), StateText(job.state(), false), StepText(job),
               job.has_last_step() ? FormatNumber(job.last_step().loss()) : "-", Age(job.create_time())});
  }
  Out(table.Render(context.terminal.out_colours));
  return kExitOk;
}

int RunGet(Context& context, const GetOptions& options) {
  HONE_TRY(Client* const client, context.Connect());
  HONE_TRY(const v1::Job job, client->GetJob(options.job));
  if (options.spec || options.resolved) {
    const v1::JobSpec& spec = options.resolved ? job.resolved_spec() : job.spec();
    Out(context.json() ? SpecToJson(spec) + "\n" : SpecToYaml(spec));
  } else if (context.json()) {
    Out(MessageToJson(job) + "\n");
  } else if (context.format == "name") {
    Out(job.id() + "\n");
  } else {
    Out(DescribeJob(job, context.terminal.out_colours));
  }
  return kExitOk;
}

int RunWatch(Context& context, const std::string& job, int timeout_seconds) {
  HONE_TRY(Client* const client, context.Connect());
  return WatchJob(context, *client, job, {.timeout_seconds = timeout_seconds});
}

int RunLogs(Context& context, const std::string& job, bool follow) {
  HONE_TRY(Client* const client, context.Connect());
  Interrupt interrupt;
  bool wrote = false;
  const absl::Status status = client->ReadLogs(
      job, follow,
      [&](const std::string& text) {
        wrote = wrote || !text.empty();
        Out(context.terminal.out_is_terminal ? Printable(text) : text);
      },
      interrupt.cancellation());
  if (interrupt.interrupted()) return kExitDetached;
  if (!status.ok()) return Fail(context, status);
  if (!wrote) Note(context, StrCat("Its worker had nothing to say. What happened to the job: hone watch ", job));
  return kExitOk;
}

int RunCancel(Context& context, const std::vector<std::string>& jobs) {
  HONE_TRY(Client* const client, context.Connect());
  int code = kExitOk;
  for (const std::string& name : jobs) {
    const absl::StatusOr<v1::Job> job = client->CancelJob(name);
    if (!job.ok()) {
      code = Fail(context, job.status());
    } else if (context.json()) {
      Out(MessageToJson(*job) + "\n");
    } else {
      Note(context, StrCat("Job ", job->id(), " is ", StateText(job->state(), false),
                           job->state() == v1::CANCELLING ? "; its last checkpoint is kept. " : ". ", NextStep(*job)));
    }
  }
  return code;
}

}  // namespace hone
