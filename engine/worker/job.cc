#include "engine/worker/job.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "engine/data/report.h"
#include "engine/plan/cards.h"
#include "engine/plan/planner.h"
#include "engine/worker/exports.h"
#include "google/protobuf/util/json_util.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

std::string AbsolutePath(const std::string& path) {
  if (path.starts_with("random:")) return "random:" + AbsolutePath(path.substr(7));
  std::error_code ignored;
  return fs::absolute(path, ignored).lexically_normal().string();
}

class FolderLock {
 public:
  static absl::StatusOr<std::unique_ptr<FolderLock>> Take(const std::string& folder) {
    HONE_RETURN_IF_ERROR(MakeDirectories(folder));
    const std::string path = folder + "/.lock";
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (fd < 0) return FailedPrecondition(path, ": cannot be opened: ", std::strerror(errno));
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      ::close(fd);
      return FailedPrecondition(folder, ": another process trains there; wait for it or choose another folder");
    }
    return std::unique_ptr<FolderLock>(new FolderLock(fd));
  }
  ~FolderLock() { ::close(fd_); }

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  int fd_;
};

absl::StatusOr<v1::Plan> StoredPlan(const std::string& path) {
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  v1::Plan plan;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &plan);
  if (!status.ok()) return DataLoss(path, ": ", std::string(status.message()), "; remove it to plan anew");
  return plan;
}

// The spec of the folder must be equal; a new folder gets it.
absl::Status ClaimFolder(const std::string& folder, const PreparedRun& run) {
  const std::string path = folder + "/spec.json";
  if (!fs::exists(path)) return WriteFileDurably(path, SpecToJson(run.spec, true));
  HONE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  HONE_ASSIGN_OR_RETURN(const v1::JobSpec stored, SpecFromJson(text, path));
  if (SpecIdentity(stored) == SpecIdentity(run.spec)) return absl::OkStatus();
  return FailedPrecondition(folder, ": holds a run with another spec (", path,
                            "); choose another output folder, or remove it to start anew");
}

absl::StatusOr<v1::Plan> PlanOfRun(const PreparedRun& run, const TrainJobOptions& options, TrainEvents& events) {
  const std::string path = options.output_dir + "/plan.json";
  v1::Plan plan;
  if (options.plan.has_value() && options.plan->has_bytes()) {
    plan = *options.plan;
  } else if (fs::exists(path)) {
    HONE_ASSIGN_OR_RETURN(plan, StoredPlan(path));
  } else {
    HONE_ASSIGN_OR_RETURN(plan, PlanJob(run, {"", options.budget_bytes, options.threads,
                                              MachineCacheFolder(options.reference_cache_dir)}));
    v1::FromWorker event;
    *event.mutable_plan() = plan;
    events.Emit(event);
  }
  if (!plan.fits()) {
    std::string changes;
    for (const std::string& change : plan.changes()) changes += StrCat(changes.empty() ? "" : "; or ", change);
    return ResourceExhausted("the plan does not fit: ", plan.reason(), ". Change ", changes);
  }
  HONE_RETURN_IF_ERROR(WriteFileDurably(path, MessageToJson(plan, true)));
  return plan;
}

nlohmann::ordered_json ResultOf(const PreparedRun& run, const v1::Plan& plan, const TrainOutcome& outcome) {
  nlohmann::ordered_json result;
  result["steps"] = outcome.last_step;
  result["stopped"] = outcome.stopped;
  result["training_seconds"] = outcome.train_seconds + outcome.reference_seconds;
  result["step_seconds"] = outcome.train_seconds;
  result["reference_seconds"] = outcome.reference_seconds;
  result["tokens"] = outcome.tokens;
  result["tokens_per_second"] = outcome.train_seconds > 0 ? static_cast<double>(outcome.tokens) /
                                                                (outcome.train_seconds + outcome.reference_seconds)
                                                          : 0.0;
  result["last_step"] = nlohmann::ordered_json::parse(MessageToJson(outcome.last_record));
  if (outcome.last_eval.has_value())
    result["last_eval"] = nlohmann::ordered_json::parse(MessageToJson(*outcome.last_eval));
  result["plan"] = nlohmann::ordered_json::parse(MessageToJson(plan));
  result["memory"] = nlohmann::ordered_json::parse(MessageToJson(outcome.memory));
  result["model"] = run.files->source();
  result["model_digest"] = run.files->digest();
  result["data_sha256"] = DatasetDigest(run.data.train);
  return result;
}

