#include "client/app.h"

#include "client/commands.h"
#include "proto/base/build_info.h"
#include "proto/base/status.h"
#include "proto/spec/field.h"

namespace hone {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  hone daemon start                       start the daemon of this user\n"
    "  hone submit job.yaml --watch            run a job and follow it (Ctrl-C detaches)\n"
    "  hone submit job.yaml --set optimizer.learning_rate=5e-5\n"
    "  hone generate --job ID --ask \"What is a tide?\" --compare\n"
    "  hone export ID --output ./adapter\n"
    "  hone spec optimizer                     what a job file may say\n"
    "\n"
    "Exit codes:\n"
    "  0  done; a watched job succeeded        4  not allowed to talk to the daemon\n"
    "  1  the job or the command failed        5  no daemon answers\n"
    "  2  wrong flags, job file or request     6  the plan does not fit (submit only)\n"
    "  3  the watched job was cancelled or     7  --timeout passed\n"
    "     paused                               130  Ctrl-C: detached, the job goes on\n"
    "\n"
    "Data goes to stdout, progress and messages to stderr. NO_COLOR and pipes turn colours off.\n"
    "-o json prints one JSON object a line: the API's messages with the names of the .proto files.";

}  // namespace

struct CommandLine::Options {
  SubmitOptions submit;
  ListOptions list;
  GetOptions get;
  std::string watch_job;
  int watch_timeout = 0;
  std::string logs_job;
  bool follow = false;
  std::vector<std::string> cancel;
  std::vector<std::string> jobs;
  std::string message;
  MoveOptions move;
  std::string label_job;
  std::vector<std::string> labels;
  WaitOptions wait;
  TopOptions top;
  JobReportOptions report;
  ImportOptions import_job;
  std::string context_name;
  Target target;
  PlanOptions plan;
  std::string validate_file;
  std::vector<std::string> validate_sets;
  std::vector<std::string> uploads;
  ModelImportOptions import_model;
  std::string model;
  std::vector<std::string> models;
  GenerateOptions generate;
  ExportOptions exports;
  SpecOptions spec;
  DaemonCommandOptions daemon;
  int stop_wait = 120;
  std::string shell;
};

CommandLine::CommandLine(Context& context)
    : context_(context),
      app_("Hone fine-tunes language models on the machine you already own.", "hone"),
      options_(std::make_unique<Options>()) {
  app_.footer(kFooter);
  app_.set_version_flag("--version", StrCat("hone ", BuildVersion(), " (", BuildId(), ")"));
  app_.add_option("--socket", context_.socket_flag, "The daemon's Unix socket (default: the user's, then the system's)")
      ->type_name("PATH");
  app_.add_option("--context", context_.context_flag, "A daemon named with `hone config set` (or $HONE_CONTEXT)")
      ->type_name("NAME");
  app_.add_option("-o,--format", context_.format, "text, json (one object a line) or name")
      ->check(CLI::IsMember({"text", "json", "name"}))
      ->type_name("FORMAT");
  app_.add_flag("-q,--quiet", context_.quiet, "No remarks and no progress on stderr");
  app_.require_subcommand(0, 1);
  app_.fallthrough();
  AddJobs();
  AddQueue();
  AddReports();
  AddConfig();
  AddData();
  AddModels();
  AddTools();
  AddDaemon();
}

CommandLine::~CommandLine() = default;

CLI::App* CommandLine::Command(CLI::App& parent, const std::string& name, const std::string& help,
                               const std::string& examples) {
  CLI::App* command = parent.add_subcommand(name, help);
  command->fallthrough();
  command->footer(StrCat("Examples:\n", examples, "\nExit codes and global flags (--socket, -o, -q): hone --help"));
  return command;
}

