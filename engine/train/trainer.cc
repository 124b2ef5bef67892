#include "engine/train/trainer.h"

#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <set>

#include "engine/io/checkpoint.h"
#include "engine/io/peft.h"
#include "engine/optim/schedule.h"
#include "engine/plan/planner.h"
#include "engine/train/adapter_files.h"
#include "engine/train/micro_batches.h"
#include "engine/train/reference.h"
#include "engine/train/step_log.h"
#include "engine/train/warm_up.h"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

absl::StatusOr<std::string_view> Part(const LoadedCheckpoint& checkpoint, const std::string& part, uint64_t bytes) {
  const auto found = checkpoint.parts.find(part);
  if (found == checkpoint.parts.end()) return DataLoss(checkpoint.path, ": ", part, " is missing");
  const std::string_view data = found->second.bytes();
  if (data.size() != bytes)
    return DataLoss(checkpoint.path, ": ", part, " has ", data.size(), " bytes, expected ", bytes);
  return data;
}

uint64_t BytesOf(const Tensor& dense) { return static_cast<uint64_t>(dense.elements() * BlockBytes(dense.dtype)); }

constexpr int64_t kMostSkipsInARow = 10;  // run.on_nan: skip

// Where run.on_nan left the straight way; part of a checkpoint's state.
struct Detour {
  int64_t skipped = 0;         // updates left out: the optimiser's own count of steps is behind by so many
  int64_t skipped_in_row = 0;  // just before this
  int64_t rewinds = 0;
  int64_t extra_batches = 0;  // taken beyond one a step
};

nlohmann::json ToJson(const Detour& detour) {
  return {{"skipped", detour.skipped},
          {"skipped_in_row", detour.skipped_in_row},
          {"rewinds", detour.rewinds},
          {"extra_batches", detour.extra_batches}};
}

Detour DetourOf(const nlohmann::json& state) {
  const nlohmann::json json = state.value("detour", nlohmann::json::object());
  return {json.value("skipped", int64_t{0}), json.value("skipped_in_row", int64_t{0}),
          json.value("rewinds", int64_t{0}), json.value("extra_batches", int64_t{0})};
}

class Trainer {
 public:
  Trainer(const TrainRequest& request, Backend& backend, TrainEvents& events)
      : request_(request), run_(*request.run), backend_(backend), events_(events), order_(run_.Order()) {}

  absl::StatusOr<TrainOutcome> Run();

 private:
  absl::Status Start();
  absl::Status Resume();
  absl::StatusOr<Detour> Restore();
  void OverwriteGradientsForTests(int64_t batch);
  absl::Status NotFinite(const v1::StepRecord& record);
  void Warn(const std::string& text);
  absl::Status Reference();
  absl::Status Step(int64_t step);
  absl::Status Evaluate(int64_t step);
  absl::Status Checkpoint(int64_t steps_done);
  absl::StatusOr<std::vector<ObjectiveExample>> Describe(const Dataset& data, std::span<const uint32_t> indices,
                                                         const std::vector<double>& reference,
                                                         const std::vector<double>& kl_reference, bool coupled);
  void EmitProgress(v1::Phase phase, int64_t done, int64_t total, const std::string& detail = "");
  void EmitMemory();
  absl::Status CheckStop();
  // The adapter and the optimiser's states.
  std::vector<AdamWOptimizer::State> CheckpointParts() const {
    std::vector<AdamWOptimizer::State> parts = session_->optimizer().states();
    parts.insert(parts.begin(), {"adapter", session_->lora().values});
    return parts;
  }
  std::string Path(const char* name) const { return StrCat(request_.output_dir, "/", name); }

  const TrainRequest& request_;
  const PreparedRun& run_;
  Backend& backend_;
  TrainEvents& events_;
  BatchOrder order_;
  DataCursor cursor_;
  Detour detour_;
  ArenaSet arenas_ = ArenaSet::Dry();
  std::unique_ptr<TrainSession> session_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<StepLog> step_log_;
  ReferenceValues reference_;
  TrainOutcome outcome_;
  int64_t checkpointed_ = -1;
};

