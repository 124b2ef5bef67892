// Whole two-layer models on the card: every golden model, and one of real head sizes per family row, against the CPU
// (fp32: 1e-5 of each gradient's norm; bf16: cosine and norm), and the promises that cost no tolerance: two runs,
// packed and apart, with and without a shared prompt, and every way to save memory give the same bits. Then whole jobs:
// KTO rewards of exactly 0 at the first step, 20 steps beside the CPU's, greedy tokens.
//   cuda_model_test [--golden tests/golden] [PART OF A NAME]     exit 77 where no card can be opened
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <random>

#include "engine/io/model_files.h"
#include "engine/io/peft.h"
#include "engine/train/session.h"
#include "engine/worker/inference.h"
#include "engine/worker/job.h"
#include "kernels/cpu/blas_check.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

class Report {
 public:
  explicit Report(std::string part) : part_(std::move(part)) {}
  bool Wanted(const std::string& name) const { return name.find(part_) != std::string::npos; }
  void Check(bool passed, const std::string& name, const std::string& figure) {
    ++run_;
    failed_ += !passed;
    std::printf("%s %s: %s\n", passed ? "ok    " : "FAILED", name.c_str(), figure.c_str());
    std::fflush(stdout);
  }
  int run() const { return run_; }
  int failed() const { return failed_; }

 private:
  std::string part_;
  int run_ = 0, failed_ = 0;
};

