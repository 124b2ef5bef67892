#include "server/metrics.h"

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "hone/v1/daemon.pb.h"
#include "hone/v1/datasets.pb.h"
#include "hone/v1/models.pb.h"
#include "proto/base/build_info.h"
#include "proto/base/status.h"
#include "server/errors.h"
#include "server/store/states.h"
#include "spdlog/spdlog.h"

namespace hone {
namespace {

constexpr size_t kExposerThreads = 2;
constexpr size_t kMaxLabelBytes = 128;

const prometheus::Histogram::BucketBoundaries& StepBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,  2.5,
                                                                   5,    10,    15,   30,  60,   120, 300};
  return kBuckets;
}

const prometheus::Histogram::BucketBoundaries& CallBuckets() {
  static const prometheus::Histogram::BucketBoundaries kBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                                   0.25,  0.5,    1,     2.5,  10,    60};
  return kBuckets;
}

const char* ObjectiveName(const v1::JobSpec& spec) {
  switch (spec.objective().kind_case()) {
    case v1::ObjectiveSpec::kSft:
      return "sft";
    case v1::ObjectiveSpec::kKto:
      return "kto";
    default:
      return "unknown";
  }
}

}  // namespace

// The series of one job, so that they can be taken away again.
struct Metrics::JobSeries {
  std::string id;
  std::vector<std::pair<Gauges*, prometheus::Gauge*>> gauges;
  prometheus::Counter* tokens = nullptr;
  prometheus::Counter* restarts = nullptr;
  prometheus::Histogram* step_seconds = nullptr;
  prometheus::Counter* energy = nullptr;
  bool on_card = false;
  Clock::time_point started;
  std::optional<Clock::time_point> ended;
};

Metrics::Gauges& Metrics::GaugeFamily(const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_);
}

Metrics::Counters& Metrics::CounterFamily(const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_);
}

Metrics::Metrics(Clock::duration keep_after_end)
    : keep_after_end_(keep_after_end),
      registry_(std::make_shared<prometheus::Registry>()),
      build_info_(GaugeFamily("hone_build_info", "Version and build of the daemon; always 1.")),
      jobs_(GaugeFamily("hone_jobs", "Jobs in the store by state.")),
      transitions_(CounterFamily("hone_job_transitions_total", "State changes of jobs.")),
      submits_(CounterFamily("hone_submit_requests_total", "CreateJob requests by result.")),
      store_errors_(CounterFamily("hone_store_errors_total", "Reads and writes of the store that failed.").Add({})),
      restarts_total_(CounterFamily("hone_worker_restarts_total", "Workers started again after a crash.").Add({})),
      watch_streams_(GaugeFamily("hone_watch_streams", "Open Watch streams.").Add({})),
      disk_free_(GaugeFamily("hone_disk_free_bytes", "Free bytes on the disk of the state folder.").Add({})),
      queue_age_(GaugeFamily("hone_queue_oldest_age_seconds",
                             "How long the job that waits longest has waited, jobs that wait for others left out.")
                     .Add({})),
      call_seconds_(prometheus::BuildHistogram()
                        .Name("hone_rpc_seconds")
                        .Help("Duration of calls that are one request and one answer.")
                        .Register(*registry_)),
      cards_(registry_.get()),
      job_info_(GaugeFamily("hone_job_info", "What an active job is; always 1.")),
      step_(GaugeFamily("hone_job_step", "Newest finished optimiser step.")),
      steps_planned_(GaugeFamily("hone_job_steps_planned", "Optimiser steps of the whole run.")),
      epoch_(GaugeFamily("hone_job_epoch", "Passes over the training rows so far.")),
      progress_(GaugeFamily("hone_job_progress_ratio", "Share of the steps that is done.")),
      eta_(GaugeFamily("hone_job_eta_seconds", "Expected time to the last step.")),
      loss_(GaugeFamily("hone_job_loss", "Loss of the newest step or evaluation.")),
      learning_rate_(GaugeFamily("hone_job_learning_rate", "Learning rate of the newest step.")),
      grad_norm_(GaugeFamily("hone_job_grad_norm", "Global gradient norm of the newest step, before clipping.")),
      kto_kl_(GaugeFamily("hone_job_kto_kl", "KTO: KL estimate of the newest step.")),
      rewards_chosen_(GaugeFamily("hone_job_kto_rewards_chosen", "KTO: mean reward of desirable rows.")),
      rewards_rejected_(GaugeFamily("hone_job_kto_rewards_rejected", "KTO: mean reward of undesirable rows.")),
      rewards_margins_(GaugeFamily("hone_job_kto_rewards_margins", "KTO: chosen minus rejected reward.")),
      tokens_per_second_(GaugeFamily("hone_job_tokens_per_second", "Policy tokens per second of the newest step.")),
      tokens_(CounterFamily("hone_job_tokens_total", "Policy tokens computed, repeats after a restart included.")),
      step_seconds_(prometheus::BuildHistogram()
                        .Name("hone_job_step_seconds")
                        .Help("Duration of optimiser steps.")
                        .Register(*registry_)),
      memory_planned_(GaugeFamily("hone_job_memory_planned_bytes", "Planned size of each memory arena.")),
      memory_actual_(GaugeFamily("hone_job_memory_actual_bytes", "High-water mark of each memory arena.")),
      device_memory_(GaugeFamily("hone_job_device_memory_bytes",
                                 "Device memory of a job's worker: kind planned, or actual by the driver.")),
      pinned_memory_(GaugeFamily("hone_job_pinned_memory_bytes", "Page-locked host memory of a job's worker.")),
      last_checkpoint_(
          GaugeFamily("hone_job_last_checkpoint_timestamp_seconds", "When the newest checkpoint was saved.")),
      job_restarts_(
          CounterFamily("hone_job_worker_restarts_total", "Workers of this job started again after a crash.")),
      job_energy_(CounterFamily("hone_job_energy_joules_total",
                                "The job's share of the energy that its card took while it ran.")) {
  build_info_.Add({{"version", std::string(BuildVersion())}, {"build_id", std::string(BuildId())}}).Set(1);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  GaugeFamily("hone_start_timestamp_seconds", "When the daemon started.")
      .Add({})
      .Set(std::chrono::duration<double>(now).count());
  AddCalls();
  for (int state = v1::JobState_MIN + 1; state <= v1::JobState_MAX; ++state) {
    SetJobs(static_cast<v1::JobState>(state), 0);
  }
}

