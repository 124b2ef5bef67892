// hone submit: one job file becomes one job.
#include "client/commands.h"
#include "client/interrupt.h"
#include "client/job_file.h"
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

int Refused(Context& context, const v1::Job& job) {
  if (context.json()) Out(MessageToJson(job) + "\n");
  Err(StrCat("hone: ", Paint(context.terminal.err_colours, Colour::kRed, "error:"), " job ", job.id(),
             " cannot run: ", Printable(job.state_message().empty() ? job.state_reason() : job.state_message()), "\n"));
  if (job.state_reason() != "PLAN_DOES_NOT_FIT") return kExitFailed;
  Err("  hint: `hone plan JOB.yaml` shows where the memory goes and the smallest changes that help.\n");
  return kExitDoesNotFit;
}

int SubmitFailed(const Context& context, const absl::Status& status) {
  const int code = Fail(context, status);
  return ErrorReason(status) == "PLAN_DOES_NOT_FIT" ? kExitDoesNotFit : code;
}

}  // namespace

int RunSubmit(Context& context, const SubmitOptions& options) {
  HONE_TRY(JobFile file, LoadJobFile(options.file, options.sets));
  for (const std::string& advice : file.advice) Warn(context, advice);
  HONE_TRY(Client* const client, context.Connect());
  StatusLine line(context.terminal);
  const absl::Status prepared = PrepareForDaemon(
      context.environment, *client,
      [&](const std::string& path, uint64_t done, uint64_t total) {
        line.Show(StrCat("uploading ", Printable(path), "  ", FormatBytes(done), " of ", FormatBytes(total)));
      },
      file);
  line.Clear();
  if (!prepared.ok()) return Fail(context, prepared);

  v1::CreateJobRequest request;
  *request.mutable_spec() = file.spec;
  request.set_request_id(options.request_id.empty() ? MakeRequestId() : options.request_id);
  request.set_validate_only(options.validate_only);
  request.set_priority(options.priority);
  absl::StatusOr<v1::Job> job = client->CreateJob(request);
  if (!job.ok()) return SubmitFailed(context, job.status());
  if (options.validate_only) {
    if (context.json()) {
      Out(MessageToJson(*job) + "\n");
    } else {
      Note(context, "The job is valid and its plan fits; nothing was stored.");
    }
    return kExitOk;
  }

  if (!options.watch) {
    AwaitVerdict(*client, *job);
    if (job->state() == v1::FAILED) return Refused(context, *job);
  }
  if (context.json()) {
    Out(MessageToJson(*job) + "\n");  // with --watch, the events follow
  } else {
    Out(StrCat(job->id(), "\n"));
  }
  if (!options.watch) {
    Note(context, StrCat("Job ", job->id(), " (", Printable(job->display_name()), ") is ",
                         StateText(job->state(), false), ". Watch it: hone watch ", job->id()));
    return kExitOk;
  }
  return WatchJob(context, *client, job->id(),
                  {.timeout_seconds = options.timeout_seconds, .submitted_here = true, .already_said = file.advice});
}

}  // namespace hone
