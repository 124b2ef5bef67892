// The daemon's Prometheus families (prefix hone_, base units) and the listener that serves them. Series with a job_id
// exist while the job is active and a few minutes longer, for at most kMaxJobs jobs, so that their number is bounded.
// Prometheus samples: exact values per step are in the job's steps.jsonl. This process must not link cuBLAS: its static
// TLS breaks the listener's small thread stacks.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "hone/v1/jobs.pb.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/card_metrics.h"
#include "server/cards.h"

namespace hone {

class Metrics {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMaxJobs = 16;
  explicit Metrics(Clock::duration keep_after_end = std::chrono::minutes(5));
  ~Metrics();

  // Serves on "host:port" (port 0: any free one). False, and a warning, if the address is taken: the daemon goes on.
  bool Expose(const std::string& address);
  // "127.0.0.1:9464" of the open listener, or "".
  std::string address() const { return address_; }
  std::shared_ptr<prometheus::Registry> registry() const { return registry_; }

  void SetJobs(v1::JobState state, uint64_t count);
  void CountTransition(v1::JobState from, v1::JobState to);
  void CountSubmit(const std::string& result);  // accepted, repeated, or the reason of the refusal
  void CountStoreError();
  void SetWatchStreams(size_t count);
  void SetDiskFree(uint64_t bytes);
  void SetQueueAge(double seconds);  // of the job that has waited longest; 0: none waits
  // Energy is shared among the jobs that ran on the card meanwhile, by how long each did.
  void SetCards(const std::vector<CardDetail>& cards);
  // A call that is one request and one answer is over; `method` as gRPC names it: "/hone.v1.Jobs/GetJob". Methods that
  // are not ours share one series.
  void CountCall(const std::string& method, double seconds);

  void StartJob(const v1::Job& job);
  void Step(const std::string& job_id, const v1::StepRecord& step);
  void Eval(const std::string& job_id, const v1::EvalRecord& eval);
  void Memory(const std::string& job_id, const v1::MemoryUse& memory);
  void Checkpoint(const std::string& job_id);
  void WorkerRestart(const std::string& job_id);
  void EndJob(const std::string& job_id);
  // Drops the series of jobs that ended long enough ago.
  void Prune();

 private:
  using Gauges = prometheus::Family<prometheus::Gauge>;
  using Counters = prometheus::Family<prometheus::Counter>;
  using Histograms = prometheus::Family<prometheus::Histogram>;
  struct JobSeries;

  Gauges& GaugeFamily(const char* name, const char* help);
  Counters& CounterFamily(const char* name, const char* help);
  void SetGauge(JobSeries* series, Gauges* family, double value, const std::map<std::string, std::string>& more = {});
  void AddCalls();
  void ShareEnergy(double joules, Clock::time_point from, Clock::time_point to);
  JobSeries* Find(const std::string& job_id);
  void Drop(const std::string& job_id);
  void PruneLocked();

  const Clock::duration keep_after_end_;
  std::shared_ptr<prometheus::Registry> registry_;
  Gauges& build_info_;
  Gauges& jobs_;
  Counters& transitions_;
  Counters& submits_;
  prometheus::Counter& store_errors_;
  prometheus::Counter& restarts_total_;
  prometheus::Gauge& watch_streams_;
  prometheus::Gauge& disk_free_;
  prometheus::Gauge& queue_age_;
  Histograms& call_seconds_;
  CardMetrics cards_;
  Gauges& job_info_;
  Gauges& step_;
  Gauges& steps_planned_;
  Gauges& epoch_;
  Gauges& progress_;
  Gauges& eta_;
  Gauges& loss_;
  Gauges& learning_rate_;
  Gauges& grad_norm_;
  Gauges& kto_kl_;
  Gauges& rewards_chosen_;
  Gauges& rewards_rejected_;
  Gauges& rewards_margins_;
  Gauges& tokens_per_second_;
  Counters& tokens_;
  Histograms& step_seconds_;
  Gauges& memory_planned_;
  Gauges& memory_actual_;
  Gauges& device_memory_;
  Gauges& pinned_memory_;
  Gauges& last_checkpoint_;
  Counters& job_restarts_;
  Counters& job_energy_;

  std::mutex mutex_;
  std::optional<Clock::time_point> cards_read_;
  std::map<std::string, prometheus::Histogram*> calls_;  // by gRPC's name; never changed after construction
  prometheus::Histogram* other_calls_ = nullptr;
  std::map<std::string, std::unique_ptr<JobSeries>> series_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_;
};

}  // namespace hone