void Trainer::EmitProgress(v1::Phase phase, int64_t done, int64_t total, const std::string& detail) {
  v1::FromWorker event;
  event.mutable_progress()->set_phase(phase);
  event.mutable_progress()->set_done(static_cast<uint64_t>(done));
  event.mutable_progress()->set_total(static_cast<uint64_t>(total));
  event.mutable_progress()->set_detail(detail);
  events_.Emit(event);
}

void Trainer::EmitMemory() {
  outcome_.memory = arenas_.Use();
  outcome_.memory.set_planned_bytes(request_.plan.bytes().total());
  outcome_.memory.set_process_bytes(backend_.ProcessBytes());
  v1::FromWorker event;
  *event.mutable_memory() = outcome_.memory;
  events_.Emit(event);
}

// Reserves everything, loads the model, lays the run out and warms it up. Afterwards nothing is allocated on the
// device.
absl::Status Trainer::Start() {
  EmitProgress(v1::PHASE_LOADING, 0, run_.files->config().num_layers, run_.files->source());
  HONE_ASSIGN_OR_RETURN(objective_, MakeObjective(run_.spec));
  HONE_ASSIGN_OR_RETURN(arenas_, ArenaSet::Reserve(backend_, request_.plan.bytes(), request_.plan.pinned_bytes()));
  HONE_ASSIGN_OR_RETURN(const SessionOptions options, OptionsFromPlan(run_, request_.plan));
  HONE_ASSIGN_OR_RETURN(
      session_,
      TrainSession::Create(*run_.files, options, backend_.ops(), arenas_, [this](int64_t done, int64_t total) {
        EmitProgress(v1::PHASE_LOADING, done, total, run_.files->source());
      }));
  HONE_RETURN_IF_ERROR(MakeDirectories(request_.output_dir));
  if (backend_.ops().backend() != BackendKind::kCuda) return absl::OkStatus();
  EmitProgress(v1::PHASE_WARMING, 0, 0);
  WarmUp(run_, request_.plan, *session_, backend_);
  EmitMemory();
  if (outcome_.memory.process_bytes() <= outcome_.memory.planned_bytes()) return absl::OkStatus();
  v1::FromWorker event;
  event.set_warning(StrCat("the driver counts ", outcome_.memory.process_bytes() >> 20,
                           " MiB for this process, the plan ", outcome_.memory.planned_bytes() >> 20,
                           " MiB; please report the card and its driver"));
  events_.Emit(event);
  return absl::OkStatus();
}

void Trainer::Warn(const std::string& text) {
  v1::FromWorker event;
  event.set_warning(text);
  events_.Emit(event);
}

// The newest checkpoint's values and states, or the initial ones.
absl::StatusOr<Detour> Trainer::Restore() {
  Detour detour;
  HONE_ASSIGN_OR_RETURN(CheckpointSearch search, LoadNewestCheckpoint(Path("checkpoints")));
  for (const std::string& damaged : search.damaged) Warn(StrCat("checkpoint damaged and skipped: ", damaged));
  const std::string spec_digest = SpecIdentity(run_.spec);
  if (!search.newest.has_value()) {
    const std::vector<float> initial = InitialLoraValues(session_->layout(), run_.spec.run().seed());
    session_->Upload(initial, session_->lora().values);
    session_->optimizer().Reset();
    outcome_.last_step = 0;
    checkpointed_ = -1;
    if (request_.save_gradients > 0) {
      HONE_RETURN_IF_ERROR(WriteLoraTensors(Path("initial.safetensors"), session_->layout(), initial));
    }
  } else {
    const LoadedCheckpoint& checkpoint = *search.newest;
    const nlohmann::json& state = checkpoint.state;
    if (state.value("spec_sha256", "") != spec_digest ||
        state.value("data_sha256", "") != DatasetDigest(run_.data.train) ||
        state.value("model_digest", "") != run_.files->digest()) {
      return FailedPrecondition(
          request_.output_dir, ": its checkpoint at step ", checkpoint.step,
          " was made with another spec, data set or model; choose another --output, or remove it");
    }
    for (const AdamWOptimizer::State& part : CheckpointParts()) {
      HONE_ASSIGN_OR_RETURN(const std::string_view bytes, Part(checkpoint, part.name + ".bin", BytesOf(part.tensor)));
      backend_.ops().Upload(bytes.data(), part.tensor);
    }
    backend_.ops().Synchronize();  // the checkpoint's pages end with this scope
    session_->AdapterChanged();
    outcome_.last_step = checkpointed_ = checkpoint.step;
    detour = DetourOf(state);
  }
  return detour;
}