std::string Figure(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

// --- Models ----------------------------------------------------------------------------------------------------------

struct Subject {
  std::string name;
  std::unique_ptr<ModelFiles> files;
  LoraConfig lora;
  std::vector<float> values;
  std::vector<std::vector<int32_t>> documents;
  WeightQuantization quantization = WeightQuantization::kNone;
};

Subject Golden(const std::string& folder) {
  Subject subject;
  subject.name = fs::path(folder).filename().string();
  subject.files = *ModelFiles::Open(folder);
  const LoraAdapter adapter = *ReadPeftAdapter(folder + "/adapter", subject.files->config());
  const FlatAdapter flat = *FlattenAdapter(subject.files->config(), adapter);
  subject.lora = flat.config;
  subject.values = flat.values;
  const auto expected = *ParseJson(*ReadFile(folder + "/expected.json"));
  subject.documents = expected["documents"].get<std::vector<std::vector<int32_t>>>();
  return subject;
}

struct Wide {
  const char* name;
  const char* like;  // a golden model: its configuration, widened
  int64_t head_dim;
  WeightQuantization quantization;
};

// Head sizes, widths and lengths that the fast kernels take; weights from their names, B not zero.
Subject Widened(const std::string& golden, const std::string& scratch, const Wide& wide) {
  auto config = *ParseJson(*ReadFile(golden + "/model/" + wide.like + "/config.json"));
  config["head_dim"] = wide.head_dim;
  config["hidden_size"] = 4 * wide.head_dim;
  config["num_attention_heads"] = 4;
  config["num_key_value_heads"] = 2;
  config["intermediate_size"] = 640;
  config["vocab_size"] = 1000;
  config["num_hidden_layers"] = 4;
  config.erase("layer_types");
  config["max_position_embeddings"] = 4096;
  if (config.contains("sliding_window") && config["sliding_window"].is_number()) config["sliding_window"] = 90;
  const std::string folder = scratch + "/" + wide.name;
  fs::create_directories(folder);
  HONE_CHECK(WriteFileDurably(folder + "/config.json", config.dump()).ok());
  Subject subject;
  subject.name = wide.name;
  auto files = ModelFiles::Open("random:" + folder + "/config.json");
  HONE_CHECK(files.ok(), files.status().message());
  subject.files = *std::move(files);
  subject.quantization = wide.quantization;
  subject.lora.r = 8;
  subject.lora.alpha = 16;
  const LoraLayout layout = *LoraLayout::Create(subject.files->config(), subject.lora);
  subject.values = InitialLoraValues(layout, 7);
  std::mt19937 random(3);
  std::uniform_real_distribution<float> small(-0.05f, 0.05f);
  for (const LoraMatrix& m : layout.matrices()) {
    for (int64_t i = 0; i < m.out * m.r; ++i) subject.values[m.b_offset + i] = small(random);
  }
  for (const int length : {70, 33, 2, 200, 64, 129}) {
    subject.documents.emplace_back();
    for (int i = 0; i < length; ++i) subject.documents.back().push_back(static_cast<int32_t>(random() % 1000));
  }
  return subject;
}

PackedBatch Pack(const std::vector<std::vector<int32_t>>& documents) {
  PackedBatch batch;
  for (const auto& ids : documents) {
    const int32_t row = AppendDocument(batch, ids.data(), static_cast<int64_t>(ids.size()));
    for (size_t t = 1; t < ids.size(); ++t) {
      batch.logit_rows.push_back(row + static_cast<int32_t>(t) - 1);
      batch.targets.push_back(ids[t]);
    }
  }
  return batch;
}

// --- Sessions --------------------------------------------------------------------------------------------------------

struct Session {
  ArenaSet arenas = ArenaSet::Dry();
  std::unique_ptr<TrainSession> session;
};

// `options`: a plan's choices; the rest is filled in.
Session Open(Backend& backend, const Subject& subject, SessionOptions options, const BatchLimits& limits) {
  options.quantization = subject.quantization;
  options.lora = subject.lora;
  options.optimizer.add_betas(0.9);
  options.optimizer.add_betas(0.999);
  options.optimizer.set_eps(1e-8);
  options.decoder.head_chunk_rows = 64;
  options.limits = {limits, limits};
  const auto dry = MakeDryOps(backend.ops().backend(), backend.ops().activation_dtype());
  ArenaSet measured = ArenaSet::Dry();
  auto rehearsal = *TrainSession::Create(*subject.files, options, *dry, measured);
  const PackedBatch batch = Pack({std::vector<int32_t>(limits.tokens, 0)});
  std::vector<float> unused(batch.targets.size());
  rehearsal->ForwardBackward(batch, [](auto, auto) {});
  rehearsal->LogProbs(batch, AdapterMode::kOn, unused);
  Session s;
  auto arenas = ArenaSet::Reserve(backend, measured.HighWater(), measured.PinnedHighWater());
  HONE_CHECK(arenas.ok(), arenas.status().message());
  s.arenas = *std::move(arenas);
  auto session = TrainSession::Create(*subject.files, options, backend.ops(), s.arenas);
  HONE_CHECK(session.ok(), session.status().message());
  s.session = *std::move(session);
  s.session->Upload(subject.values, s.session->lora().values);
  return s;
}

struct Outcome {
  double loss = 0;
  std::vector<float> gradients;
  std::vector<float> log_probs, base_log_probs;  // forward only, in the order of Pack
  std::vector<float> train_log_probs;            // on the way to the gradients
};

// Mean negative log-likelihood, its gradients, and forward passes with the adapter on and off.
Outcome RunOnce(Backend& backend, const Subject& subject, const SessionOptions& options, bool packed) {
  int64_t count = 0, longest = 0, total = 0;
  for (const auto& ids : subject.documents) {
    const auto length = static_cast<int64_t>(ids.size());
    count += length - 1;
    total += length;
    longest = std::max(longest, length);
  }
  const int64_t tokens = packed ? total : longest;
  Session s = Open(backend, subject, options, {tokens, tokens, 8});
  std::vector<PackedBatch> launches;
  if (packed) launches.push_back(Pack(subject.documents));
  if (!packed) {
    for (const auto& ids : subject.documents) launches.push_back(Pack({ids}));
  }
  Outcome out;
  s.session->ZeroGradients();
  for (const PackedBatch& launch : launches) {
    s.session->ForwardBackward(launch, [&](std::span<const float> log_probs, std::span<float> factors) {
      out.train_log_probs.insert(out.train_log_probs.end(), log_probs.begin(), log_probs.end());
      for (size_t i = 0; i < factors.size(); ++i) {
        out.loss -= log_probs[i] / static_cast<double>(count);
        factors[i] = -1.0f / static_cast<float>(count);
      }
    });
    std::vector<float> values(launch.targets.size());
    for (const AdapterMode mode : {AdapterMode::kOn, AdapterMode::kOff}) {
      s.session->LogProbs(launch, mode, values);
      auto& to = mode == AdapterMode::kOn ? out.log_probs : out.base_log_probs;
      to.insert(to.end(), values.begin(), values.end());
    }
  }
  out.gradients = s.session->Download(s.session->lora().gradients);
  return out;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string Differing(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return "sizes differ";
  int64_t differ = 0;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    differ += std::memcmp(&a[i], &b[i], 4) != 0;
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return StrCat(differ, " of ", a.size(), " values differ, by at most ", Figure(largest));
}

void CheckSame(Report& report, const std::string& name, const std::vector<float>& a, const std::vector<float>& b) {
  report.Check(SameBits(a, b), name, Differing(a, b));
}

struct Distance {
  double relative = 0, cosine = 1, norm_ratio = 1;
};

Distance Between(std::span<const float> actual, std::span<const float> expected) {
  double difference = 0, dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = actual[i], b = expected[i];
    difference += (a - b) * (a - b);
    dot += a * b;
    aa += a * a;
    bb += b * b;
  }
  return {std::sqrt(difference / bb), dot / std::sqrt(aa * bb), std::sqrt(aa / bb)};
}

// The worst of all LoRA matrices.
struct Worst {
  Distance distance{0, 1, 1};
  std::string relative_at, cosine_at;
};

Worst CompareGradients(const Subject& subject, const Outcome& actual, const Outcome& expected) {
  Worst worst;
  const LoraLayout layout = *LoraLayout::Create(subject.files->config(), subject.lora);
  for (const LoraMatrix& m : layout.matrices()) {
    for (const char which : {'A', 'B'}) {
      const int64_t offset = which == 'A' ? m.a_offset : m.b_offset;
      const size_t size = static_cast<size_t>(which == 'A' ? m.r * m.in : m.out * m.r);
      const Distance d = Between({actual.gradients.data() + offset, size}, {expected.gradients.data() + offset, size});
      const std::string name = LoraTensorName(m.layer, m.kind, which);
      if (!(d.relative <= worst.distance.relative)) worst.distance.relative = d.relative, worst.relative_at = name;
      if (!(d.cosine >= worst.distance.cosine)) worst.distance.cosine = d.cosine, worst.cosine_at = name;
      if (std::abs(d.norm_ratio - 1) > std::abs(worst.distance.norm_ratio - 1))
        worst.distance.norm_ratio = d.norm_ratio;
    }
  }
  return worst;
}

// --- Checks of one model ---------------------------------------------------------------------------------------------

// What a plan's choice may change: nothing; or the order in which gradients add up. (cuBLASLt's fp32 products are
// another matter: their sums depend on how many rows there are.)
enum class Promise : uint8_t { kBits, kGradientsNear };

struct Variant {
  std::string name;
  SessionOptions options;
  Promise promise = Promise::kBits;
};

// Every way to save memory that a plan has.
std::vector<Variant> MemoryVariants(const DecoderConfig& config) {
  std::vector<Variant> variants;
  auto add = [&](const std::string& name, Recompute level, const auto& change, Promise promise = Promise::kBits) {
    Variant v{name, {}, promise};
    v.options.decoder.recompute.assign(config.num_layers, level);
    change(v.options);
    variants.push_back(v);
  };
  auto nothing = [](SessionOptions&) {};
  add("recompute activation", Recompute::kActivation, nothing);
  add("recompute mlp", Recompute::kMlp, nothing);
  add("recompute block", Recompute::kBlock, nothing);
  add("recompute full", Recompute::kFull, nothing);
  add("recompute none, then full", Recompute::kNone,
      [](SessionOptions& o) { o.decoder.recompute.back() = Recompute::kFull; });
  add(
      "gate and up in chunks", Recompute::kFull, [](SessionOptions& o) { o.decoder.mlp_chunk_rows = 16; },
      Promise::kGradientsNear);
  add(
      "rows padded to 64", Recompute::kNone, [](SessionOptions& o) { o.decoder.row_multiple = 64; },
      Promise::kGradientsNear);
  add(
      "rows padded to 64, full, chunks of 64", Recompute::kFull,
      [](SessionOptions& o) { o.decoder.row_multiple = 64, o.decoder.mlp_chunk_rows = 64; }, Promise::kGradientsNear);
  add("inputs offloaded", Recompute::kFull, [](SessionOptions& o) { o.decoder.offload_inputs = true; });
  add("inputs and attention offloaded", Recompute::kBlock, [](SessionOptions& o) { o.decoder.offload_inputs = true; });
  for (const Recompute level : {Recompute::kActivation, Recompute::kMlp}) {
    add(level == Recompute::kMlp ? "all but the gated unit offloaded" : "all but norms offloaded", level,
        [level](SessionOptions& o) {
          o.decoder.offload_inputs = true;
          o.decoder.offload_from = level;
        });
  }
  add("gate and up of some layers offloaded", Recompute::kMlp, [&](SessionOptions& o) {
    o.decoder.recompute.front() = o.decoder.recompute.back() = Recompute::kActivation;
    o.decoder.on_host.assign(config.num_layers, true);
  });
  add("every other layer offloaded", Recompute::kActivation, [&](SessionOptions& o) {
    for (int64_t layer = 0; layer < config.num_layers; ++layer) o.decoder.on_host.push_back(layer % 2 == 0);
  });
  add(
      "weights decoded apart", Recompute::kFull, [](SessionOptions& o) { o.decoder.decode_apart = true; },
      Promise::kGradientsNear);
  add("first layer decoded", Recompute::kNone, [](SessionOptions& o) { o.decoded_layers = 1; });
  add("all layers decoded", Recompute::kFull, [&](SessionOptions& o) { o.decoded_layers = config.num_layers; });
  if (!config.tie_word_embeddings)
    add("embedding on the host", Recompute::kNone, [](SessionOptions& o) { o.embedding_on_host = true; });
  return variants;
}

// Bits, or in fp32 where the number of rows is another, nearly.
void CheckLogProbs(Report& report, const std::string& name, bool bits, const std::vector<float>& a,
                   const std::vector<float>& b) {
  if (bits) return CheckSame(report, name, a, b);
  const double distance = Between(a, b).relative;
  report.Check(distance <= 1e-6, name, Figure(distance));
}

void CheckGradients(Report& report, const std::string& name, bool bits, bool f32, const Subject& subject,
                    const Outcome& actual, const Outcome& expected) {
  const Worst worst = CompareGradients(subject, actual, expected);
  const std::string where = StrCat(Figure(worst.distance.relative), " at ", worst.relative_at);
  if (!bits) return report.Check(worst.distance.relative <= (f32 ? 1e-5 : 2e-2), name, where);
  report.Check(SameBits(actual.gradients, expected.gradients), name,
               StrCat(Differing(actual.gradients, expected.gradients), "; ", where));
}

void CheckPromises(Report& report, const std::string& prefix, Backend& backend, const Subject& subject,
                   const Outcome& packed) {
  const bool f32 = backend.ops().activation_dtype() == DType::kF32;
  const Outcome again = RunOnce(backend, subject, {}, true);
  CheckSame(report, prefix + "two runs", again.gradients, packed.gradients);
  const Outcome apart = RunOnce(backend, subject, {}, false);
  CheckLogProbs(report, prefix + "log p packed and apart", !f32, apart.log_probs, packed.log_probs);
  CheckLogProbs(report, prefix + "base log p packed and apart", !f32, apart.base_log_probs, packed.base_log_probs);
  CheckLogProbs(report, prefix + "log p in training and forward only", true, packed.train_log_probs, packed.log_probs);
  CheckGradients(report, prefix + "gradients packed and apart", false, f32, subject, apart, packed);
  for (const Variant& variant : MemoryVariants(subject.files->config())) {
    const Outcome other = RunOnce(backend, subject, variant.options, true);
    const bool bits = variant.promise == Promise::kBits;
    CheckLogProbs(report, prefix + variant.name + ", log p", bits || !f32, other.log_probs, packed.log_probs);
    CheckLogProbs(report, prefix + variant.name + ", log p in training", bits || !f32, other.train_log_probs,
                  packed.train_log_probs);
    CheckGradients(report, prefix + variant.name + ", gradients", bits, f32, subject, other, packed);
  }
}

// One document as a shared prompt with two completions, against both whole documents.
void CheckSharedPrompt(Report& report, const std::string& prefix, Backend& backend, const Subject& subject) {
  std::vector<int32_t> prompt = subject.documents[0];
  std::vector<std::vector<int32_t>> completions = {subject.documents[1], subject.documents[1]};
  std::reverse(completions[1].begin(), completions[1].end());
  std::vector<float> whole;
  int64_t longest = 0;
  for (const auto& completion : completions)
    longest = std::max(longest, static_cast<int64_t>(prompt.size() + 2 * completion.size()));
  Session s = Open(backend, subject, {}, {longest, longest, 8});
  auto wanted = [&](PackedBatch& batch, int32_t last_prompt_row, int32_t first, const std::vector<int32_t>& ids) {
    for (size_t t = 0; t < ids.size(); ++t) {
      batch.logit_rows.push_back(t == 0 ? last_prompt_row : first + static_cast<int32_t>(t) - 1);
      batch.targets.push_back(ids[t]);
    }
  };
  for (const auto& completion : completions) {
    std::vector<int32_t> ids = prompt;
    ids.insert(ids.end(), completion.begin(), completion.end());
    PackedBatch batch;
    AppendDocument(batch, ids.data(), static_cast<int64_t>(ids.size()));
    wanted(batch, static_cast<int32_t>(prompt.size()) - 1, static_cast<int32_t>(prompt.size()), completion);
    std::vector<float> values(completion.size());
    s.session->LogProbs(batch, AdapterMode::kOn, values);
    whole.insert(whole.end(), values.begin(), values.end());
  }
  PackedBatch batch;
  const auto prompt_length = static_cast<int32_t>(prompt.size());
  AppendDocument(batch, prompt.data(), prompt_length);
  for (const auto& completion : completions) {
    const int32_t first =
        AppendCompletion(batch, completion.data(), static_cast<int64_t>(completion.size()), 0, prompt_length);
    wanted(batch, prompt_length - 1, first, completion);
  }
  std::vector<float> shared(batch.targets.size());
  s.session->LogProbs(batch, AdapterMode::kOn, shared);
  CheckLogProbs(report, prefix + "log p behind a shared prompt and whole",
                backend.ops().activation_dtype() != DType::kF32, shared, whole);
}

void CheckModel(Report& report, const Subject& subject, Backend& cpu, Backend& f32, Backend& bf16) {
  const Outcome expected = RunOnce(cpu, subject, {}, true);
  {
    const std::string prefix = StrCat(subject.name, "/fp32/");
    const Outcome actual = RunOnce(f32, subject, {}, true);
    const double loss = std::abs(actual.loss - expected.loss) / expected.loss;
    report.Check(loss <= 1e-5, prefix + "loss against the CPU", Figure(loss));
    const Worst worst = CompareGradients(subject, actual, expected);
    report.Check(worst.distance.relative <= 1e-5, prefix + "gradients against the CPU",
                 StrCat(Figure(worst.distance.relative), " at ", worst.relative_at));
    CheckPromises(report, prefix, f32, subject, actual);
    CheckSharedPrompt(report, prefix, f32, subject);
  }
  const std::string prefix = StrCat(subject.name, "/bf16/");
  const Outcome actual = RunOnce(bf16, subject, {}, true);
  const double loss = std::abs(actual.loss - expected.loss) / expected.loss;
  report.Check(loss <= 5e-3, prefix + "loss against the CPU", Figure(loss));
  const Worst worst = CompareGradients(subject, actual, expected);
  report.Check(worst.distance.cosine >= 0.999, prefix + "cosine of gradients with the CPU",
               StrCat(Figure(1 - worst.distance.cosine), " below 1 at ", worst.cosine_at));
  report.Check(std::abs(worst.distance.norm_ratio - 1) <= 0.03, prefix + "norm of gradients against the CPU",
               Figure(worst.distance.norm_ratio));
  CheckPromises(report, prefix, bf16, subject, actual);
  CheckSharedPrompt(report, prefix, bf16, subject);
}

// Log-probabilities alone and on the way to a gradient, for vocabularies that fit in a block's shared memory or do not:
// the reference is computed one way, the policy the other, and KTO's first rewards are the difference.
void CheckLogProbModes(Report& report, Backend& backend, const std::string& name) {
  if (!report.Wanted(name)) return;
  constexpr int64_t kRows = 16;
  Ops& ops = backend.ops();
  for (const int64_t vocabulary : {1000, 32000, 50257, 128256, 151936, 262144}) {
    const auto block = *backend.Reserve(uint64_t{64} << 20);
    Arena arena("log p", block->data(), block->size());
    std::mt19937 random(static_cast<unsigned>(vocabulary));
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> host(kRows * vocabulary);
    for (float& x : host) x = normal(random);
    std::vector<int32_t> ids(kRows);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<unsigned>(vocabulary));
    const Tensor wide = arena.AllocateTensor(DType::kF32, kRows, vocabulary);
    const Tensor logits = arena.AllocateTensor(ops.activation_dtype(), kRows, vocabulary);
    const Tensor targets = arena.AllocateTensor(DType::kI32, 1, kRows);
    const Tensor out = arena.AllocateTensor(DType::kF32, 1, kRows);
    ops.Upload(host.data(), wide);
    ops.Upload(ids.data(), targets);
    std::vector<float> log_probs[2];
    for (const LogProbMode mode : {LogProbMode::kLogProbOnly, LogProbMode::kUnitGradient}) {
      std::vector<float>& values = log_probs[mode == LogProbMode::kUnitGradient];
      values.resize(kRows);
      ops.Copy(wide, logits);
      ops.LogProb(logits, targets, {}, mode, out);
      ops.Download(out, values.data());
    }
    CheckSame(report, StrCat(name, "/vocabulary ", vocabulary), log_probs[0], log_probs[1]);
  }
}