Metrics::~Metrics() = default;

bool Metrics::Expose(const std::string& address) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, kExposerThreads);
    exposer->RegisterCollectable(registry_);
    const std::vector<int> ports = exposer->GetListeningPorts();
    address_ = address;
    if (!ports.empty()) address_ = StrCat(address.substr(0, address.rfind(':')), ":", ports.front());
    exposer_ = std::move(exposer);
    return true;
  } catch (const std::exception& error) {
    spdlog::warn("metrics: cannot serve on {}: {}; going on without (--metrics HOST:PORT or off)", address,
                 error.what());
    return false;
  }
}

void Metrics::SetJobs(v1::JobState state, uint64_t count) {
  jobs_.Add({{"state", std::string(StateName(state))}}).Set(static_cast<double>(count));
}

void Metrics::CountTransition(v1::JobState from, v1::JobState to) {
  if (from != v1::JOB_STATE_UNSPECIFIED) jobs_.Add({{"state", std::string(StateName(from))}}).Decrement();
  jobs_.Add({{"state", std::string(StateName(to))}}).Increment();
  transitions_.Add({{"from", std::string(StateName(from))}, {"to", std::string(StateName(to))}}).Increment();
}

void Metrics::CountSubmit(const std::string& result) { submits_.Add({{"result", result}}).Increment(); }
void Metrics::CountStoreError() { store_errors_.Increment(); }
void Metrics::SetWatchStreams(size_t count) { watch_streams_.Set(static_cast<double>(count)); }
void Metrics::SetDiskFree(uint64_t bytes) { disk_free_.Set(static_cast<double>(bytes)); }

void Metrics::SetQueueAge(double seconds) { queue_age_.Set(seconds); }