absl::Status Trainer::Resume() {
  HONE_ASSIGN_OR_RETURN(detour_, Restore());
  cursor_ = order_.CursorAfter(static_cast<uint64_t>(outcome_.last_step + detour_.extra_batches));
  HONE_ASSIGN_OR_RETURN(step_log_, StepLog::Open(Path("steps.jsonl"), outcome_.last_step));
  return absl::OkStatus();
}

absl::Status Trainer::Reference() {
  if (!run_.needs.reference) return absl::OkStatus();
  const auto begin = Clock::now();
  const std::string folder = request_.reference_cache_dir.empty() ? Path("reference") : request_.reference_cache_dir;
  HONE_RETURN_IF_ERROR(MakeDirectories(folder));
  const std::string numerics =
      StrCat(BackendKindName(backend_.ops().backend()), "/", DTypeName(backend_.ops().activation_dtype()));
  const std::string path = StrCat(
      folder, "/",
      Sha256Hex(StrCat(run_.files->digest(), DatasetDigest(run_.data.train), DatasetDigest(run_.data.eval))), ".bin");
  auto values = ReferenceLogProbs(run_, *session_, request_.plan, numerics, path, [this](int64_t done, int64_t total) {
    EmitProgress(v1::PHASE_REFERENCE, done, total);
    return events_.Poll() == TrainControl::kStop ? absl::CancelledError("stopped") : absl::OkStatus();
  });
  outcome_.reference_seconds = Seconds(begin);
  if (!values.ok()) return values.status();
  reference_ = *std::move(values);
  return absl::OkStatus();
}

// What the objective needs to know of a batch; computes the KL pairs' policy log-probabilities (forward only, first)
// unless they come with the step's one launch.
absl::StatusOr<std::vector<ObjectiveExample>> Trainer::Describe(const Dataset& data, std::span<const uint32_t> indices,
                                                                const std::vector<double>& reference,
                                                                const std::vector<double>& kl_reference, bool coupled) {
  std::vector<ObjectiveExample> described;
  std::vector<const Example*> mismatched;
  for (uint32_t index : indices) {
    const Example& example = data.examples[index];
    ObjectiveExample row;
    row.trained_tokens = example.supervised();
    row.label = example.label;
    if (run_.needs.reference) row.reference = reference[index];
    if (run_.needs.mismatched) row.mismatched_reference = kl_reference[index], mismatched.push_back(&data.kl[index]);
    described.push_back(row);
  }
  if (!run_.needs.mismatched || coupled) return described;
  std::vector<double> sums(indices.size());
  HONE_RETURN_IF_ERROR(ForwardSums(*session_, mismatched, request_.plan, AdapterMode::kOn, sums, nullptr));
  for (size_t i = 0; i < sums.size(); ++i) described[i].mismatched_policy = sums[i];
  return described;
}

void Trainer::OverwriteGradientsForTests(int64_t batch) {
  if (!request_.overwrite_gradients_for_tests) return;
  std::vector<float> gradients = session_->Download(session_->lora().gradients);
  request_.overwrite_gradients_for_tests(batch, gradients);
  backend_.ops().Upload(gradients.data(), session_->lora().gradients);
  backend_.ops().Synchronize();
}