// --- Whole jobs ------------------------------------------------------------------------------------------------------

class Recorded : public TrainEvents {
 public:
  void Emit(const v1::FromWorker& event) override {
    if (event.has_step()) steps.push_back(event.step());
    if (event.has_memory()) memory = event.memory();
  }
  TrainControl Poll() override { return TrainControl::kContinue; }
  std::vector<v1::StepRecord> steps;
  v1::MemoryUse memory;
};

struct Job {
  bool kto = true;
  const char* device = "cpu";
  const char* precision = "fp32";
  std::vector<std::string> sets;
};

absl::StatusOr<Recorded> RunJob(const std::string& golden, const std::string& output, const Job& job) {
  const std::string model = golden + "/model";
  const std::string yaml = StrCat(
      "model: {source: ", model, "/llama}\nadapter: {lora: {r: 4, lora_alpha: 8}}\nobjective: ",
      job.kto ? "{kto: {beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.2, kl_group_size: 4}}" : "{sft: {}}",
      "\ndata: {train: ", model, job.kto ? "/kto.jsonl" : "/sft.jsonl",
      ", max_length: 64, max_prompt_length: 32, order: sequential}\nbatch: {examples: ", job.kto ? 8 : 4,
      "}\noptimizer: {learning_rate: 5e-3, max_grad_norm: ", job.kto ? 0.05 : 0.5,
      "}\nschedule: {name: ", job.kto ? "linear" : "cosine",
      ", warmup_ratio: 0.1}\nrun: {max_steps: 20, seed: 42, device: ", job.device, ", precision: ", job.precision,
      "}\n");
  HONE_ASSIGN_OR_RETURN(v1::JobSpec spec, SpecFromYaml(yaml, "job.yaml"));
  for (const std::string& set : job.sets) HONE_RETURN_IF_ERROR(SetField(spec, set));
  HONE_ASSIGN_OR_RETURN(const PreparedRun run, PrepareJob(spec, {}));
  TrainJobOptions options;
  options.output_dir = output;
  options.threads = 1;
  Recorded events;
  HONE_RETURN_IF_ERROR(TrainJob(run, options, events).status());
  if (events.steps.size() != 20) return FailedPrecondition(events.steps.size(), " steps instead of 20");
  return events;
}

