// hone submit: one job file becomes one job.
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/job_file.h"
#include "client/matrix.h"
#include "client/watch.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"

namespace hone {
namespace {

constexpr int kValidationSeconds = 20;

// The daemon acknowledges a job before it has planned it. Waits a little for that verdict, so that a job that cannot
// run fails here and not in a log nobody reads. Leaves `job` at the newest state seen.
void AwaitVerdict(Client& client, v1::Job& job) {
  Interrupt interrupt(kValidationSeconds);
  while (job.state() == v1::VALIDATING && interrupt.Sleep(100)) {
    const absl::StatusOr<v1::Job> now = client.GetJob(job.id());
    if (now.ok()) job = *now;
  }
}

int Refused(Context& context, const JobFile& file, const v1::Job& job) {
  if (context.json()) Out(MessageToJson(job) + "\n");
  Err(StrCat("hone: ", Paint(context.terminal.err_colours, Colour::kRed, "error:"), " job ", job.id(), " cannot run: ",
             Printable(NameUploads(file, job.state_message().empty() ? job.state_reason() : job.state_message())),
             "\n"));
  if (job.state_reason() != "PLAN_DOES_NOT_FIT") return kExitFailed;
  Err("  hint: `hone plan JOB.yaml` shows where the memory goes and the smallest changes that help.\n");
  return kExitDoesNotFit;
}

int SubmitFailed(const Context& context, const absl::Status& status) {
  const int code = Fail(context, status);
  return ErrorReason(status) == "PLAN_DOES_NOT_FIT" ? kExitDoesNotFit : code;
}

// KEY=VALUE words into a map.
absl::Status AddLabels(const std::vector<std::string>& labels, v1::JobOptions* options) {
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return InvalidArgument("--label ", label, ": KEY=VALUE is expected");
    }
    (*options->mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return absl::OkStatus();
}

// What --from brings along: the spec, and labels that --label may change.
struct Origin {
  v1::JobSpec spec;
  v1::JobOptions options;
};

absl::StatusOr<v1::JobOptions> OptionsOf(const SubmitOptions& options, const Origin& origin) {
  v1::JobOptions made;
  *made.mutable_labels() = origin.options.labels();
  HONE_RETURN_IF_ERROR(AddLabels(options.labels, &made));
  for (const std::string& after : options.after) made.add_after(after);
  if (!options.time_limit.empty()) {
    const absl::StatusOr<uint64_t> seconds = ParseDuration(options.time_limit);
    if (!seconds.ok()) return Annotate(seconds.status(), "--time-limit");
    made.set_time_limit_seconds(*seconds);
  }
  if (options.max_failures > 0) made.mutable_retry()->set_max_failures(options.max_failures);
  for (const std::string& exit : options.retry_on) made.mutable_retry()->add_exits(exit);
  made.set_preemptible(options.preemptible);
  made.set_hold(options.hold);
  return made;
}

absl::StatusOr<JobFile> LoadJob(const SubmitOptions& options, const Origin& origin,
                                const std::vector<std::string>& sets) {
  return options.from.empty() ? LoadJobFile(options.file, sets) : JobFileFromSpec(origin.spec, sets);
}

absl::Status Prepare(Context& context, Client& client, const SubmitOptions& options, JobFile& file) {
  // What came from the daemon is the daemon's already; only what was changed is this machine's.
  if (!options.from.empty()) {
    bool changed = false;
    for (const std::string& set : options.sets) changed |= set.rfind("model.", 0) == 0 || set.rfind("data.", 0) == 0;
    for (const std::string& set : options.matrix) changed |= set.rfind("model.", 0) == 0 || set.rfind("data.", 0) == 0;
    if (!changed) return absl::OkStatus();
  }
  StatusLine line(context.terminal);
  return PrepareForDaemon(
      context.environment, client,
      [&](const std::string& path, uint64_t done, uint64_t total) {
        line.Show(StrCat("uploading ", Printable(path), "  ", FormatBytes(done), " of ", FormatBytes(total)));
      },
      file);
}

// Every combination is read and checked before the first is submitted.
int SubmitMatrix(Context& context, Client& client, const SubmitOptions& options, const Origin& origin) {
  HONE_TRY(const std::vector<Combination> combinations, ExpandMatrix(options.matrix));
  HONE_TRY(v1::JobOptions job_options, OptionsOf(options, origin));
  std::vector<JobFile> files;
  for (const Combination& combination : combinations) {
    std::vector<std::string> sets = options.sets;
    sets.insert(sets.end(), combination.sets.begin(), combination.sets.end());
    absl::StatusOr<JobFile> file = LoadJob(options, origin, sets);
    if (!file.ok()) return Fail(context, Annotate(file.status(), combination.name));
    const std::string base = file->spec.has_name() ? file->spec.name() : std::string("sweep");
    file->spec.set_name(StrCat(base, " ", combination.name));
    files.push_back(*std::move(file));
  }
  if (job_options.labels().count("sweep") == 0) {
    (*job_options.mutable_labels())["sweep"] = MakeRequestId().substr(0, 8);
  }
  for (size_t i = 0; i < files.size(); ++i) {
    const absl::Status prepared = Prepare(context, client, options, files[i]);
    if (!prepared.ok()) return Fail(context, prepared);
    v1::CreateJobRequest request;
    *request.mutable_spec() = files[i].spec;
    *request.mutable_options() = job_options;
    request.set_priority(options.priority);
    request.set_validate_only(options.validate_only);
    const absl::StatusOr<v1::Job> job = client.CreateJob(request);
    if (!job.ok()) {
      Err(StrCat("hone: ", i, " of ", files.size(), " jobs were submitted; ", combinations[i].name, " was refused\n"));
      return SubmitFailed(context, NameUploads(files[i], job.status()));
    }
    // People see which is which on one line; a pipe gets the ids.
    const std::string named =
        StrCat(options.validate_only ? std::string("valid") : job->id(), "  ", combinations[i].name);
    const bool together = context.terminal.out_is_terminal && !context.json() && !options.validate_only;
    if (together) {
      Out(named + "\n");
      continue;
    }
    if (!options.validate_only) Out(context.json() ? MessageToJson(*job) + "\n" : StrCat(job->id(), "\n"));
    Note(context, named);
  }
  if (!options.validate_only) {
    const std::string& sweep = job_options.labels().at("sweep");
    Note(context, StrCat(files.size(), " jobs. List them: hone ls --label sweep=", sweep, ". Wait for them: hone wait ",
                         "$(hone ls --label sweep=", sweep, " -o name)"));
  }
  return kExitOk;
}

}  // namespace

int RunSubmit(Context& context, const SubmitOptions& options) {
  if (options.from.empty() == options.file.empty()) {
    return Fail(context, InvalidArgument("give a job file or --from JOB"));
  }
  if (!options.matrix.empty() && options.watch) {
    return Fail(context, InvalidArgument("--watch follows one job; with --matrix use: hone wait $(hone submit ...)"));
  }
  // A mistake in the file is told without a daemon.
  if (options.from.empty() && options.matrix.empty()) {
    const absl::StatusOr<JobFile> file =
        options.file == "-" ? absl::StatusOr<JobFile>(JobFile()) : LoadJobFile(options.file, options.sets);
    if (!file.ok()) return Fail(context, file.status());
  }
  HONE_TRY(Client* const client, context.Connect());
  Origin origin;
  if (!options.from.empty()) {
    HONE_TRY(const v1::Job job, client->GetJob(options.from));
    origin = {job.spec(), job.options()};
  }
  if (!options.matrix.empty()) return SubmitMatrix(context, *client, options, origin);

  HONE_TRY(JobFile file, LoadJob(options, origin, options.sets));
  for (const std::string& advice : file.advice) Warn(context, advice);
  const absl::Status prepared = Prepare(context, *client, options, file);
  if (!prepared.ok()) return Fail(context, prepared);

  v1::CreateJobRequest request;
  *request.mutable_spec() = file.spec;
  HONE_TRY(v1::JobOptions job_options, OptionsOf(options, origin));
  if (job_options.ByteSizeLong() > 0) *request.mutable_options() = std::move(job_options);
  request.set_request_id(options.request_id.empty() ? MakeRequestId() : options.request_id);
  request.set_validate_only(options.validate_only);
  request.set_priority(options.priority);
  absl::StatusOr<v1::Job> job = client->CreateJob(request);
  if (!job.ok()) return SubmitFailed(context, NameUploads(file, job.status()));
  if (options.validate_only) {
    if (context.json()) {
      Out(MessageToJson(*job) + "\n");
    } else {
      Note(context,
           "The job is valid and its plan fits; nothing was stored. Run it: the same without --validate-only.");
    }
    return kExitOk;
  }

  if (!options.watch) {
    AwaitVerdict(*client, *job);
    if (job->state() == v1::FAILED) return Refused(context, file, *job);
  }
  if (context.json()) {
    Out(MessageToJson(*job) + "\n");  // with --watch, the events follow
  } else {
    Out(StrCat(job->id(), "\n"));
  }
  if (!options.watch) {
    Note(context, StrCat("Job ", job->id(), " (", Printable(job->display_name()), ") is ",
                         StateText(job->state(), false), ". ", NextStep(*job)));
    return kExitOk;
  }
  return WatchJob(context, *client, job->id(),
                  {.timeout_seconds = options.timeout_seconds, .submitted_here = true, .already_said = file.advice});
}

}  // namespace hone