absl::Status ListArtifacts(const std::string& folder, std::vector<v1::Artifact>& artifacts) {
  std::vector<std::string> names;
  for (const char* top : {"adapter", "merged", "gguf"}) {
    std::error_code error;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(folder) / top, error)) {
      if (entry.is_regular_file()) names.push_back(fs::relative(entry.path(), folder).string());
    }
  }
  for (const char* name : {"result.json", "steps.jsonl"}) names.push_back(name);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    HONE_ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(folder + "/" + name));
    v1::Artifact artifact;
    artifact.set_path(name);
    artifact.set_bytes(fs::file_size(fs::path(folder) / name));
    artifact.set_sha256(digest);
    artifacts.push_back(artifact);
  }
  return absl::OkStatus();
}

// Where an export format goes inside the output folder; empty: the adapter, which is there already.
std::string ExportPath(const std::string& format) {
  if (format == "merged") return "merged";
  if (format == "merged:f32") return "merged";  // the spec lets only one of the two be chosen
  if (format == "gguf:f16") return "gguf/model-f16.gguf";
  if (format == "gguf:q8_0") return "gguf/model-q8_0.gguf";
  return "";
}

// Of the whole machine; 0: unknown.
uint64_t AvailableHostBytes() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/meminfo", 1 << 16);
  constexpr std::string_view kKey = "MemAvailable:";
  const size_t at = text.ok() ? text->find(kKey) : std::string::npos;
  if (at == std::string::npos) return 0;
  return std::strtoull(text->c_str() + at + kKey.size(), nullptr, 10) * 1024;
}

DeviceChoice DeviceOf(const PreparedRun& run, const PlanJobOptions& options) {
  return {run.spec.run().device(), run.spec.run().precision(), options.threads, options.cache_folder};
}

bool IsCard(const std::string& device) { return !device.empty() && device != "cpu" && device != "cuda"; }

absl::StatusOr<PlanTarget> CpuTarget(const PreparedRun& run, const PlanJobOptions& options) {
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, OpenBackend(DeviceOf(run, options)));
  PlanTarget target;
  target.name = backend->name();
  target.activation_dtype = backend->ops().activation_dtype();
  target.context_bytes = CpuWorkspaceBytes(options.threads);
  target.free_bytes = backend->FreeBytes();
  const double threads =
      options.threads > 0 ? options.threads : static_cast<double>(std::max(1u, std::thread::hardware_concurrency()));
  for (double* rate :
       {&target.rates.gemm_flops, &target.rates.attention_forward_flops, &target.rates.attention_backward_flops}) {
    *rate *= threads;  // given for one
  }
  return target;
}

// A card that was measured before is not opened: others may leave no room for a context on it.
absl::StatusOr<PlanTarget> CudaTarget(const PreparedRun& run, const PlanJobOptions& options) {
  HONE_ASSIGN_OR_RETURN(const CudaCard seen, DescribeCuda());
  PlanTarget target;
  target.name = seen.name;
  target.backend = BackendKind::kCuda;
  const bool fp32 = run.spec.run().precision() == v1::PRECISION_FP32;
  target.activation_dtype = fp32 ? DType::kF32 : DType::kBF16;
  target.pinned_limit = AvailableHostBytes() / 2;
  target.free_bytes = seen.free_bytes;
  auto known = KeptCard(seen.name, seen.driver, options.cache_folder);
  if (!known.ok() || seen.free_bytes == 0) {
    const auto backend = OpenBackend(DeviceOf(run, options));
    if (!backend.ok() && seen.free_bytes == 0) return backend.status();
    known = backend.ok() ? CardOf(**backend, options.cache_folder) : KnownCard();
    // What this process holds of the card counts as free: the plan counts it.
    if (backend.ok()) target.free_bytes = (*backend)->FreeBytes() + (*backend)->ProcessBytes();
    if (!backend.ok()) known->rates = TableRates(seen.name, target.activation_dtype);
  }
  // What others take between plan and start (a desktop's windows) should not send the job back to the queue.
  constexpr uint64_t kHeadroom = uint64_t{128} << 20;
  target.free_bytes -= std::min(target.free_bytes, kHeadroom);
  target.rates = fp32 ? TableRates(seen.name, target.activation_dtype) : known->rates;
  target.context_bytes = known->opened_bytes > 0 ? known->opened_bytes + kCudaGrowthBytes : kCudaContextBytes;
  return target;
}

}  // namespace