void CheckJobs(Report& report, const std::string& golden, const std::string& scratch) {
  int folder = 0;
  auto output = [&] { return StrCat(scratch, "/job", folder++); };
  for (const bool kto : {true, false}) {
    const std::string name = kto ? "job kto" : "job sft";
    if (!report.Wanted(name)) continue;
    const auto cpu = RunJob(golden, output(), {.kto = kto});
    HONE_CHECK(cpu.ok(), cpu.status().message());
    for (const char* precision : {"fp32", "bf16"}) {
      const std::string prefix = StrCat(name, "/", precision, "/");
      const std::string reference = output();
      const auto cuda = RunJob(golden, reference, {.kto = kto, .device = "cuda", .precision = precision});
      if (!cuda.ok()) {
        report.Check(false, prefix + "20 steps", std::string(cuda.status().message()));
        continue;
      }
      double worst = 0;
      for (size_t i = 0; i < 20; ++i) {
        const double expected = cpu->steps[i].loss();
        worst = std::max(worst, std::abs(cuda->steps[i].loss() - expected) / std::abs(expected));
      }
      report.Check(worst <= (std::strcmp(precision, "fp32") == 0 ? 1e-4 : 3e-2), prefix + "20 losses against the CPU",
                   Figure(worst));
      const auto again = RunJob(golden, output(), {.kto = kto, .device = "cuda", .precision = precision});
      bool same = again.ok();
      for (size_t i = 0; same && i < 20; ++i)
        same = again->steps[i].loss() == cuda->steps[i].loss() &&
               again->steps[i].grad_norm() == cuda->steps[i].grad_norm();
      report.Check(same, prefix + "a second run", "losses and norms of 20 steps");
      uint64_t planned = 0, actual = 0;
      for (const v1::ArenaUse& arena : cuda->memory.arenas())
        planned += arena.planned_bytes(), actual += arena.actual_bytes();
      report.Check(planned == actual, prefix + "arenas end where the plan said", StrCat(planned, " and ", actual));
      if (!kto) continue;
      for (const char* micro : {"64", "512"}) {  // one or two examples a launch, or all
        const auto run = RunJob(golden, output(),
                                {.kto = true,
                                 .device = "cuda",
                                 .precision = precision,
                                 .sets = {StrCat("memory.micro_batch_tokens=", micro), "memory.packing=on"}});
        HONE_CHECK(run.ok(), run.status().message());
        const v1::StepRecord& first = run->steps[0];
        report.Check(first.rewards_chosen() == 0 && first.rewards_rejected() == 0 && first.kl() == 0,
                     StrCat(prefix, "rewards and KL of the first step, launches of ", micro),
                     StrCat(first.rewards_chosen(), " ", first.rewards_rejected(), " ", first.kl()));
      }
    }
  }
}