// Every method with one request and one answer has its series from the start: their number is the API's.
void Metrics::AddCalls() {
  const google::protobuf::FileDescriptor* const files[] = {
      v1::GetStatusRequest::descriptor()->file(), v1::GetBlobRequest::descriptor()->file(),
      v1::GetJobRequest::descriptor()->file(), v1::GetModelRequest::descriptor()->file()};
  for (const google::protobuf::FileDescriptor* file : files) {
    for (int i = 0; i < file->service_count(); ++i) {
      for (int k = 0; k < file->service(i)->method_count(); ++k) {
        const google::protobuf::MethodDescriptor& method = *file->service(i)->method(k);
        if (method.client_streaming() || method.server_streaming()) continue;
        const std::string label = StrCat(method.service()->name(), "/", method.name());
        calls_[StrCat("/", method.service()->full_name(), "/", method.name())] =
            &call_seconds_.Add({{"method", label}}, CallBuckets());
      }
    }
  }
  other_calls_ = &call_seconds_.Add({{"method", "other"}}, CallBuckets());
}

void Metrics::CountCall(const std::string& method, double seconds) {
  const auto found = calls_.find(method);
  (found == calls_.end() ? other_calls_ : found->second)->Observe(seconds);
}

void Metrics::SetCards(const std::vector<CardDetail>& cards) {
  std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now(), before = cards_read_.value_or(now);
  cards_read_ = now;
  const std::vector<double> joules = cards_.Update(cards, std::chrono::duration<double>(now - before).count());
  if (!joules.empty()) ShareEnergy(joules.front(), before, now);  // workers use the first card
}

// Each job's part is the time it ran within the interval over the whole interval or, if several ran, over the sum of
// their times: an idle card's energy is nobody's.
void Metrics::ShareEnergy(double joules, Clock::time_point from, Clock::time_point to) {
  double sum = 0;
  std::vector<std::pair<JobSeries*, double>> shares;
  for (const auto& [id, series] : series_) {
    if (!series->on_card) continue;
    const Clock::time_point begin = std::max(from, series->started), end = std::min(to, series->ended.value_or(to));
    const double seconds = std::chrono::duration<double>(end - begin).count();
    if (seconds <= 0) continue;
    shares.emplace_back(series.get(), seconds);
    sum += seconds;
  }
  sum = std::max(sum, std::chrono::duration<double>(to - from).count());
  for (const auto& [series, seconds] : shares) series->energy->Increment(joules * seconds / sum);
}

Metrics::JobSeries* Metrics::Find(const std::string& job_id) {
  const auto found = series_.find(job_id);
  return found == series_.end() ? nullptr : found->second.get();
}

void Metrics::SetGauge(JobSeries* series, Gauges* family, double value,
                       const std::map<std::string, std::string>& more) {
  std::map<std::string, std::string> labels = more;
  labels["job_id"] = series->id;
  prometheus::Gauge& gauge = family->Add(labels);  // the same series if it is there
  const std::pair<Gauges*, prometheus::Gauge*> entry(family, &gauge);
  if (std::find(series->gauges.begin(), series->gauges.end(), entry) == series->gauges.end()) {
    series->gauges.push_back(entry);
  }
  gauge.Set(value);
}

void Metrics::StartJob(const v1::Job& job) {
  std::lock_guard lock(mutex_);
  PruneLocked();
  std::unique_ptr<JobSeries>& series = series_[job.id()];
  if (series != nullptr) {
    series->started = Clock::now();
    series->ended.reset();
    return;
  }
  series = std::make_unique<JobSeries>();
  series->id = job.id();
  series->started = Clock::now();
  series->on_card = !job.plan().device().empty() && !job.plan().device().starts_with("cpu");
  series->energy = &job_energy_.Add({{"job_id", job.id()}});
  series->tokens = &tokens_.Add({{"job_id", job.id()}});
  series->restarts = &job_restarts_.Add({{"job_id", job.id()}});
  series->step_seconds = &step_seconds_.Add({{"job_id", job.id()}}, StepBuckets());
  SetGauge(series.get(), &job_info_, 1,
           {{"name", ToValidUtf8(job.display_name(), kMaxLabelBytes)},
            {"model", ToValidUtf8(job.spec().model().source(), kMaxLabelBytes)},
            {"method", ObjectiveName(job.resolved_spec())}});
}

