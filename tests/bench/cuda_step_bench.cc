// A training run of a real model's shape on the card, as a job runs it (data, plan, reference pass, trainer), with
// noise for weights and tokens: tokens per second, memory by the driver, where a step's time goes, and what share of
// the plan's roofline that is. The last step is timed operation by operation with CUDA events; the others carry no
// timing.
//   cuda_step_bench --shape tests/bench/shapes/llama-3.1-8b --batch 2,2048 [--objective kto --batch 8,512,ln=1]
//   [options]
//
// Roofline: the serial sum of a step's floors. FLOPs of all products (adapters' too) over the best of a few large
// products timed in this run; attention's useful FLOPs over the best deterministic rate known for such lengths (on an
// H100: the table below, or what the step itself reached where that is more); all other bytes, counted as DryOps counts
// them, over a large device copy timed in this run.
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

#include "CLI/CLI.hpp"
#include "engine/plan/planner.h"
#include "engine/train/micro_batches.h"
#include "engine/worker/job.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/cuda/cuda_ops.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"
#include "tests/bench/noise_model.h"
#include "tests/bench/timed_backend.h"

namespace hone {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double Since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Options {
  std::string shape, batch = "2,2048", objective = "sft", policy = "fastest", quantization = "nf4", optimizer = "adamw";
  std::string recompute, target = "all-linear";
  int64_t r = 16, steps = 8, warmup = 3, budget_mib = 0, micro_batch = 0, head_chunk = 0, seed = 0;
  int64_t offload = -1, mlp_chunk = -1, decoded_layers = -1, embedding_on_host = -1, row_multiple = -1;
  std::string json, cache;
  bool products = false;
};

// What the driver says is in use on the whole card, MiB; -1: unknown.
int64_t CardMib() {
  FILE* pipe = ::popen("nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null", "r");
  if (pipe == nullptr) return -1;
  long long value = -1;
  if (std::fscanf(pipe, "%lld", &value) != 1) value = -1;
  ::pclose(pipe);
  return value;
}

// --- Rows ------------------------------------------------------------------------------------------------------------

struct Batch {
  int64_t rows = 2, length = 2048;
  bool lognormal = false;
};

absl::StatusOr<Batch> ParseBatch(const std::string& text) {
  Batch batch;
  long long rows = 0, length = 0;
  if (std::sscanf(text.c_str(), "%lld,%lld", &rows, &length) != 2 || rows < 1 || length < 8)
    return InvalidArgument("--batch: ", text, " is not ROWS,TOKENS[,ln=1]");
  batch.rows = rows;
  batch.length = length;
  batch.lognormal = text.find("ln=1") != std::string::npos;
  return batch;
}

// SFT: whole rows trained. KTO: a prompt and a completion of half the length each, or both lognormal with that mean,
// sigma 0.6, from 4 to 900 tokens, as the peers' bench draws them; labels alternate.
absl::Status WriteRows(const std::string& path, const Options& options, const Batch& batch, int64_t vocabulary) {
  std::mt19937_64 random(options.seed);
  std::normal_distribution<double> normal;
  auto ids = [&](int64_t count) {
    std::vector<int64_t> out(count);
    for (int64_t& id : out) id = 3 + static_cast<int64_t>(random() % static_cast<uint64_t>(vocabulary - 3));
    return out;
  };
  const double half = static_cast<double>(batch.length) / 2;
  auto draw = [&]() -> int64_t {
    if (!batch.lognormal) return batch.length / 2;
    return std::clamp<int64_t>(std::llround(std::exp(std::log(half) - 0.18 + 0.6 * normal(random))), 4, 900);
  };
  std::ofstream file(path);
  const int64_t rows = batch.rows * (options.warmup + options.steps + 1);
  for (int64_t i = 0; i < rows; ++i) {
    nlohmann::json row;
    if (options.objective == "sft") {
      row["ids"] = ids(batch.length);
      row["trained"] = {{1, batch.length}};
    } else {
      row["prompt_ids"] = ids(draw());
      row["completion_ids"] = ids(draw());
      row["label"] = i % 2 == 0;
    }
    file << row.dump() << "\n";
  }
  file.flush();
  if (!file) return FailedPrecondition(path, ": could not be written");
  return absl::OkStatus();
}

absl::StatusOr<PreparedRun> MakeRun(const Options& options, const Batch& batch, const std::string& folder) {
  const std::string source = "random:" + options.shape + "/config.json";
  HONE_ASSIGN_OR_RETURN(auto shape, ModelFiles::Open(source));
  HONE_RETURN_IF_ERROR(WriteRows(folder + "/rows.jsonl", options, batch, shape->config().vocab_size));
  const std::string yaml = StrCat(
      "model: {source: '", source, "', quantization: ", options.quantization, "}\nadapter: {lora: {r: ", options.r,
      ", lora_alpha: ", options.r, "}}\nobjective: ", options.objective == "sft" ? "{sft: {}}" : "{kto: {}}",
      "\ndata: {train: ", folder, "/rows.jsonl, max_length: ", std::max<int64_t>(batch.length, 2048),
      ", max_prompt_length: 1024, order: sequential}\nbatch: {examples: ", batch.rows,
      "}\noptimizer: {name: ", options.optimizer, ", learning_rate: 1e-5}\nmemory: {policy: ", options.policy,
      options.micro_batch > 0 ? StrCat(", micro_batch_tokens: ", options.micro_batch) : std::string(),
      "}\nrun: {max_steps: ", options.warmup + options.steps + 1, ", save_steps: 100000, device: cuda}\n");
  HONE_ASSIGN_OR_RETURN(const v1::JobSpec spec, SpecFromYaml(yaml, "bench"));
  HONE_ASSIGN_OR_RETURN(PreparedRun run, PrepareJob(spec, {}));
  if (options.quantization == "nf4") run.files = MakeNoiseModel(std::move(run.files));
  return run;
}

// The plan's choices replaced by those given by hand; bytes by a dry run of the largest launches.
absl::Status Override(const Options& options, const PreparedRun& run, v1::Plan& plan) {
  bool changed = false;
  auto set = [&](bool wanted, const auto& apply) {
    if (wanted) apply(), changed = true;
  };
  set(!options.recompute.empty(), [&] { plan.set_recompute(options.recompute); });
  set(options.head_chunk > 0, [&] { plan.set_head_chunk_rows(static_cast<uint32_t>(options.head_chunk)); });
  set(options.offload >= 0, [&] { plan.set_offload_inputs(options.offload != 0); });
  set(options.mlp_chunk >= 0, [&] { plan.set_mlp_chunk_rows(static_cast<uint32_t>(options.mlp_chunk)); });
  set(options.decoded_layers >= 0, [&] { plan.set_decoded_layers(static_cast<uint32_t>(options.decoded_layers)); });
  set(options.embedding_on_host >= 0, [&] { plan.set_embedding_on_host(options.embedding_on_host != 0); });
  set(options.row_multiple >= 0, [&] { plan.set_row_multiple(static_cast<uint32_t>(options.row_multiple)); });
  if (!changed) return absl::OkStatus();
  HONE_ASSIGN_OR_RETURN(const SessionOptions session_options, OptionsFromPlan(run, plan));
  const auto ops = MakeDryOps(BackendKind::kCuda, DType::kBF16);
  ArenaSet arenas = ArenaSet::Dry();
  arenas.context_bytes = plan.bytes().context();
  HONE_ASSIGN_OR_RETURN(auto session, TrainSession::Create(*run.files, session_options, *ops, arenas));
  session->ForwardBackward(LargestBatch(session_options.limits.train), [](auto, auto) {});
  if (session_options.limits.forward.tokens > 0) {
    const PackedBatch batch = LargestBatch(session_options.limits.forward);
    std::vector<float> log_probs(batch.targets.size());
    session->LogProbs(batch, AdapterMode::kOn, log_probs);
  }
  session->ZeroGradients();
  session->OptimizerStep(0, 0);
  *plan.mutable_bytes() = arenas.HighWater();
  plan.set_pinned_bytes(arenas.PinnedHighWater());
  plan.set_reason("by hand");
  plan.set_fits(true);
  return absl::OkStatus();
}

// --- The run ---------------------------------------------------------------------------------------------------------

class BenchEvents : public TrainEvents {
 public:
  BenchEvents(TimedOps& ops, Backend& backend, int64_t event_step, Clock::time_point start)
      : ops_(ops), backend_(backend), event_step_(event_step), start_(start) {}
  void Emit(const v1::FromWorker& event) override {
    if (event.has_memory()) memory = event.memory();
    if (event.has_progress()) Log(event.progress());
    if (event.has_progress() && event.progress().phase() == v1::PHASE_TRAINING && load_seconds == 0)
      load_seconds = Since(start_);
    if (!event.has_step()) return;
    steps.push_back(event.step());
    process_bytes = std::max(process_bytes, backend_.ProcessBytes());
    const auto done = static_cast<int64_t>(steps.size());
    if (done == 1) first_step_seconds = Since(start_);
    if (done == event_step_ + 1) ops_.Record(false), records = ops_.Take(), card_mib = CardMib();
    if (done == event_step_) ops_.Record(true);
  }
  TrainControl Poll() override { return TrainControl::kContinue; }