// Of a step whose loss or gradient's norm is not finite, its update not made if run.on_nan may mend it: an error that
// ends the run, or how it goes on. After a rewind outcome_.last_step is before the step; to which checkpoint it went a
// pause has a say in, as it makes one too.
absl::Status Trainer::NotFinite(const v1::StepRecord& record) {
  const std::string what =
      StrCat("step ", record.step(), ": the loss is ", record.loss(), " and the gradient's norm ", record.grad_norm());
  const std::string advice =
      StrCat("; lower optimizer.learning_rate or look at the data; the last checkpoint is of step ",
             checkpointed_ < 0 ? 0 : checkpointed_);
  const v1::OnNan policy = run_.spec.run().on_nan();
  if (policy == v1::ON_NAN_SKIP) {
    if (detour_.skipped_in_row == kMostSkipsInARow)
      return FailedPrecondition(what, "; the ", kMostSkipsInARow, " steps before it were skipped too", advice);
    ++detour_.skipped;
    ++detour_.skipped_in_row;
    Warn(StrCat(what, "; its update was left out (run.on_nan: skip), ", detour_.skipped_in_row, " in a row"));
    return absl::OkStatus();
  }
  if (policy != v1::ON_NAN_REWIND) return FailedPrecondition(what, advice);
  if (detour_.rewinds == kMostRewinds)
    return FailedPrecondition(what, "; the run went back ", kMostRewinds, " times already", advice);
  const auto step = static_cast<int64_t>(record.step());
  HONE_RETURN_IF_ERROR(Restore().status());
  ++detour_.rewinds;
  detour_.extra_batches += step - outcome_.last_step;
  // Damaged checkpoints lead further back than the plan looked ahead.
  if (run_.steps + detour_.extra_batches > run_.batches())
    return FailedPrecondition(what, "; the last whole checkpoint is too far back to go on from", advice);
  HONE_ASSIGN_OR_RETURN(step_log_, StepLog::Open(Path("steps.jsonl"), outcome_.last_step));
  Warn(StrCat(what, "; went back to step ", outcome_.last_step, " and on with the data after it (run.on_nan: rewind), ",
              detour_.rewinds, " of at most ", kMostRewinds, " times"));
  return absl::OkStatus();
}