void Metrics::Step(const std::string& job_id, const v1::StepRecord& step) {
  std::lock_guard lock(mutex_);
  JobSeries* series = Find(job_id);
  if (series == nullptr) return;
  SetGauge(series, &step_, static_cast<double>(step.step()));
  SetGauge(series, &steps_planned_, static_cast<double>(step.steps()));
  SetGauge(series, &epoch_, step.epoch());
  if (step.steps() > 0) {
    SetGauge(series, &progress_, static_cast<double>(step.step()) / static_cast<double>(step.steps()));
    const uint64_t left = step.steps() > step.step() ? step.steps() - step.step() : 0;
    SetGauge(series, &eta_, static_cast<double>(left) * step.seconds());
  }
  SetGauge(series, &loss_, step.loss(), {{"split", "train"}});
  SetGauge(series, &learning_rate_, step.learning_rate());
  SetGauge(series, &grad_norm_, step.grad_norm());
  SetGauge(series, &tokens_per_second_, step.tokens_per_second());
  if (step.has_kl()) SetGauge(series, &kto_kl_, step.kl());
  if (step.has_rewards_chosen()) SetGauge(series, &rewards_chosen_, step.rewards_chosen());
  if (step.has_rewards_rejected()) SetGauge(series, &rewards_rejected_, step.rewards_rejected());
  if (step.has_rewards_margins()) SetGauge(series, &rewards_margins_, step.rewards_margins());
  series->tokens->Increment(static_cast<double>(step.tokens()));
  series->step_seconds->Observe(step.seconds());
}

void Metrics::Eval(const std::string& job_id, const v1::EvalRecord& eval) {
  std::lock_guard lock(mutex_);
  if (JobSeries* series = Find(job_id)) SetGauge(series, &loss_, eval.loss(), {{"split", "eval"}});
}

void Metrics::Memory(const std::string& job_id, const v1::MemoryUse& memory) {
  std::lock_guard lock(mutex_);
  JobSeries* series = Find(job_id);
  if (series == nullptr) return;
  constexpr int kMaxArenas = 16;
  for (int i = 0; i < std::min(memory.arenas_size(), kMaxArenas); ++i) {
    const v1::ArenaUse& arena = memory.arenas(i);
    const std::map<std::string, std::string> label = {{"arena", ToValidUtf8(arena.name(), kMaxLabelBytes)}};
    SetGauge(series, &memory_planned_, static_cast<double>(arena.planned_bytes()), label);
    SetGauge(series, &memory_actual_, static_cast<double>(arena.actual_bytes()), label);
  }
  if (memory.process_bytes() == 0) return;  // on the CPU the driver has no say
  SetGauge(series, &device_memory_, static_cast<double>(memory.planned_bytes()), {{"kind", "planned"}});
  SetGauge(series, &device_memory_, static_cast<double>(memory.process_bytes()), {{"kind", "actual"}});
  SetGauge(series, &pinned_memory_, static_cast<double>(memory.pinned_bytes()), {});
}

void Metrics::Checkpoint(const std::string& job_id) {
  std::lock_guard lock(mutex_);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  if (JobSeries* series = Find(job_id)) {
    SetGauge(series, &last_checkpoint_, std::chrono::duration<double>(now).count());
  }
}

void Metrics::WorkerRestart(const std::string& job_id) {
  std::lock_guard lock(mutex_);
  restarts_total_.Increment();
  if (JobSeries* series = Find(job_id)) series->restarts->Increment();
}

void Metrics::EndJob(const std::string& job_id) {
  std::lock_guard lock(mutex_);
  if (JobSeries* series = Find(job_id)) series->ended = Clock::now();
}

void Metrics::Prune() {
  std::lock_guard lock(mutex_);
  PruneLocked();
}

void Metrics::PruneLocked() {
  std::vector<std::pair<Clock::time_point, std::string>> ended;
  for (const auto& [id, series] : series_) {
    if (series != nullptr && series->ended.has_value()) ended.emplace_back(*series->ended, id);
  }
  std::sort(ended.begin(), ended.end());
  const Clock::time_point limit = Clock::now() - keep_after_end_;
  for (const auto& [when, id] : ended) {
    if (when <= limit || series_.size() >= kMaxJobs) Drop(id);
  }
}

void Metrics::Drop(const std::string& job_id) {
  JobSeries* series = Find(job_id);
  for (const auto& [family, gauge] : series->gauges) family->Remove(gauge);
  tokens_.Remove(series->tokens);
  job_restarts_.Remove(series->restarts);
  job_energy_.Remove(series->energy);
  step_seconds_.Remove(series->step_seconds);
  series_.erase(job_id);
}

}  // namespace hone