absl::StatusOr<PreparedRun> PrepareJob(v1::JobSpec spec, const DeviceChoice& overrides,
                                       const std::string& plan_device) {
  if (!spec.has_model() || spec.model().source().empty())
    return FieldError("model.source", "required; give a path to a model");
  if (!spec.has_data() || spec.data().train().empty())
    return FieldError("data.train", "required; give a path to training rows");
  if (!IsModelPath(spec.model().source())) {
    return FieldError("model.source",
                      StrCat("'", spec.model().source(), "' is a registry name; by hand give a path (with a slash)"));
  }
  spec.mutable_model()->set_source(AbsolutePath(spec.model().source()));
  spec.mutable_data()->set_train(AbsolutePath(spec.data().train()));
  if (spec.data().has_eval()) spec.mutable_data()->set_eval(AbsolutePath(spec.data().eval()));
  DeviceChoice wanted{spec.run().device(), spec.run().precision(), overrides.threads, ""};
  if (overrides.device != v1::DEVICE_AUTO) wanted.device = overrides.device;
  if (overrides.precision != v1::PRECISION_AUTO) wanted.precision = overrides.precision;
  if (plan_device == "cpu") wanted.device = v1::DEVICE_CPU;
  if (plan_device == "cuda") wanted.device = v1::DEVICE_CUDA;
  if (IsCard(plan_device)) {
    wanted.device = v1::DEVICE_CUDA;
    if (wanted.precision != v1::PRECISION_FP32) wanted.precision = v1::PRECISION_BF16;
  } else {
    HONE_ASSIGN_OR_RETURN(wanted, ResolveDevice(wanted));
  }
  spec.mutable_run()->set_device(wanted.device);
  spec.mutable_run()->set_precision(wanted.precision);
  return Prepare(spec);
}

nlohmann::ordered_json JobReport(const PreparedRun& run) {
  ReportOptions options;
  options.kto = run.needs.mismatched;
  if (options.kto) {
    options.desirable_weight = run.spec.objective().kto().desirable_weight();
    options.undesirable_weight = run.spec.objective().kto().undesirable_weight();
  }
  nlohmann::ordered_json report = ReportToJson(MakeReport(run.rows, run.data, run.tokenizer.get(), options));
  report["steps"] = run.steps;
  for (const std::string& advice : Advice(run.spec)) report["warnings"].push_back(advice);
  return report;
}

absl::StatusOr<v1::Plan> PlanJob(const PreparedRun& run, const PlanJobOptions& options) {
  PlanTarget target;
  if (IsCard(options.device)) {
    const bool fp32 = run.spec.run().precision() == v1::PRECISION_FP32;
    HONE_ASSIGN_OR_RETURN(target, TargetOfCard(options.device, fp32 ? DType::kF32 : DType::kBF16));
  } else {
    const bool cuda = run.spec.run().device() == v1::DEVICE_CUDA;
    HONE_ASSIGN_OR_RETURN(target, cuda ? CudaTarget(run, options) : CpuTarget(run, options));
  }
  if (options.budget_bytes > 0 && target.backend == BackendKind::kCpu)
    target.free_bytes = std::min(target.free_bytes, options.budget_bytes);
  // What the daemon's own jobs hold now they will have given back when this one's turn comes.
  if (options.card_budget_bytes > 0 && target.backend == BackendKind::kCuda && !IsCard(options.device))
    target.free_bytes = options.card_budget_bytes;
  HONE_ASSIGN_OR_RETURN(v1::Plan plan, MakePlan(run, target));
  if (target.backend == BackendKind::kCpu && CudaBuilt()) {
    if (const auto card = CudaCardName(); !card.ok())
      plan.set_reason(StrCat(plan.reason(), "; no CUDA: ", card.status().message()));
  }
  return plan;
}