absl::Status Trainer::Step(int64_t step) {
  const auto begin = Clock::now();
  const uint64_t epoch = cursor_.epoch;
  const std::vector<uint32_t> indices = order_.Next(&cursor_);
  const StepLaunches launches = LaunchesOf(run_, request_.plan, indices);
  const bool coupled = !launches.train.front().mismatched.empty();
  HONE_ASSIGN_OR_RETURN(auto described,
                        Describe(run_.data.train, indices, reference_.train, reference_.train_kl, coupled));
  if (!coupled) HONE_RETURN_IF_ERROR(objective_->Begin(described));
  session_->ZeroGradients();
  v1::FromWorker event;
  v1::StepRecord& record = *event.mutable_step();
  absl::Status begun;
  int64_t rows = 0, launched_rows = 0;
  for (const LaunchBatch& batch : launches.train) {
    session_->ForwardBackward(batch.packed, [&](std::span<const float> log_probs, std::span<float> coefficients) {
      for (const LogitSlice& slice : batch.mismatched) {
        described[slice.example].mismatched_policy = SumOf(slice, log_probs);
      }
      if (coupled) begun = objective_->Begin(described);
      for (const LogitSlice& slice : batch.slices) {
        objective_->Example(slice.example, log_probs.subspan(slice.first, slice.count),
                            coefficients.subspan(slice.first, slice.count));
      }
    });
    record.set_tokens(record.tokens() + static_cast<uint64_t>(batch.example_tokens));
    record.set_supervised_tokens(record.supervised_tokens() + batch.packed.targets.size() -
                                 static_cast<uint64_t>(batch.packed.tail_logits));
    rows += batch.packed.tokens();
    launched_rows += session_->LaunchRows(batch.packed);
  }
  HONE_RETURN_IF_ERROR(begun);
  OverwriteGradientsForTests(step + detour_.extra_batches);
  if (step < request_.save_gradients) {
    const std::vector<float> gradients = session_->Download(session_->lora().gradients);
    HONE_RETURN_IF_ERROR(WriteLoraTensors(StrCat(request_.output_dir, "/gradients-", step, ".safetensors"),
                                          session_->layout(), gradients));
  }
  const double rate = LearningRate(run_.spec.schedule(), run_.spec.optimizer().learning_rate(), step, run_.steps);
  objective_->Finish(record);
  // Where the update may be left out the norm is known before; the update itself is the same.
  double norm = 0;
  if (run_.spec.run().on_nan() != v1::ON_NAN_STOP) norm = session_->GradientNorm();
  if (run_.spec.run().on_nan() == v1::ON_NAN_STOP || (std::isfinite(norm) && std::isfinite(record.loss())))
    norm = session_->OptimizerStep(step - detour_.skipped, rate);
  record.set_step(static_cast<uint64_t>(step + 1));
  record.set_steps(static_cast<uint64_t>(run_.steps));
  record.set_epoch(static_cast<double>(epoch) +
                   static_cast<double>(cursor_.epoch > epoch ? run_.data.train.examples.size() : cursor_.position) /
                       static_cast<double>(run_.data.train.examples.size()));
  record.set_learning_rate(rate);
  record.set_grad_norm(norm);
  record.set_fill(static_cast<double>(rows) / static_cast<double>(launched_rows));
  record.set_seconds(Seconds(begin));
  record.set_tokens_per_second(static_cast<double>(record.tokens()) / record.seconds());
  if (!std::isfinite(record.loss()) || !std::isfinite(norm)) {
    HONE_RETURN_IF_ERROR(NotFinite(record));
    if (run_.spec.run().on_nan() == v1::ON_NAN_REWIND) return absl::OkStatus();  // to be made again
  } else {
    detour_.skipped_in_row = 0;
  }
  HONE_RETURN_IF_ERROR(step_log_->Append(record));
  outcome_.train_seconds += record.seconds();
  outcome_.tokens += record.tokens();
  outcome_.last_record = record;
  outcome_.last_step = step + 1;
  if ((step + 1) % run_.spec.run().logging_steps() == 0 || step + 1 == run_.steps) events_.Emit(event);
  return absl::OkStatus();
}

absl::Status Trainer::Evaluate(int64_t step) {
  const Dataset& data = run_.data.eval;
  if (data.examples.empty()) return absl::OkStatus();
  const auto begin = Clock::now();
  EmitProgress(v1::PHASE_EVALUATING, 0, static_cast<int64_t>(data.examples.size()));
  std::vector<uint32_t> indices(data.examples.size());
  std::vector<const Example*> examples;
  for (uint32_t i = 0; i < indices.size(); ++i) indices[i] = i, examples.push_back(&data.examples[i]);
  HONE_ASSIGN_OR_RETURN(const auto described, Describe(data, indices, reference_.eval, reference_.eval_kl, false));
  std::vector<double> sums(indices.size());
  HONE_RETURN_IF_ERROR(ForwardSums(*session_, examples, request_.plan, AdapterMode::kOn, sums, nullptr));
  HONE_RETURN_IF_ERROR(objective_->Begin(described));
  double total = 0;
  int64_t trained = 0;
  uint64_t tokens = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto sum = static_cast<float>(sums[i]);
    float unused = 0;
    objective_->Example(static_cast<int64_t>(i), {&sum, 1}, {&unused, 1});
    total += sums[i];
    trained += described[i].trained_tokens;
    tokens += static_cast<uint64_t>(examples[i]->length());
  }
  v1::StepRecord record;
  objective_->Finish(record);
  v1::FromWorker event;
  v1::EvalRecord& eval = *event.mutable_eval();
  eval.set_step(static_cast<uint64_t>(step));
  eval.set_loss(record.loss());
  eval.set_perplexity(std::exp(-total / static_cast<double>(trained)));
  eval.set_examples(indices.size());
  eval.set_tokens(tokens);
  eval.set_seconds(Seconds(begin));
  if (record.has_kl()) eval.set_kl(record.kl());
  if (record.has_rewards_chosen()) eval.set_rewards_chosen(record.rewards_chosen());
  if (record.has_rewards_rejected()) eval.set_rewards_rejected(record.rewards_rejected());
  if (record.has_rewards_margins()) eval.set_rewards_margins(record.rewards_margins());
  outcome_.last_eval = eval;
  HONE_RETURN_IF_ERROR(step_log_->Append(eval));
  events_.Emit(event);
  return absl::OkStatus();
}

