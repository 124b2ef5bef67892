// The commands of `hone`, one function each: options in, exit code out. Flags are defined in app.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/context.h"

namespace hone {

struct SubmitOptions {
  std::string file;
  std::vector<std::string> sets;
  bool watch = false;
  bool validate_only = false;
  int priority = 0;
  int timeout_seconds = 0;
  std::string request_id;
  std::string from;                 // a job whose spec is taken
  std::vector<std::string> matrix;  // FIELD=V1,V2
  std::vector<std::string> after;
  std::vector<std::string> labels;  // KEY=VALUE
  std::string time_limit;           // "2h"
  uint32_t max_failures = 0;
  std::vector<std::string> retry_on;
  bool preemptible = false;
  bool hold = false;
};
int RunSubmit(Context& context, const SubmitOptions& options);

struct ListOptions {
  std::vector<std::string> states;
  size_t limit = 50;
  std::vector<std::string> labels;
  std::string name;
  bool mine = false;
};
int RunList(Context& context, const ListOptions& options);
struct GetOptions {
  std::string job;
  bool spec = false;
  bool resolved = false;
};
int RunGet(Context& context, const GetOptions& options);
int RunWatch(Context& context, const std::string& job, int timeout_seconds);
int RunLogs(Context& context, const std::string& job, bool follow);
int RunCancel(Context& context, const std::vector<std::string>& jobs);
int RunPause(Context& context, const std::vector<std::string>& jobs);
int RunResume(Context& context, const std::vector<std::string>& jobs);
int RunHold(Context& context, const std::vector<std::string>& jobs, const std::string& message);
int RunRelease(Context& context, const std::vector<std::string>& jobs);
struct MoveOptions {
  std::string job;
  std::string before;
  std::string behind;
  bool first = false;
  std::optional<int32_t> priority;
};
int RunMove(Context& context, const MoveOptions& options);
int RunLabel(Context& context, const std::string& job, const std::vector<std::string>& labels);
int RunQueue(Context& context);
// What runs first, then what waits in the order in which it will run.
void SortAsQueue(std::vector<v1::Job>& jobs);
struct WaitOptions {
  std::vector<std::string> jobs;
  std::string goal;  // "", ended, rest, or a state
  int timeout_seconds = 0;
};
int RunWait(Context& context, const WaitOptions& options);
struct TopOptions {
  bool once = false;
  double interval = 1;
};
int RunTop(Context& context, const TopOptions& options);
struct JobReportOptions {
  std::string job;
  std::string output;                  // "-": stdout; empty: report-<id>.html
  std::vector<std::string> questions;  // answered by base and adapter
  bool data = true;                    // ask for the data's statistics
};
int RunJobReport(Context& context, const JobReportOptions& options);
struct ImportOptions {
  std::string file;
  std::string from;    // axolotl, llama-factory; empty: guessed
  std::string output;  // empty: stdout
};
int RunImport(Context& context, const ImportOptions& options);
int RunConfigList(Context& context);
int RunConfigSet(Context& context, const std::string& name, const Target& target);
int RunConfigUse(Context& context, const std::string& name);
int RunConfigRemove(Context& context, const std::string& name);

struct PlanOptions {
  std::string file;
  std::vector<std::string> sets;
  std::string device;
};
int RunPlan(Context& context, const PlanOptions& options);
int RunDataValidate(Context& context, const std::string& file, const std::vector<std::string>& sets);
int RunDataUpload(Context& context, const std::vector<std::string>& files);

struct ModelImportOptions {
  std::string path, name;
  std::string quantize;  // "nf4": a quantised copy is written and that is registered; empty: the model as it is
  std::string output;    // where to; empty: <state>/models/NAME
};
int RunModelsImport(Context& context, const ModelImportOptions& options);
int RunModelsList(Context& context);
int RunModelsGet(Context& context, const std::string& name);
int RunModelsRemove(Context& context, const std::vector<std::string>& names);

struct GenerateOptions {
  std::string job;
  std::string model;
  bool base = false;
  bool compare = false;
  std::vector<std::string> prompts;
  std::vector<std::string> questions;
  std::vector<std::string> messages;
  std::string file;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<uint32_t> top_k;
  std::optional<uint32_t> max_new_tokens;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
};
int RunGenerate(Context& context, const GenerateOptions& options);

struct ExportOptions {
  std::string job;
  std::string output;
  std::vector<std::string> only;
};
int RunExport(Context& context, const ExportOptions& options);

struct SpecOptions {
  std::string field;
  std::string resolve;
  std::vector<std::string> sets;
  bool markdown = false;
};
int RunSpec(Context& context, const SpecOptions& options);

int RunStatus(Context& context);
struct DaemonCommandOptions {
  std::string state_dir;
  std::string program;
  int wait_seconds = 30;
  bool if_stale = false;
  std::string metrics;                 // passed on
  std::vector<std::string> arguments;  // passed on to honed as they are
};
int RunDaemonStart(Context& context, const DaemonCommandOptions& options);
int RunDaemonStop(Context& context, int wait_seconds);
int RunDaemonRestart(Context& context, const DaemonCommandOptions& options);
int RunDaemonStatus(Context& context);
int RunDoctor(Context& context);

}  // namespace hone