void CheckGreedy(Report& report, const std::string& folder, Backend& cpu, Backend& cuda, const std::string& what) {
  const auto files = *ModelFiles::Open(folder);
  const LoraAdapter adapter = *ReadPeftAdapter(folder + "/adapter", files->config());
  const auto expected = *ParseJson(*ReadFile(folder + "/expected.json"));
  const auto documents = expected["documents"].get<std::vector<std::vector<int32_t>>>();
  std::vector<GenerationRequest> requests(3);
  for (int i = 0; i < 3; ++i) {
    requests[i].prompt = documents[i == 1 ? 0 : 1];
    requests[i].sampling.max_new_tokens = 12;
  }
  std::vector<std::vector<int32_t>> ids[2];
  int at = 0;
  for (Backend* backend : {&cpu, &cuda}) {
    auto& out = ids[at++];
    out.resize(3);
    auto session = InferenceSession::Open(*backend, *files, &adapter);
    HONE_CHECK(session.ok(), session.status().message());
    const auto reasons = (*session)->Run(requests, AdapterMode::kOn, [&](int64_t r, int32_t token) {
      out[r].push_back(token);
      return true;
    });
    HONE_CHECK(reasons.ok(), reasons.status().message());
  }
  report.Check(ids[0] == ids[1] && ids[1][0] == ids[1][2] && !ids[1][0].empty(),
               StrCat(fs::path(folder).filename().string(), "/", what, "/greedy tokens"),
               StrCat(ids[1][0].size(), ", ", ids[1][1].size(), " and ", ids[1][2].size(), " tokens"));
}