absl::Status Trainer::Checkpoint(int64_t steps_done) {
  if (checkpointed_ == steps_done) return absl::OkStatus();
  const auto begin = Clock::now();
  HONE_RETURN_IF_ERROR(step_log_->Flush());
  std::vector<std::string> bytes;
  std::vector<CheckpointPart> parts;
  const std::vector<AdamWOptimizer::State> wanted = CheckpointParts();
  bytes.reserve(wanted.size());  // parts look into it
  for (const AdamWOptimizer::State& part : wanted) {
    bytes.emplace_back(BytesOf(part.tensor), '\0');
    backend_.ops().Download(part.tensor, bytes.back().data());
    parts.push_back({part.name + ".bin", bytes.back()});
  }
  nlohmann::json state = {{"step", steps_done},
                          {"spec_sha256", SpecIdentity(run_.spec)},
                          {"data_sha256", DatasetDigest(run_.data.train)},
                          {"model_digest", run_.files->digest()}};
  if (detour_.skipped > 0 || detour_.rewinds > 0) state["detour"] = ToJson(detour_);
  HONE_ASSIGN_OR_RETURN(const std::string folder, SaveCheckpoint(Path("checkpoints"), steps_done, state, parts));
  checkpointed_ = steps_done;
  v1::FromWorker event;
  event.mutable_checkpoint()->set_step(static_cast<uint64_t>(steps_done));
  event.mutable_checkpoint()->set_path(folder);
  HONE_ASSIGN_OR_RETURN(const std::string manifest, Sha256HexOfFile(folder + "/manifest.json"));
  event.mutable_checkpoint()->set_manifest_sha256(manifest);
  event.mutable_checkpoint()->set_seconds(Seconds(begin));
  events_.Emit(event);
  return absl::OkStatus();
}

absl::StatusOr<TrainOutcome> Trainer::Run() {
  HONE_RETURN_IF_ERROR(Start());
  HONE_RETURN_IF_ERROR(Resume());
  const absl::Status reference = Reference();
  if (absl::IsCancelled(reference)) {
    outcome_.stopped = true;
    return outcome_;
  }
  HONE_RETURN_IF_ERROR(reference);
  EmitMemory();
  EmitProgress(v1::PHASE_TRAINING, outcome_.last_step, run_.steps);
  const v1::RunSpec& spec = run_.spec.run();
  while (outcome_.last_step < run_.steps) {
    const int64_t step = outcome_.last_step;
    HONE_RETURN_IF_ERROR(Step(step));
    const int64_t done = outcome_.last_step;
    if (done <= step) continue;  // gone back
    const bool last = done == run_.steps;
    if (last || (spec.has_eval_steps() && done % spec.eval_steps() == 0)) HONE_RETURN_IF_ERROR(Evaluate(done));
    const TrainControl control = events_.Poll();
    if (last || control != TrainControl::kContinue || done % spec.save_steps() == 0)
      HONE_RETURN_IF_ERROR(Checkpoint(done));
    if (control == TrainControl::kStop && !last) {
      outcome_.stopped = true;
      return outcome_;
    }
  }
  EmitMemory();
  const std::vector<float> values = session_->Download(session_->lora().values);
  const LoraAdapter adapter = AdapterFromValues(session_->layout(), values, run_.files->source());
  HONE_RETURN_IF_ERROR(WritePeftAdapter(Path("adapter"), adapter, run_.files->config()).status());
  return outcome_;
}

}  // namespace

absl::StatusOr<TrainOutcome> Train(const TrainRequest& request, Backend& backend, TrainEvents& events) {
  return Trainer(request, backend, events).Run();
}

}  // namespace hone