void CommandLine::AddJobs() {
  CLI::App* submit = Command(app_, "submit", "Submit a job file",
                             "  hone submit job.yaml --watch\n"
                             "  hone submit job.yaml --set run.max_steps=24 --set export=[peft,merged]\n"
                             "  hone submit job.yaml --validate-only && echo fine\n"
                             "  hone submit --from ID --set optimizer.learning_rate=5e-5\n"
                             "  hone submit job.yaml --matrix optimizer.learning_rate=5e-5,1e-4 --matrix run.seed=1,2\n"
                             "  id=$(hone submit job.yaml -q); hone submit next.yaml --after $id\n");
  SubmitOptions& s = options_->submit;
  submit->add_option("FILE", s.file, "Job file, YAML or JSON; - for stdin");
  submit->add_option("--from", s.from, "Instead of a file: the spec of this job, with --set on top")->type_name("JOB");
  submit->add_option("--matrix", s.matrix, "A job for each value; several: for each combination (repeatable)")
      ->type_name("FIELD=V1,V2,...")
      ->allow_extra_args(false);
  submit->add_option("--after", s.after, "Starts when this job has succeeded (repeatable)")
      ->type_name("JOB")
      ->allow_extra_args(false);
  submit->add_option("--label", s.labels, "For finding it again (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  submit->add_option("--time-limit", s.time_limit, "Fails after so long with a worker: 90s, 30m, 2h, 1d")
      ->type_name("TIME");
  submit->add_option("--max-failures", s.max_failures, "Attempts in a row without a new checkpoint that fail it")
      ->type_name("N");
  submit->add_option("--retry-on", s.retry_on, "Ends of an attempt that are tried again (default: all)")
      ->delimiter(',')
      ->check(CLI::IsMember({"crashed", "hung", "none"}))
      ->type_name("crashed,hung,none")
      ->allow_extra_args(false);
  submit->add_flag("--preemptible", s.preemptible, "A waiting job of higher priority may move it aside for a while");
  submit->add_flag("--hold", s.hold, "Store it, but run it only after `hone release`");
  submit->add_option("--set", s.sets, "Change one field: optimizer.learning_rate=5e-5 (repeatable)")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  submit->add_flag("-w,--watch", s.watch, "Follow the job; the exit code is the job's");
  submit->add_option("--priority", s.priority, "Higher runs first (default 0)")->type_name("N");
  submit->add_flag("--validate-only", s.validate_only, "Check spec, data and plan; store nothing");
  submit->add_option("--timeout", s.timeout_seconds, "With --watch: stop watching after so many seconds")
      ->type_name("SECONDS");
  submit
      ->add_option("--request-id", s.request_id,
                   "A UUID that makes repeating this command harmless (default: a new one)")
      ->type_name("UUID");
  submit->callback([this] { chosen_ = [this] { return RunSubmit(context_, options_->submit); }; });

  CLI::App* list = Command(app_, "ls", "List jobs, newest first",
                           "  hone ls\n  hone ls --state running,queued\n  hone ls --label sweep=a1 --mine\n  hone ls "
                           "-o json | jq -r .id\n");
  list->add_option("--state", options_->list.states, "Only jobs in these states")
      ->delimiter(',')
      ->type_name("STATE,...")
      ->allow_extra_args(false);
  list->add_option("--label", options_->list.labels, "Only jobs with this label (repeatable)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  list->add_option("--name", options_->list.name, "Only jobs whose name contains this")->type_name("TEXT");
  list->add_flag("--mine", options_->list.mine, "Only jobs that I submitted");
  list->add_option("--limit", options_->list.limit, "At most so many (default 50; 0: all)")->type_name("N");
  list->callback([this] { chosen_ = [this] { return RunList(context_, options_->list); }; });

  CLI::App* get =
      Command(app_, "get", "Show one job",
              "  hone get ID\n  hone get ID --spec > again.yaml\n  hone get ID -o json | jq .result_json\n");
  get->add_option("JOB", options_->get.job, "Job id, or a unique beginning of one")->required();
  get->add_flag("--spec", options_->get.spec, "Print the job file as submitted");
  get->add_flag("--resolved", options_->get.resolved, "Print the job file with every default filled in");
  get->callback([this] { chosen_ = [this] { return RunGet(context_, options_->get); }; });

  CLI::App* watch =
      Command(app_, "watch", "Follow a job; Ctrl-C detaches",
              "  hone watch ID\n  hone watch ID -o json | jq -c 'select(.step)'\n  hone watch ID --timeout 600\n");
  watch->add_option("JOB", options_->watch_job, "Job id")->required();
  watch->add_option("--timeout", options_->watch_timeout, "Stop watching after so many seconds (exit code 7)")
      ->type_name("SECONDS");
  watch->callback(
      [this] { chosen_ = [this] { return RunWatch(context_, options_->watch_job, options_->watch_timeout); }; });

  CLI::App* logs = Command(app_, "logs", "Print a job's log", "  hone logs ID\n  hone logs ID --follow\n");
  logs->add_option("JOB", options_->logs_job, "Job id")->required();
  logs->add_flag("-f,--follow", options_->follow, "Wait for more until the job ends");
  logs->callback([this] { chosen_ = [this] { return RunLogs(context_, options_->logs_job, options_->follow); }; });

  CLI::App* cancel = Command(app_, "cancel", "End jobs; their last checkpoint is kept",
                             "  hone cancel ID\n  hone ls --state queued -o name | xargs hone cancel\n");
  cancel->add_option("JOB", options_->cancel, "Job ids")->required();
  cancel->callback([this] { chosen_ = [this] { return RunCancel(context_, options_->cancel); }; });
}

void CommandLine::AddQueue() {
  const auto act = [this](const char* name, const char* help, const char* examples,
                          int (*run)(Context&, const std::vector<std::string>&)) {
    CLI::App* command = Command(app_, name, help, examples);
    command->add_option("JOB", options_->jobs, "Job ids")->required();
    command->callback([this, run] { chosen_ = [this, run] { return run(context_, options_->jobs); }; });
  };
  act("pause", "Checkpoint and free the device; the job goes on with resume",
      "  hone pause ID\n  hone wait ID --for paused && nvidia-smi\n", RunPause);
  act("resume", "Put paused jobs back into the queue",
      "  hone resume ID\n  hone ls --state paused -o name | xargs hone resume\n", RunResume);
  act("release", "Let held jobs go", "  hone release ID\n  hone ls --state held\n", RunRelease);
  CLI::App* hold = Command(app_, "hold", "Keep waiting jobs from running until they are released",
                           "  hone hold ID --message \"until the new data is there\"\n");
  hold->add_option("JOB", options_->jobs, "Job ids")->required();
  hold->add_option("-m,--message", options_->message, "Why")->type_name("TEXT");
  hold->callback([this] { chosen_ = [this] { return RunHold(context_, options_->jobs, options_->message); }; });

  CLI::App* queue =
      Command(app_, "queue", "What runs and what waits, in order", "  hone queue\n  hone queue -o name\n");
  queue->callback([this] { chosen_ = [this] { return RunQueue(context_); }; });
  CLI::App* move = Command(app_, "move", "Change a job's place in the queue",
                           "  hone move ID --first\n  hone move ID --before OTHER\n  hone move ID --priority 10\n");
  MoveOptions& m = options_->move;
  move->add_option("JOB", m.job, "Job id")->required();
  move->add_flag("--first", m.first, "Before all others of its priority");
  move->add_option("--before", m.before, "Right before this job, with its priority")->type_name("JOB");
  move->add_option("--behind", m.behind, "Right behind this job, with its priority")->type_name("JOB");
  move->add_option("--priority", m.priority, "Higher runs first")->type_name("N");
  move->callback([this] { chosen_ = [this] { return RunMove(context_, options_->move); }; });
  CLI::App* label = Command(app_, "label", "Set and remove a job's labels", "  hone label ID team=blue old-\n");
  label->add_option("JOB", options_->label_job, "Job id")->required();
  label->add_option("LABEL", options_->labels, "KEY=VALUE sets, KEY- removes")->required();
  label->callback([this] { chosen_ = [this] { return RunLabel(context_, options_->label_job, options_->labels); }; });

  CLI::App* wait = Command(app_, "wait", "Wait until jobs end, or are in a state",
                           "  hone wait ID && hone export ID --output out\n  hone wait ID --for paused --timeout 60\n"
                           "  hone wait $(hone ls --label sweep=a1 -o name)\n");
  wait->add_option("JOB", options_->wait.jobs, "Job ids")->required();
  wait->add_option("--for", options_->wait.goal, "ended (default), rest (ended, paused or held), or a state")
      ->type_name("STATE");
  wait->add_option("--timeout", options_->wait.timeout_seconds, "Give up after so many seconds (exit code 7)")
      ->type_name("SECONDS");
  wait->callback([this] { chosen_ = [this] { return RunWait(context_, options_->wait); }; });
}

void CommandLine::AddReports() {
  CLI::App* top = Command(app_, "top", "Watch the daemon, its devices and its jobs", "  hone top\n  hone top --once\n");
  top->add_flag("--once", options_->top.once, "Print once and end");
  top->add_option("--interval", options_->top.interval, "Seconds between two looks (default 1)")->type_name("SECONDS");
  top->callback([this] { chosen_ = [this] { return RunTop(context_, options_->top); }; });

  CLI::App* report = Command(app_, "report", "Write one HTML page about a job, with everything inside",
                             "  hone report ID\n  hone report ID --output run.html --ask \"What is a tide?\"\n");
  JobReportOptions& r = options_->report;
  report->add_option("JOB", r.job, "Job id")->required();
  report->add_option("--output", r.output, "File (default: report-ID.html; - for stdout)")->type_name("FILE");
  report->add_option("--ask", r.questions, "Put the answers of base and adapter to this into it (repeatable)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  report->add_flag("!--no-data", r.data, "Leave the data's statistics out (they need the data to be read)");
  report->callback([this] { chosen_ = [this] { return RunJobReport(context_, options_->report); }; });

  CLI::App* importer = Command(app_, "import", "Turn a training file of axolotl or LLaMA-Factory into a job file",
                               "  hone import axolotl.yaml --output job.yaml\n");
  ImportOptions& i = options_->import_job;
  importer->add_option("FILE", i.file, "Their YAML")->required();
  importer->add_option("--from", i.from, "axolotl or llama-factory (default: by its keys)")
      ->check(CLI::IsMember({"axolotl", "llama-factory"}))
      ->type_name("TOOL");
  importer->add_option("--output", i.output, "Job file to write (default: stdout)")->type_name("FILE");
  importer->callback([this] { chosen_ = [this] { return RunImport(context_, options_->import_job); }; });
}

void CommandLine::AddConfig() {
  CLI::App* config = Command(app_, "config", "Name daemons and choose one",
                             "  hone config set lab --address lab:9463 --ca ca.pem --certificate me.pem --key me.key\n"
                             "  hone config use lab\n  hone config use -           this user's own daemon again\n");
  config->require_subcommand(1);
  CLI::App* list = Command(*config, "ls", "List them", "  hone config ls\n");
  list->callback([this] { chosen_ = [this] { return RunConfigList(context_); }; });
  CLI::App* set =
      Command(*config, "set", "Add or change one", "  hone config set box --at-socket /run/honed/honed.sock\n");
  Target& t = options_->target;
  set->add_option("CONTEXT", options_->context_name, "Its name")->required();
  set->add_option("--at-socket", t.socket, "A Unix socket")->type_name("PATH");
  set->add_option("--address", t.address, "TCP, with TLS")->type_name("HOST:PORT");
  set->add_option("--ca", t.ca, "The certificate that signed the daemon's")->type_name("FILE");
  set->add_option("--certificate", t.certificate, "To show to the daemon")->type_name("FILE");
  set->add_option("--key", t.key, "Of that certificate")->type_name("FILE");
  set->add_option("--token-file", t.token_file, "Its text is sent as a token")->type_name("FILE");
  set->callback(
      [this] { chosen_ = [this] { return RunConfigSet(context_, options_->context_name, options_->target); }; });
  CLI::App* use = Command(*config, "use", "Talk to this one from now on; - to none", "  hone config use lab\n");
  use->add_option("CONTEXT", options_->context_name, "Its name, or -")->required();
  use->callback([this] { chosen_ = [this] { return RunConfigUse(context_, options_->context_name); }; });
  CLI::App* remove = Command(*config, "rm", "Forget one", "  hone config rm lab\n");
  remove->add_option("CONTEXT", options_->context_name, "Its name")->required();
  remove->callback([this] { chosen_ = [this] { return RunConfigRemove(context_, options_->context_name); }; });
}

void CommandLine::AddData() {
  CLI::App* plan = Command(app_, "plan", "Show what memory and time a job file will take",
                           "  hone plan job.yaml\n  hone plan job.yaml --device cpu --set memory.policy=smallest\n  "
                           "hone plan job.yaml -o json | jq .fits\n");
  plan->add_option("FILE", options_->plan.file, "Job file")->required();
  plan->add_option("--set", options_->plan.sets, "Change one field")->type_name("FIELD=VALUE")->allow_extra_args(false);
  plan->add_option("--device", options_->plan.device, "cpu, cuda or a card such as rtx3090 (default: the daemon's)")
      ->type_name("DEVICE");
  plan->callback([this] { chosen_ = [this] { return RunPlan(context_, options_->plan); }; });

  CLI::App* data = Command(app_, "data", "Check and upload training data",
                           "  hone data validate job.yaml\n  hone data upload answers.jsonl\n");
  data->require_subcommand(1);
  CLI::App* validate = Command(*data, "validate", "Counts, lengths, labels and a preview of what is trained",
                               "  hone data validate job.yaml\n");
  validate->add_option("FILE", options_->validate_file, "Job file")->required();
  validate->add_option("--set", options_->validate_sets, "Change one field")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  validate->callback([this] {
    chosen_ = [this] { return RunDataValidate(context_, options_->validate_file, options_->validate_sets); };
  });
  CLI::App* upload = Command(*data, "upload", "Upload files; prints sha256:<digest>, which data.train takes",
                             "  hone data upload answers.jsonl\n");
  upload->add_option("FILE", options_->uploads, "Files")->required();
  upload->callback([this] { chosen_ = [this] { return RunDataUpload(context_, options_->uploads); }; });
}

void CommandLine::AddModels() {
  CLI::App* models =
      Command(app_, "models", "Models known by name",
              "  hone models import ~/models/SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2\n  hone models ls\n");
  models->require_subcommand(1);
  CLI::App* importer = Command(*models, "import", "Register a model; its files stay where they are",
                               "  hone models import ~/models/Qwen2.5-0.5B --name qwen\n");
  ModelImportOptions& m = options_->import_model;
  importer->add_option("PATH", m.path, "A .gguf file or a Hugging Face folder")->required();
  importer->add_option("--name", m.name, "Name in the registry (default: from the file)")->type_name("NAME");
  importer->add_option("--quantize", m.quantize, "Write a quantised copy once and register that")
      ->check(CLI::IsMember({"nf4"}));
  importer->add_option("--output", m.output, "Folder for the copy (default: in the state folder)")->type_name("FOLDER");
  importer->callback([this] { chosen_ = [this] { return RunModelsImport(context_, options_->import_model); }; });
  CLI::App* list = Command(*models, "ls", "List models", "  hone models ls\n");
  list->callback([this] { chosen_ = [this] { return RunModelsList(context_); }; });
  CLI::App* get = Command(*models, "get", "Show one model", "  hone models get smollm2\n");
  get->add_option("NAME", options_->model, "Name in the registry")->required();
  get->callback([this] { chosen_ = [this] { return RunModelsGet(context_, options_->model); }; });
  CLI::App* remove = Command(*models, "rm", "Forget models; their files stay", "  hone models rm smollm2\n");
  remove->add_option("NAME", options_->models, "Names in the registry")->required();
  remove->callback([this] { chosen_ = [this] { return RunModelsRemove(context_, options_->models); }; });
}

void CommandLine::AddTools() {
  CLI::App* generate = Command(
      app_, "generate", "Answer prompts with a job's adapter, its base, or a model",
      "  hone generate --job ID --ask \"What is a tide?\" --compare\n"
      "  hone generate --job ID --file questions.jsonl -o json\n"
      "  hone generate --model smollm2 --prompt \"Once upon a time\" --max-new-tokens 40\n"
      "A line of --file is {\"messages\": [...]}, {\"question\": \"...\"}, {\"prompt\": \"...\"} or {\"ids\": [...]},\n"
      "with temperature, top_k, top_p, max_new_tokens, seed and stop where they differ.\n");
  GenerateOptions& g = options_->generate;
  generate->add_option("--job", g.job, "Use this job's adapter")->type_name("JOB");
  generate->add_option("--model", g.model, "A registry name or a path")->type_name("MODEL");
  generate->add_flag("--base", g.base, "With --job: its base model without the adapter");
  generate->add_flag("--compare", g.compare, "With --job: base and adapter side by side");
  generate->add_option("--ask", g.questions, "A question, sent as the user's message (repeatable)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  generate->add_option("--prompt", g.prompts, "Raw text to continue, no chat template (repeatable)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  generate->add_option("--messages", g.messages, "A JSON list of messages (repeatable)")
      ->type_name("JSON")
      ->allow_extra_args(false);
  generate->add_option("--file", g.file, "JSON lines, one prompt a line")->type_name("FILE");
  generate->add_option("--max-new-tokens", g.max_new_tokens, "Longest answer")->type_name("N");
  generate->add_option("--temperature", g.temperature, "0: greedy")->type_name("T");
  generate->add_option("--top-k", g.top_k, "Sample from the k likeliest tokens")->type_name("K");
  generate->add_option("--top-p", g.top_p, "Sample from the likeliest tokens that make up p")->type_name("P");
  generate->add_option("--seed", g.seed, "Of the sampling")->type_name("N");
  generate->add_option("--stop", g.stop, "End the answer at this text (repeatable)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  generate->callback([this] { chosen_ = [this] { return RunGenerate(context_, options_->generate); }; });

  CLI::App* exports =
      Command(app_, "export", "Fetch a job's files and verify their sha256",
              "  hone export ID --output ./result\n  hone export ID --output ./result --only adapter\n");
  exports->add_option("JOB", options_->exports.job, "Job id")->required();
  exports->add_option("--output", options_->exports.output, "Folder to write to")->required()->type_name("DIR");
  exports->add_option("--only", options_->exports.only, "Only this file or folder (repeatable)")
      ->type_name("PATH")
      ->allow_extra_args(false);
  exports->callback([this] { chosen_ = [this] { return RunExport(context_, options_->exports); }; });

  CLI::App* spec = Command(app_, "spec", "Explain what a job file may say",
                           "  hone spec\n  hone spec optimizer.learning_rate\n  hone spec --resolve job.yaml          "
                           "the job file with every default, checked without a daemon\n");
  spec->add_option("FIELD", options_->spec.field, "A field or a group of fields");
  spec->add_option("--resolve", options_->spec.resolve, "Print this job file with every default filled in")
      ->type_name("FILE");
  spec->add_option("--set", options_->spec.sets, "With --resolve: change one field")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  spec->add_flag("--markdown", options_->spec.markdown, "The whole reference page");
  spec->callback([this] { chosen_ = [this] { return RunSpec(context_, options_->spec); }; });

  CLI::App* doctor = Command(app_, "doctor", "Check this machine and say how to mend it",
                             "  hone doctor\n  hone doctor -o json | jq -c 'select(.level == \"problem\")'\n");
  doctor->callback([this] { chosen_ = [this] { return RunDoctor(context_); }; });

  CLI::App* completion = Command(app_, "completion", "Print a completion script for a shell",
                                 "  source <(hone completion bash)\n  hone completion zsh > ~/.zfunc/_hone\n  hone "
                                 "completion fish > ~/.config/fish/completions/hone.fish\n");
  completion->add_option("SHELL", options_->shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->callback([this] {
    chosen_ = [this] {
      Out(CompletionScript(app_, options_->shell));
      return static_cast<int>(kExitOk);
    };
  });
}

void CommandLine::AddDaemon() {
  CLI::App* status = Command(app_, "status", "Show the daemon, its devices and its queue",
                             "  hone status\n  hone status -o json | jq .jobs\n");
  status->callback([this] { chosen_ = [this] { return RunStatus(context_); }; });

  CLI::App* daemon = Command(app_, "daemon", "Start and stop the daemon of this user",
                             "  hone daemon start\n  hone daemon status -o json | jq -r .build_id\n");
  daemon->require_subcommand(1);
  const auto add_start_flags = [this](CLI::App& command) {
    DaemonCommandOptions& d = options_->daemon;
    command.add_option("--state-dir", d.state_dir, "Where everything is kept (default: $XDG_STATE_HOME/hone)")
        ->type_name("DIR");
    command.add_option("--metrics", d.metrics, "HOST:PORT for Prometheus, or off")->type_name("ADDRESS");
    command.add_option("--program", d.program, "The daemon (default: honed beside hone)")->type_name("PATH");
    command.add_option("--wait", d.wait_seconds, "How long to wait until it is ready (default 30)")
        ->type_name("SECONDS");
    command.add_option("ARGUMENTS", d.arguments, "After --: passed on to honed");
  };
  CLI::App* start = Command(*daemon, "start", "Start honed in the background and wait until it is ready",
                            "  hone daemon start\n  hone daemon start --state-dir /data/hone --metrics off\n");
  add_start_flags(*start);
  start->add_flag("--if-stale", options_->daemon.if_stale, "Replace a running daemon of another build");
  start->callback([this] { chosen_ = [this] { return RunDaemonStart(context_, options_->daemon); }; });
  CLI::App* stop = Command(*daemon, "stop", "Checkpoint what runs, keep the queue, and stop", "  hone daemon stop\n");
  stop->add_option("--wait", options_->stop_wait, "How long to wait (default 120)")->type_name("SECONDS");
  stop->callback([this] { chosen_ = [this] { return RunDaemonStop(context_, options_->stop_wait); }; });
  CLI::App* restart = Command(*daemon, "restart", "Stop and start with the same state", "  hone daemon restart\n");
  add_start_flags(*restart);
  restart->callback([this] { chosen_ = [this] { return RunDaemonRestart(context_, options_->daemon); }; });
  CLI::App* show =
      Command(*daemon, "status", "Show whether it runs, its build and its socket", "  hone daemon status\n");
  show->callback([this] { chosen_ = [this] { return RunDaemonStatus(context_); }; });
}

int CommandLine::UsageError(const CLI::ParseError& error, int argc, const char* const* argv) {
  std::string message = error.what();
  std::vector<std::string> names;
  for (const CLI::App* command : app_.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.empty() || word[0] == '-') continue;
    if (std::find(names.begin(), names.end(), word) != names.end()) break;
    const std::string close = Closest(word, names);
    message = StrCat("unknown command ", Quoted(word), close.empty() ? "" : StrCat("; did you mean ", close, "?"));
    break;
  }
  Err(StrCat("hone: ", Paint(context_.terminal.err_colours, Colour::kRed, "error:"), " ", Printable(message), "\n"));
  const auto parsed = app_.get_subcommands();
  Err(StrCat("  ", Paint(context_.terminal.err_colours, Colour::kBold, "hint:"), " hone ",
             parsed.empty() ? "" : parsed.front()->get_name() + " ", "--help\n"));
  return kExitUsage;
}

int CommandLine::Run(int argc, const char* const* argv) {
  try {
    app_.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App* shown = &app_;
    std::string before;
    while (!shown->get_subcommands().empty()) {
      before += StrCat(before.empty() ? "" : " ", shown->get_name());
      shown = shown->get_subcommands().front();
    }
    Out(shown->help(before));
    return kExitOk;
  } catch (const CLI::CallForVersion& version) {
    Out(StrCat(version.what(), "\n"));
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    return UsageError(error, argc, argv);
  }
  if (chosen_ == nullptr) {
    Out(app_.help());
    return kExitOk;
  }
  return chosen_();
}

}  // namespace hone