int Run(const std::string& golden, const std::string& part) {
  auto f32 = OpenCuda({.device = 0, .activation_dtype = DType::kF32});
  if (!f32.ok()) {
    std::printf("skipped: %s\n", std::string(ToStd(f32.status().message())).c_str());
    return 77;
  }
  auto bf16 = *OpenCuda({.device = 0, .activation_dtype = DType::kBF16});
  auto cpu = *OpenCpu({2});
  std::printf("== %s ==\n", (*f32)->name().c_str());
  Report report(part);
  const std::string scratch = StrCat(fs::temp_directory_path().string(), "/hone-cuda-model-", ::getpid());
  fs::create_directories(scratch);
  CheckLogProbModes(report, **f32, "log p modes/fp32");
  CheckLogProbModes(report, *bf16, "log p modes/bf16");
  std::vector<std::string> folders;
  for (const auto& entry : fs::directory_iterator(golden + "/model")) {
    if (fs::exists(entry.path() / "expected.json")) folders.push_back(entry.path().string());
  }
  std::sort(folders.begin(), folders.end());
  for (const std::string& folder : folders) {
    const Subject subject = Golden(folder);
    if (!report.Wanted(subject.name)) continue;
    CheckModel(report, subject, *cpu, **f32, *bf16);
    CheckGreedy(report, folder, *cpu, **f32, "fp32");
  }
  constexpr Wide kWide[] = {{"wide llama", "llama", 128, WeightQuantization::kNone},
                            {"wide llama nf4", "llama", 64, WeightQuantization::kNf4},
                            {"wide llama3rope", "llama3rope", 64, WeightQuantization::kNone},
                            {"wide qwen2", "qwen2", 64, WeightQuantization::kNf4},
                            {"wide mistral", "mistral", 128, WeightQuantization::kNone},
                            {"wide qwen3", "qwen3", 128, WeightQuantization::kNf4},
                            {"wide llama d80", "llama", 80, WeightQuantization::kNone}};
  for (const Wide& wide : kWide) {
    if (report.Wanted(wide.name)) CheckModel(report, Widened(golden, scratch, wide), *cpu, **f32, *bf16);
  }
  CheckJobs(report, golden, scratch);
  std::error_code ignored;
  fs::remove_all(scratch, ignored);
  std::printf("%d checks, %d failed\n%s\n", report.run(), report.failed(), report.failed() == 0 ? "PASSED" : "FAILED");
  return report.failed() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hone

int main(int argc, char** argv) {
  if (const absl::Status blas = hone::EnsureSafeBlas(argv); !blas.ok()) return 1;
  std::string golden = HONE_GOLDEN, part;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--golden") == 0 && i + 1 < argc) {
      golden = argv[++i];
    } else {
      part = argv[i];
    }
  }
  try {
    return hone::Run(golden, part);
  } catch (const std::exception& e) {
    std::printf("FAILED: %s\n", e.what());
    return 1;
  }
}