absl::StatusOr<std::optional<InjectedFault>> ParseInjectedFault(const std::string& flag) {
  if (flag.empty()) return std::nullopt;
  const size_t colon = flag.rfind(':');
  InjectedFault fault;
  fault.job = flag.substr(0, colon);
  char* end = nullptr;
  if (colon != std::string::npos) fault.step = std::strtoll(flag.c_str() + colon + 1, &end, 10);
  if (fault.job.empty() || fault.step < 1 || *end != '\0') {
    return InvalidArgument("--inject-fault: expected JOBNAME:STEP with a step of 1 or more, got '", flag, "'");
  }
  return fault;
}

absl::StatusOr<TrainJobResult> TrainJob(const PreparedRun& run, const TrainJobOptions& options, TrainEvents& events) {
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<FolderLock> lock, FolderLock::Take(options.output_dir));
  HONE_RETURN_IF_ERROR(ClaimFolder(options.output_dir, run));
  HONE_ASSIGN_OR_RETURN(const v1::Plan plan, PlanOfRun(run, options, events));
  HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                        OpenBackend({run.spec.run().device(), run.spec.run().precision(), options.threads,
                                     MachineCacheFolder(options.reference_cache_dir)}));
  TrainRequest request;
  request.run = &run;
  request.plan = plan;
  request.output_dir = options.output_dir;
  request.reference_cache_dir = options.reference_cache_dir;
  request.save_gradients = options.save_gradients;
  if (options.fault.has_value() && options.fault->job == run.spec.name()) {
    request.overwrite_gradients_for_tests = [step = options.fault->step, &backend](int64_t batch, std::span<float>) {
      if (batch + 1 != step) return;
      const absl::Status broken = backend->BreakForTests();
      HONE_CHECK(broken.ok(), "--inject-fault: ", broken.message());
    };
  }
  TrainJobResult result;
  HONE_ASSIGN_OR_RETURN(const TrainOutcome outcome, Train(request, *backend, events));
  result.last_step = outcome.last_step;
  result.stopped = outcome.stopped;
  if (outcome.stopped) return result;

  result.result = ResultOf(run, plan, outcome);
  const WeightQuantization quantization =
      run.spec.model().quantization() == v1::QUANTIZATION_NF4 ? WeightQuantization::kNf4 : WeightQuantization::kNone;
  uint64_t done = 0;
  for (const std::string& format : run.spec.export_()) {
    const std::string path = ExportPath(format);
    if (path.empty()) continue;
    v1::FromWorker event;
    event.mutable_progress()->set_phase(v1::PHASE_FINALIZING);
    event.mutable_progress()->set_done(done++);
    event.mutable_progress()->set_total(static_cast<uint64_t>(run.spec.export__size()));
    event.mutable_progress()->set_detail(format);
    events.Emit(event);
    HONE_ASSIGN_OR_RETURN(const nlohmann::ordered_json receipt,
                          ExportJob(*run.files, options.output_dir + "/adapter", format,
                                    options.output_dir + "/" + path, *backend, quantization));
    result.result["exports"].push_back(receipt);
  }
  HONE_RETURN_IF_ERROR(WriteFileDurably(options.output_dir + "/result.json", result.result.dump(2) + "\n"));
  HONE_RETURN_IF_ERROR(ListArtifacts(options.output_dir, result.artifacts));
  return result;
}

}  // namespace hone
