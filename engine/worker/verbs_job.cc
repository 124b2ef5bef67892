#include <csignal>
#include <cstdio>
#include <string>

#include "engine/worker/device_flags.h"
#include "engine/worker/job.h"
#include "engine/worker/lines.h"
#include "engine/worker/serve.h"
#include "engine/worker/verbs.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

absl::StatusOr<PreparedRun> PrepareSpec(const std::string& path, const DeviceFlags& device,
                                        const std::vector<std::string>& sets, const std::string& plan_device = "") {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  SpecPositions positions;
  HONE_ASSIGN_OR_RETURN(v1::JobSpec spec, SpecFromYaml(text, path, &positions));
  for (const std::string& set : sets) HONE_RETURN_IF_ERROR(SetField(spec, set));
  HONE_ASSIGN_OR_RETURN(const DeviceChoice choice, device.Choice());
  auto prepared = PrepareJob(spec, choice, plan_device);
  if (!prepared.ok()) return positions.Locate(prepared.status());
  return prepared;
}

struct JobFlags {
  std::string spec, output, plan_device, fault;
  std::vector<std::string> sets;
  int64_t save_gradients = 0;
  DeviceFlags device;
};

int Validate(const JobFlags& flags) {
  const auto run = PrepareSpec(flags.spec, flags.device, flags.sets);
  if (!run.ok()) return Fail(run.status());
  PrintLine(JobReport(*run));
  return 0;
}

int PlanVerb(const JobFlags& flags) {
  const auto run = PrepareSpec(flags.spec, flags.device, flags.sets, flags.plan_device);
  if (!run.ok()) return Fail(run.status());
  const auto plan = PlanJob(*run, {flags.plan_device, 0, flags.device.threads, MachineCacheFolder()});
  if (!plan.ok()) return Fail(plan.status());
  PrintLine(nlohmann::ordered_json::parse(MessageToJson(*plan)));
  return 0;
}

volatile std::sig_atomic_t stop_requested = 0;
void RequestStop(int) { stop_requested = 1; }

// Events as lines {"step": {...}}, {"progress": {...}}, ...; Ctrl-C or SIGTERM: finish the step, write a checkpoint,
// end.
class PrintedEvents : public TrainEvents {
 public:
  void Emit(const v1::FromWorker& event) override { PrintLine(nlohmann::ordered_json::parse(MessageToJson(event))); }
  TrainControl Poll() override { return stop_requested != 0 ? TrainControl::kStop : TrainControl::kContinue; }
};

int TrainVerb(const JobFlags& flags) {
  const auto run = PrepareSpec(flags.spec, flags.device, flags.sets);
  if (!run.ok()) return Fail(run.status());
  for (const std::string& advice : Advice(run->spec)) std::fprintf(stderr, "warning: %s\n", advice.c_str());
  std::signal(SIGINT, RequestStop);
  std::signal(SIGTERM, RequestStop);
  TrainJobOptions options;
  options.output_dir = flags.output;
  options.save_gradients = flags.save_gradients;
  options.threads = flags.device.threads;
  auto fault = ParseInjectedFault(flags.fault);
  if (!fault.ok()) return Fail(fault.status());
  options.fault = *fault;
  PrintedEvents events;
  const auto result = TrainJob(*run, options, events);
  if (!result.ok()) return Fail(result.status());
  if (result->stopped) {
    std::fprintf(stderr, "stopped after step %lld; the same command resumes\n",
                 static_cast<long long>(result->last_step));
    return 3;
  }
  PrintLine({{"result", result->result}});
  return 0;
}

std::shared_ptr<JobFlags> AddJobFlags(CLI::App* verb, bool with_device) {
  auto flags = std::make_shared<JobFlags>();
  verb->add_option("--spec", flags->spec, "A job file (YAML or JSON)")->required();
  verb->add_option("--set", flags->sets, "path=value over the job file, such as optimizer.learning_rate=5e-5")
      ->allow_extra_args(false);
  flags->device.Add(verb, with_device);
  return flags;
}

}  // namespace

void AddJobVerbs(CLI::App& app, int* exit_code) {
  {
    CLI::App* verb = app.add_subcommand("validate", "Read the data of a job and report on it");
    auto flags = AddJobFlags(verb, true);
    verb->callback([=] { *exit_code = Validate(*flags); });
  }
  {
    CLI::App* verb = app.add_subcommand("plan", "The memory plan of a job; exit code 0 even when it does not fit");
    auto flags = AddJobFlags(verb, false);
    verb->add_option("--device", flags->plan_device, "cpu, cuda or a card such as rtx3090");
    verb->callback([=] { *exit_code = PlanVerb(*flags); });
  }
  {
    CLI::App* verb = app.add_subcommand("train", "Train a job here, or resume it; prints events");
    auto flags = AddJobFlags(verb, true);
    verb->add_option("--output", flags->output, "Folder for checkpoints, adapter and exports")->required();
    verb->add_option("--save-gradients", flags->save_gradients,
                     "Write the initial adapter and the gradients of the first N steps");
    verb->add_option("--inject-fault", flags->fault)->group("");  // tests alone
    verb->callback([=] { *exit_code = TrainVerb(*flags); });
  }
  {
    auto fd = std::make_shared<int>(3);
    CLI::App* verb = app.add_subcommand("serve", "Work for the daemon over an inherited socket");
    auto fault = std::make_shared<std::string>();
    verb->add_option("--fd", *fd, "The socket's descriptor");
    verb->add_option("--inject-fault", *fault)->group("");  // tests alone
    verb->callback([=] { *exit_code = Serve(*fd, *fault); });
  }
}

}  // namespace hone