  std::string phases;  // "loading 0.8 s, ...": when each began
  std::vector<v1::StepRecord> steps;
  std::vector<OpRecord> records;
  v1::MemoryUse memory;
  uint64_t process_bytes = 0;
  int64_t card_mib = -1;
  double load_seconds = 0, first_step_seconds = 0;

 private:
  // Reading weights begins when memory has been reserved.
  void Log(const v1::Progress& progress) {
    std::string name = v1::Phase_Name(progress.phase());
    if (progress.phase() == v1::PHASE_LOADING && progress.done() > 0) name = "weights being read";
    if (name == last_phase_) return;
    char text[64];
    std::snprintf(text, sizeof(text), " %.2f s", Since(start_));
    phases += StrCat(phases.empty() ? "" : ", ", name, text);
    last_phase_ = name;
  }

  TimedOps& ops_;
  Backend& backend_;
  std::string last_phase_;
  int64_t event_step_;
  Clock::time_point start_;
};

// --- Ceilings --------------------------------------------------------------------------------------------------------

struct Ceilings {
  double gemm_flops = 0, copy_bytes = 0, forward_flops = 0, backward_flops = 0;
  double sustained_gemm_flops =
      0;  // after a second under load: large cards lower their clocks to keep their power limit
};

double MedianSeconds(cudaStream_t stream, int count, const std::function<void()>& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  for (int i = 0; i < 3; ++i) work();
  std::vector<double> seconds;
  for (int batch = 0; batch < 7; ++batch) {
    cudaEventRecord(begin, stream);
    for (int i = 0; i < count; ++i) work();
    cudaEventRecord(end, stream);
    HONE_CHECK(cudaEventSynchronize(end) == cudaSuccess, "a kernel failed");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    seconds.push_back(milliseconds * 1e-3 / count);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Values near normal in the operands' own dtype: the power a product draws depends on them.
void FillNoise(Ops& ops, Tensor t) {
  constexpr int64_t kCount = int64_t{1} << 22;
  std::vector<uint16_t> host(kCount);
  std::mt19937_64 random(9);
  for (uint16_t& x : host) {
    const auto sum = static_cast<float>(static_cast<int>(random() % 511) + static_cast<int>(random() % 511) - 510);
    const float value = sum / 208.0f;
    uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    x = static_cast<uint16_t>(bits >> 16);
  }
  Tensor flat{t.data, t.dtype, 1, t.elements(), t.elements()};
  for (int64_t at = 0; at < flat.cols; at += kCount) {
    const int64_t count = std::min(kCount, flat.cols - at);
    Tensor part = flat.Cols(at, count);
    part.pitch = part.cols;
    ops.Upload(host.data(), part);
  }
  ops.Synchronize();
}

struct ProductShape {
  int64_t m, n, k;
  double flops() const { return 2.0 * m * n * k; }
};
constexpr ProductShape kLargeProducts[] = {
    {4096, 4096, 14336}, {4096, 14336, 4096}, {2048, 14336, 4096}, {8192, 4096, 4096}};

// The best of the large products' rates when they take turns for as long as a few steps do, the first half left out.
double SustainedRate(Ops& ops, Arena& arena, cudaStream_t stream) {
  constexpr int kShapes = std::size(kLargeProducts), kRounds = 500;
  ArenaScope scope(arena);
  Tensor a[kShapes], b[kShapes], out[kShapes];
  for (int i = 0; i < kShapes; ++i) {
    const auto [m, n, k] = kLargeProducts[i];
    a[i] = arena.AllocateTensor(DType::kBF16, m, k), b[i] = arena.AllocateTensor(DType::kBF16, n, k);
    out[i] = arena.AllocateTensor(DType::kBF16, m, n);
    FillNoise(ops, a[i]), FillNoise(ops, b[i]);
  }
  std::vector<cudaEvent_t> events(kRounds * kShapes + 1);
  for (cudaEvent_t& event : events) cudaEventCreate(&event);
  cudaEventRecord(events[0], stream);
  for (int i = 0; i + 1 < static_cast<int>(events.size()); ++i) {
    const int s = i % kShapes;
    ops.Matmul(a[s], Transpose::kNo, b[s], Transpose::kYes, out[s], 1, 0);
    cudaEventRecord(events[i + 1], stream);
  }
  HONE_CHECK(cudaEventSynchronize(events.back()) == cudaSuccess, "a kernel failed");
  double seconds[kShapes] = {}, best = 0;
  for (int i = kRounds / 2 * kShapes; i < kRounds * kShapes; ++i) {
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, events[i], events[i + 1]);
    seconds[i % kShapes] += milliseconds * 1e-3;
  }
  for (int s = 0; s < kShapes; ++s) best = std::max(best, kLargeProducts[s].flops() * (kRounds / 2) / seconds[s]);
  for (const cudaEvent_t event : events) cudaEventDestroy(event);
  return best;
}

absl::StatusOr<Ceilings> Measure(Backend& backend) {
  Ceilings c;
  HONE_ASSIGN_OR_RETURN(const auto block, backend.Reserve(uint64_t{1} << 30));
  Arena arena("ceilings", block->data(), block->size());
  const cudaStream_t stream = static_cast<CudaOps&>(backend.ops()).stream();
  c.sustained_gemm_flops = SustainedRate(backend.ops(), arena, stream);
  for (const ProductShape s : kLargeProducts) {
    ArenaScope scope(arena);
    const Tensor a = arena.AllocateTensor(DType::kBF16, s.m, s.k), b = arena.AllocateTensor(DType::kBF16, s.n, s.k);
    const Tensor out = arena.AllocateTensor(DType::kBF16, s.m, s.n);
    FillNoise(backend.ops(), a), FillNoise(backend.ops(), b);
    const double seconds =
        MedianSeconds(stream, 6, [&] { backend.ops().Matmul(a, Transpose::kNo, b, Transpose::kYes, out, 1, 0); });
    c.gemm_flops = std::max(c.gemm_flops, s.flops() / seconds);
  }
  const int64_t half = int64_t{1} << 29;
  auto* base = static_cast<char*>(block->data());
  const double seconds =
      MedianSeconds(stream, 4, [&] { cudaMemcpyAsync(base + half, base, half, cudaMemcpyDeviceToDevice, stream); });
  c.copy_bytes = 2.0 * half / seconds;
  return c;
}

// Deterministic attention on an H100, d 128, TFLOP/s by mean document length, measured (cuDNN, ragged or dense).
double KnownRate(double length, bool backward) {
  constexpr double kLengths[] = {390, 1024, 2048, 8192};
  constexpr double kForward[] = {230, 375, 523, 564}, kBackward[] = {168, 260, 354, 428};
  const double* rates = backward ? kBackward : kForward;
  if (length <= kLengths[0]) return rates[0] * 1e12;
  for (int i = 1; i < 4; ++i) {
    if (length > kLengths[i]) continue;
    const double at = std::log2(length / kLengths[i - 1]) / std::log2(kLengths[i] / kLengths[i - 1]);
    return (rates[i - 1] + at * (rates[i] - rates[i - 1])) * 1e12;
  }
  return rates[3] * 1e12;
}

// --- Report ----------------------------------------------------------------------------------------------------------

struct PartSum {
  int64_t calls = 0;
  double seconds = 0, floor = 0;
  DryCounts counts;
};

double FloorOf(const OpRecord& r, const Ceilings& c) {
  const double attention = r.part == OpPart::kAttentionBackward ? c.backward_flops : c.forward_flops;
  double floor = r.counts.gemm_flops / c.gemm_flops + r.counts.attention_flops / attention;
  if (r.part != OpPart::kTransfer) floor += r.counts.bytes / c.copy_bytes;
  return floor;
}

std::array<PartSum, kOpParts> SumParts(const std::vector<OpRecord>& records, const Ceilings& c) {
  std::array<PartSum, kOpParts> sums;
  for (const OpRecord& r : records) {
    PartSum& s = sums[static_cast<int>(r.part)];
    ++s.calls;
    s.seconds += r.end - r.begin;
    s.floor += FloorOf(r, c);
    s.counts.gemm_flops += r.counts.gemm_flops;
    s.counts.attention_flops += r.counts.attention_flops;
    s.counts.bytes += r.counts.bytes;
    s.counts.transfer_bytes += r.counts.transfer_bytes;
  }
  return sums;
}

void PrintOps(const std::vector<OpRecord>& records, const Ceilings& c, bool products) {
  struct Row {
    int64_t calls = 0;
    double seconds = 0, floor = 0, flops = 0, bytes = 0;
  };
  std::map<std::string, Row> rows;
  for (const OpRecord& r : records) {
    std::string name = r.name;
    if (r.m > 0 && products) {
      name = StrCat(r.name, " ", r.m, " ", r.n, " ", r.k, r.ta ? " t" : " n", r.tb ? "t" : "n");
    } else if (r.m > 0) {
      name = StrCat(r.name, " (", OpPartName(r.part), ")");
    }
    Row& row = rows[name];
    ++row.calls;
    row.seconds += r.end - r.begin;
    row.floor += FloorOf(r, c);
    row.flops += r.counts.gemm_flops + r.counts.attention_flops;
    row.bytes += r.counts.bytes;
  }
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [name, row] : rows) order.emplace_back(row.seconds, name);
  std::sort(order.rbegin(), order.rend());
  for (size_t i = 0; i < std::min<size_t>(order.size(), 26); ++i) {
    const Row& row = rows[order[i].second];
    std::printf("    %-44s %6lld x %8.3f ms  %7.1f TFLOP/s %6.0f GB/s  %5.1f%% of floor\n", order[i].second.c_str(),
                static_cast<long long>(row.calls), 1e3 * row.seconds, row.flops / row.seconds / 1e12,
                row.flops > 0 ? 0.0 : row.bytes / row.seconds / 1e9, 100 * row.floor / row.seconds);
  }
}

double MeanDocument(const PreparedRun& run) {
  double tokens = 0;
  for (const Example& e : run.data.train.examples) tokens += e.length();
  return tokens / static_cast<double>(run.data.train.examples.size());
}

absl::Status Print(const Options& options, const PreparedRun& run, const v1::Plan& plan, const TrainOutcome& outcome,
                   const BenchEvents& events, Ceilings c, int64_t idle_mib, const std::string& card) {
  std::vector<double> seconds, rates;
  for (size_t i = static_cast<size_t>(options.warmup); i + 1 < events.steps.size(); ++i) {
    seconds.push_back(events.steps[i].seconds());
    rates.push_back(static_cast<double>(events.steps[i].tokens()) / events.steps[i].seconds());
  }
  std::sort(seconds.begin(), seconds.end());
  std::sort(rates.begin(), rates.end());
  const double median = seconds[seconds.size() / 2], tokens_per_second = rates[rates.size() / 2];
  const v1::StepRecord& timed = events.steps.back();

  // Attention's ceilings: what is known for such lengths, or what the step reached.
  double flops[2] = {0, 0}, spent[2] = {0, 0};
  for (const OpRecord& r : events.records) {
    if (r.part != OpPart::kAttentionForward && r.part != OpPart::kAttentionBackward) continue;
    const int i = r.part == OpPart::kAttentionBackward;
    flops[i] += r.counts.attention_flops, spent[i] += r.end - r.begin;
  }
  const double length = MeanDocument(run);
  c.forward_flops = std::max(KnownRate(length, false), spent[0] > 0 ? flops[0] / spent[0] : 0);
  c.backward_flops = std::max(KnownRate(length, true), spent[1] > 0 ? flops[1] / spent[1] : 0);
  const auto parts = SumParts(events.records, c);
  double busy = 0, floor = 0, floor_parts[kOpParts];
  for (int i = 0; i < kOpParts; ++i) busy += parts[i].seconds, floor += floor_parts[i] = parts[i].floor;
  const double roofline = static_cast<double>(timed.tokens()) / floor;
  // Narrow products are bound by reading their wide operand: the same floor with those bytes in place of their FLOPs.
  double narrow = 0;
  for (const OpRecord& r : events.records) {
    if (r.part == OpPart::kAdapter) narrow += std::max(0.0, r.operand_bytes / c.copy_bytes - FloorOf(r, c));
  }
  const double by_bytes = static_cast<double>(timed.tokens()) / (floor + narrow);
  Ceilings lasting = c;
  lasting.gemm_flops = c.sustained_gemm_flops;
  double lasting_floor = 0;
  for (const PartSum& part : SumParts(events.records, lasting)) lasting_floor += part.floor;
  const double sustained = static_cast<double>(timed.tokens()) / lasting_floor;
  const double span = events.records.empty() ? 0 : events.records.back().end - events.records.front().begin;

  const int64_t process_mib = static_cast<int64_t>(events.process_bytes >> 20);
  const int64_t driver_mib = process_mib > 0 ? process_mib : events.card_mib - idle_mib;
  const int64_t planned_mib = static_cast<int64_t>(plan.bytes().total() >> 20);
  std::printf("card %s; shape %s, %s, r %lld, batch %s, mean example %.0f tokens\n", card.c_str(),
              options.shape.c_str(), options.objective.c_str(), static_cast<long long>(options.r),
              options.batch.c_str(), length);
  std::printf(
      "plan: recompute %s, micro-batch %u (rows up to %llu), head chunk %u, offload %d, embedding on host %d, "
      "decoded layers %u, mlp chunk %u, row multiple %u\n",
      plan.recompute().c_str(), plan.micro_batch_tokens(),
      static_cast<unsigned long long>(plan.train_limits().tokens()), plan.head_chunk_rows(), plan.offload_inputs(),
      plan.embedding_on_host(), plan.decoded_layers(), plan.mlp_chunk_rows(), plan.row_multiple());
  const v1::PlanBytes& b = plan.bytes();
  std::printf(
      "plan MiB: weights %llu adapter %llu gradients %llu optimizer %llu saved %llu scratch %llu context %llu total "
      "%lld;"
      " predicted %.0f tok/s\n",
      static_cast<unsigned long long>(b.weights() >> 20), static_cast<unsigned long long>(b.adapter() >> 20),
      static_cast<unsigned long long>(b.gradients() >> 20), static_cast<unsigned long long>(b.optimizer() >> 20),
      static_cast<unsigned long long>(b.saved() >> 20), static_cast<unsigned long long>(b.scratch() >> 20),
      static_cast<unsigned long long>(b.context() >> 20), static_cast<long long>(planned_mib),
      plan.tokens_per_second());
  std::printf("driver: %lld MiB (process %lld, card %lld of which idle %lld); plan %+lld\n",
              static_cast<long long>(driver_mib), static_cast<long long>(process_mib),
              static_cast<long long>(events.card_mib), static_cast<long long>(idle_mib),
              static_cast<long long>(planned_mib - driver_mib));
  std::printf(
      "ceilings: GEMM %.0f TFLOP/s at once, %.0f after a second under load; copy %.0f GB/s, attention %.0f and %.0f "
      "TFLOP/s\n",
      c.gemm_flops / 1e12, c.sustained_gemm_flops / 1e12, c.copy_bytes / 1e9, c.forward_flops / 1e12,
      c.backward_flops / 1e12);
  std::printf(
      "STEP %.2f ms median of %zu (%.2f to %.2f), %.0f tok/s; roofline %.0f tok/s; reached %.1f%%"
      " (GEMM at its rate under load: %.0f tok/s, %.1f%%; adapters' narrow products by their bytes: %.0f tok/s, "
      "%.1f%%)\n",
      1e3 * median, seconds.size(), 1e3 * seconds.front(), 1e3 * seconds.back(), tokens_per_second, roofline,
      100 * tokens_per_second / roofline, sustained, 100 * tokens_per_second / sustained, by_bytes,
      100 * tokens_per_second / by_bytes);
  if (options.objective == "kto") {
    const v1::StepRecord& first = events.steps.front();
    std::printf("first step: rewards %g and %g, KL %g (the policy is the reference: all exactly 0)\n",
                first.rewards_chosen(), first.rewards_rejected(), first.kl());
  }
  const double job_seconds = outcome.train_seconds + outcome.reference_seconds;
  std::printf("phases began: %s\n", events.phases.c_str());
  std::printf("loaded %.1f s, first step ended at %.1f s; reference pass %.2f s; steps and reference %.0f tok/s\n",
              events.load_seconds, events.first_step_seconds, outcome.reference_seconds,
              static_cast<double>(outcome.tokens) / job_seconds);
  std::printf("the step timed by operation: %.2f ms by the host, %.2f ms first to last operation, %zu operations\n",
              1e3 * timed.seconds(), 1e3 * span, events.records.size());
  for (int i = 0; i < kOpParts; ++i) {
    if (parts[i].calls == 0) continue;
    std::printf("  %-20s %6lld x %9.3f ms %5.1f%%   floor %9.3f ms, reached %5.1f%%\n",
                OpPartName(static_cast<OpPart>(i)), static_cast<long long>(parts[i].calls), 1e3 * parts[i].seconds,
                100 * parts[i].seconds / timed.seconds(), 1e3 * floor_parts[i],
                100 * floor_parts[i] / parts[i].seconds);
  }
  std::printf("  %-20s          %9.3f ms %5.1f%%\n", "gaps", 1e3 * (timed.seconds() - busy),
              100 * (timed.seconds() - busy) / timed.seconds());
  PrintOps(events.records, c, options.products);
  nlohmann::ordered_json line = {{"bench", "cuda_step"},
                                 {"card", card},
                                 {"shape", fs::path(options.shape).filename().string()},
                                 {"objective", options.objective},
                                 {"r", options.r},
                                 {"batch", options.batch},
                                 {"recompute", plan.recompute()},
                                 {"micro_batch", plan.micro_batch_tokens()},
                                 {"ms", 1e3 * median},
                                 {"tok_s", tokens_per_second},
                                 {"roofline_tok_s", roofline},
                                 {"share", tokens_per_second / roofline},
                                 {"share_under_load", tokens_per_second / sustained},
                                 {"share_by_bytes", tokens_per_second / by_bytes},
                                 {"driver_mib", driver_mib},
                                 {"planned_mib", planned_mib},
                                 {"reference_s", outcome.reference_seconds},
                                 {"job_tok_s", static_cast<double>(outcome.tokens) / job_seconds},
                                 {"first_step_s", events.first_step_seconds},
                                 {"loss", timed.loss()}};
  for (int i = 0; i < kOpParts; ++i) {
    if (parts[i].calls > 0) line["parts_ms"][OpPartName(static_cast<OpPart>(i))] = 1e3 * parts[i].seconds;
  }
  std::printf("JSON %s\n", line.dump().c_str());
  if (!options.json.empty()) std::ofstream(options.json, std::ios::app) << line.dump() << "\n";
  return absl::OkStatus();
}

absl::Status RunBench(const Options& options) {
  const auto start = Clock::now();
  const int64_t idle = CardMib();
  HONE_ASSIGN_OR_RETURN(const Batch batch, ParseBatch(options.batch));
  const std::string folder = StrCat(fs::temp_directory_path().string(), "/hone-bench-", ::getpid());
  fs::create_directories(folder);
  HONE_ASSIGN_OR_RETURN(const PreparedRun run, MakeRun(options, batch, folder));
  HONE_ASSIGN_OR_RETURN(v1::Plan plan,
                        PlanJob(run, {.device = "cuda",
                                      .cache_folder = options.cache,
                                      .card_budget_bytes = static_cast<uint64_t>(options.budget_mib) << 20}));
  HONE_RETURN_IF_ERROR(Override(options, run, plan));
  std::printf("planned at %.1f s: %s\n", Since(start), plan.reason().c_str());
  if (!plan.fits()) return ResourceExhausted(plan.reason());

  HONE_ASSIGN_OR_RETURN(const auto backend, OpenBackend({v1::DEVICE_CUDA, v1::PRECISION_BF16, 0, options.cache}));
  EventClock clock(static_cast<CudaOps&>(backend->ops()).stream());
  clock.Grow(40000);
  TimedBackend timed(*backend, clock, run.files->config().vocab_size);
  BenchEvents events(timed.timed(), *backend, options.warmup + options.steps, start);
  TrainRequest request;
  request.run = &run;
  request.plan = plan;
  request.output_dir = folder + "/out";
  HONE_ASSIGN_OR_RETURN(const TrainOutcome outcome, Train(request, timed, events));
  HONE_ASSIGN_OR_RETURN(const Ceilings ceilings, Measure(*backend));
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return Print(options, run, plan, outcome, events, ceilings, idle, backend->name());
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  if (const absl::Status blas = hone::EnsureSafeBlas(argv); !blas.ok()) return 1;
  CLI::App app("A training run on the card: speed, memory, and where the time goes");
  hone::Options o;
  app.add_option("--shape", o.shape, "Folder with a config.json")->required();
  app.add_option("--batch", o.batch, "ROWS,TOKENS[,ln=1]")->capture_default_str();
  app.add_option("--objective", o.objective)->check(CLI::IsMember({"sft", "kto"}));
  app.add_option("--policy", o.policy)->check(CLI::IsMember({"fastest", "balanced", "smallest"}));
  app.add_option("--quantization", o.quantization)->check(CLI::IsMember({"nf4", "none"}));
  app.add_option("--optimizer", o.optimizer)->check(CLI::IsMember({"adamw", "adamw_8bit"}));
  app.add_option("--r", o.r);
  app.add_option("--steps", o.steps, "Timed steps")->check(CLI::PositiveNumber);
  app.add_option("--warmup", o.warmup, "Steps before them")->check(CLI::NonNegativeNumber);
  app.add_option("--budget-mib", o.budget_mib, "Most device memory the plan may take");
  app.add_option("--micro-batch", o.micro_batch, "Tokens a launch; default: the plan's");
  app.add_option("--seed", o.seed);
  app.add_option("--recompute", o.recompute, "In place of the plan's: none, full, none:20,full:12, ...");
  app.add_option("--head-chunk", o.head_chunk);
  app.add_option("--offload", o.offload);
  app.add_option("--mlp-chunk", o.mlp_chunk);
  app.add_option("--decoded-layers", o.decoded_layers);
  app.add_option("--embedding-on-host", o.embedding_on_host);
  app.add_option("--row-multiple", o.row_multiple);
  app.add_option("--cache", o.cache, "Folder that keeps what was measured on this machine, as jobs have one");
  app.add_option("--json", o.json, "File that gets one JSON line more");
  app.add_flag("--products", o.products, "List products by shape");
  CLI11_PARSE(app, argc, argv);
  try {
    const absl::Status status = hone::RunBench(o);
    if (!status.ok()) std::printf("cuda_step_bench: %s\n", std::string(status.message()).c_str());
    return status.ok() ? 0 : 1;
  } catch (const std::exception& e) {
    std::printf("cuda_step_bench: %s\n", e.what());
    return 1;
  }
}
