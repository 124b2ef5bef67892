// Whole runs on a two-layer model: loss curves against TRL 0.24 (tests/golden/make_model.py), resume bit by bit, and
// arenas that end exactly where the plan said.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "engine/worker/job.h"
#include "gtest/gtest.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

const std::string kGolden = std::string(HONE_GOLDEN) + "/model";

class Recorded : public TrainEvents {
 public:
  void Emit(const v1::FromWorker& event) override {
    if (event.has_step()) steps.push_back(event.step());
    if (event.has_eval()) evals.push_back(event.eval());
    if (event.has_memory()) memory = event.memory();
    if (event.has_plan()) plan = event.plan();
    if (event.has_checkpoint()) ++checkpoints;
    if (event.has_warning()) warnings.push_back(event.warning());
  }
  TrainControl Poll() override {
    return !steps.empty() && static_cast<int64_t>(steps.back().step()) == stop_after ? TrainControl::kStop
                                                                                     : TrainControl::kContinue;
  }
  std::vector<v1::StepRecord> steps;
  std::vector<v1::EvalRecord> evals;
  v1::MemoryUse memory;
  v1::Plan plan;
  std::vector<std::string> warnings;
  int checkpoints = 0;
  int64_t stop_after = -1;
};

class PausedAfterAWarning : public Recorded {
 public:
  TrainControl Poll() override { return warnings.empty() ? TrainControl::kContinue : Recorded::Poll(); }
};

// Copies the run's folder when so many steps were made.
class Copied : public Recorded {
 public:
  Copied(size_t after, fs::path from, fs::path to) : after_(after), from_(std::move(from)), to_(std::move(to)) {}
  TrainControl Poll() override {
    if (steps.size() == after_) fs::copy(from_, to_, fs::copy_options::recursive);
    return TrainControl::kContinue;
  }

 private:
  size_t after_;
  fs::path from_, to_;
};

class TrainTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              StrCat("hone-train-", ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-", ::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static v1::JobSpec Spec(bool kto, const std::vector<std::string>& sets = {}) {
    const std::string yaml = StrCat(
        "model: {source: ", kGolden, "/llama}\nadapter: {lora: {r: 4, lora_alpha: 8}}\nobjective: ",
        kto ? "{kto: {beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.2, kl_group_size: 4}}" : "{sft: {}}",
        "\ndata: {train: ", kGolden, kto ? "/kto.jsonl" : "/sft.jsonl",
        ", max_length: 64, max_prompt_length: 32, order: sequential}\nbatch: {examples: ", kto ? 8 : 4,
        "}\noptimizer: {learning_rate: 5e-3, max_grad_norm: ", kto ? 0.05 : 0.5,
        "}\nschedule: {name: ", kto ? "linear" : "cosine", ", warmup_ratio: 0.1}\nrun: {max_steps: 20, seed: 42}\n");
    auto spec = SpecFromYaml(yaml, "test.yaml");
    EXPECT_TRUE(spec.ok()) << spec.status();
    for (const std::string& set : sets) EXPECT_TRUE(SetField(*spec, set).ok()) << set;
    return *spec;
  }

  absl::StatusOr<TrainJobResult> Train(const v1::JobSpec& spec, const std::string& name, TrainEvents& events) {
    HONE_ASSIGN_OR_RETURN(const PreparedRun run, PrepareJob(spec, {}));
    TrainJobOptions options;
    options.output_dir = Output(name);
    options.threads = 1;
    return TrainJob(run, options, events);
  }
  // As Train, one process of a run whose batches of these numbers have a gradient that is not a number.
  absl::StatusOr<TrainOutcome> TrainWithBad(const std::set<int64_t>& bad, const v1::JobSpec& spec,
                                            const std::string& name, TrainEvents& events) {
    HONE_ASSIGN_OR_RETURN(const PreparedRun run, PrepareJob(spec, {}));
    PlanJobOptions options;
    options.threads = 1;
    TrainRequest request;
    request.run = &run;
    HONE_ASSIGN_OR_RETURN(request.plan, PlanJob(run, options));
    HONE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                          OpenBackend({run.spec.run().device(), run.spec.run().precision(), 1, ""}));
    request.output_dir = Output(name);
    request.overwrite_gradients_for_tests = [&bad](int64_t batch, std::span<float> gradients) {
      if (bad.contains(batch)) gradients[gradients.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    };
    return hone::Train(request, *backend, events);
  }
  // The steps whose records are in the log, in its order.
  std::vector<int64_t> LoggedSteps(const std::string& name) const {
    std::vector<int64_t> steps;
    std::string text = *ReadFile(Output(name) + "/steps.jsonl");
    for (size_t at = 0, end = 0; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
      const auto line = ParseJson(std::string_view(text).substr(at, end - at));
      EXPECT_TRUE(line.ok()) << line.status();
      if (line.ok() && line->contains("grad_norm")) steps.push_back((*line)["step"].get<int64_t>());
    }
    return steps;
  }
  static std::vector<int64_t> UpTo(int64_t last) {
    std::vector<int64_t> steps;
    for (int64_t step = 1; step <= last; ++step) steps.push_back(step);
    return steps;
  }
  std::string Output(const std::string& name) const { return (folder_ / name).string(); }
  std::string AdapterDigest(const std::string& name) const {
    return *Sha256HexOfFile(Output(name) + "/adapter/adapter_model.safetensors");
  }

  fs::path folder_;
};

std::vector<double> TrlLosses(const char* name) {
  const auto curve = *ParseJson(*ReadFile(StrCat(kGolden, "/", name, "_curve.json")));
  return curve["losses"].get<std::vector<double>>();
}

TEST_F(TrainTest, CurvesFollowTrlAtTwoMicroBatchSizesPackedAndApart) {
  for (const bool kto : {true, false}) {
    const std::vector<double> expected = TrlLosses(kto ? "kto" : "sft");
    ASSERT_EQ(expected.size(), 20u);
    for (const char* packing : {"packing=on", "packing=off"}) {
      for (const char* tokens : {"micro_batch_tokens=48", "micro_batch_tokens=512"}) {
        Recorded events;
        const auto result = Train(Spec(kto, {StrCat("memory.", packing), StrCat("memory.", tokens)}),
                                  StrCat(kto, packing, tokens), events);
        ASSERT_TRUE(result.ok()) << result.status();
        ASSERT_EQ(events.steps.size(), 20u);
        // A whole KTO step fits 512 tokens: one launch, its mismatched completions behind the policy's rows.
        const bool coupled =
            kto && std::string(packing) == "packing=on" && std::string(tokens) == "micro_batch_tokens=512";
        uint64_t most = 0;
        for (const v1::StepRecord& step : events.steps) most = std::max<uint64_t>(most, step.tokens());
        EXPECT_EQ(events.plan.train_limits().tokens() > most, coupled) << packing << tokens;
        for (size_t i = 0; i < 20; ++i)
          EXPECT_NEAR(events.steps[i].loss(), expected[i], 1e-4) << (kto ? "kto" : "sft") << " step " << i;
      }
    }
  }
}

// Rows that begin alike are computed behind their common beginning when packed; one at a time they are not.
TEST_F(TrainTest, ACommonBeginningChangesNothingButTheOrderOfAdditions) {
  std::string rows;
  for (int i = 0; i < 8; ++i) {
    rows += StrCat(R"({"prompt": "the quick brown fox jumps over a lazy dog while )", i,
                   R"( birds", "completion": " sing about rain )", i * 7, R"(", "label": )", i % 2 == 0, "}\n");
  }
  ASSERT_TRUE(WriteFileDurably(Output("rows.jsonl"), rows).ok());
  std::vector<std::vector<double>> losses;
  for (const char* packing : {"memory.packing=on", "memory.packing=off"}) {
    Recorded events;
    const auto result =
        Train(Spec(true, {packing, StrCat("data.train=", Output("rows.jsonl")), "run.max_steps=6"}), packing, events);
    ASSERT_TRUE(result.ok()) << result.status();
    losses.emplace_back();
    for (const v1::StepRecord& step : events.steps) {
      losses.back().push_back(step.loss());
      EXPECT_EQ(step.tokens(), events.steps[0].tokens());
    }
    const uint64_t rows_planned = events.plan.train_limits().tokens();
    EXPECT_LT(rows_planned, events.steps[0].tokens()) << packing;
  }
  for (size_t i = 0; i < losses[0].size(); ++i) EXPECT_NEAR(losses[0][i], losses[1][i], 2e-5) << i;
}

TEST_F(TrainTest, AStoppedRunResumesToTheSameBits) {
  const v1::JobSpec spec =
      Spec(true, {"data.order=shuffled", "data.eval_fraction=0.2", "run.eval_steps=5", "run.save_steps=3"});
  Recorded whole;
  ASSERT_TRUE(Train(spec, "whole", whole).ok());
  for (const int64_t stop : {1, 4, 13}) {
    Recorded first, second;
    first.stop_after = stop;
    const auto stopped = Train(spec, StrCat("stopped", stop), first);
    ASSERT_TRUE(stopped.ok()) << stopped.status();
    EXPECT_TRUE(stopped->stopped);
    EXPECT_EQ(stopped->last_step, stop);
    ASSERT_TRUE(Train(spec, StrCat("stopped", stop), second).ok());
    EXPECT_EQ(static_cast<int64_t>(second.steps.front().step()), stop + 1);
    EXPECT_EQ(AdapterDigest(StrCat("stopped", stop)), AdapterDigest("whole"));
    ASSERT_EQ(first.steps.size() + second.steps.size(), whole.steps.size());
    EXPECT_EQ(second.steps.back().loss(), whole.steps.back().loss());
    EXPECT_EQ(second.evals.back().perplexity(), whole.evals.back().perplexity());
  }
}

TEST_F(TrainTest, ADamagedCheckpointIsSkippedAndSaidSo) {
  const v1::JobSpec spec = Spec(false, {"run.save_steps=2"});
  Recorded whole, first, second;
  ASSERT_TRUE(Train(spec, "whole", whole).ok());
  first.stop_after = 6;
  ASSERT_TRUE(Train(spec, "hurt", first).ok());
  const std::string newest = Output("hurt") + "/checkpoints/step-000000000006/adapter.bin";
  std::string bytes = *ReadFile(newest);
  bytes[bytes.size() / 2] ^= 1;
  ASSERT_TRUE(WriteFileDurably(newest, bytes).ok());
  ASSERT_TRUE(Train(spec, "hurt", second).ok());
  EXPECT_EQ(second.warnings.size(), 1u);
  EXPECT_EQ(second.steps.front().step(), 5u);
  EXPECT_EQ(AdapterDigest("hurt"), AdapterDigest("whole"));
}

TEST_F(TrainTest, AnotherSpecIsRefusedInTheSameFolder) {
  Recorded events;
  events.stop_after = 1;
  ASSERT_TRUE(Train(Spec(false), "folder", events).ok());
  Recorded again;
  const auto refused = Train(Spec(false, {"optimizer.learning_rate=1e-4"}), "folder", again);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TrainTest, ANonFiniteStepStopsTheRunByDefault) {
  Recorded events;
  const auto stopped = TrainWithBad({5}, Spec(false, {"run.save_steps=2"}), "stop", events);
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(stopped.status().message());
  EXPECT_EQ(message.find("step 6: the loss is "), 0u) << message;
  EXPECT_NE(message.find(" and the gradient's norm nan; lower optimizer.learning_rate or look at the data; the last "
                         "checkpoint is of step 4"),
            std::string::npos)
      << message;
  EXPECT_EQ(events.steps.size(), 5u);
}

TEST_F(TrainTest, APolicyForNonFiniteStepsChangesNoBitOfOthers) {
  for (const bool kto : {true, false}) {
    Recorded events;
    ASSERT_TRUE(TrainWithBad({}, Spec(kto), StrCat("stop", kto), events).ok());
    for (const char* policy : {"skip", "rewind"}) {
      const std::string name = StrCat(policy, kto);
      ASSERT_TRUE(TrainWithBad({}, Spec(kto, {StrCat("run.on_nan=", policy)}), name, events).ok());
      EXPECT_EQ(AdapterDigest(name), AdapterDigest(StrCat("stop", kto)));
    }
    EXPECT_TRUE(events.warnings.empty());
  }
}

TEST_F(TrainTest, SkippedUpdatesLeaveValuesAndStatesAlone) {
  for (const char* optimizer : {"adamw", "adamw_8bit"}) {
    const v1::JobSpec spec = Spec(true, {"run.on_nan=skip", "run.save_steps=1", StrCat("optimizer.name=", optimizer)});
    const std::string whole = StrCat("whole", optimizer), parts = StrCat("parts", optimizer);
    Recorded all, first, second;
    ASSERT_TRUE(TrainWithBad({5, 6}, spec, whole, all).ok());
    EXPECT_EQ(all.warnings.size(), 2u);
    EXPECT_NE(all.warnings.at(1).find("step 7: the loss is "), std::string::npos) << all.warnings.at(1);
    EXPECT_NE(all.warnings.at(1).find("2 in a row"), std::string::npos) << all.warnings.at(1);
    EXPECT_EQ(LoggedSteps(whole), UpTo(20));
    first.stop_after = 6;
    ASSERT_TRUE(TrainWithBad({5, 6}, spec, parts, first).ok());
    int compared = 0;
    for (const auto& entry : fs::directory_iterator(Output(parts) + "/checkpoints/step-000000000006")) {
      if (entry.path().extension() != ".bin") continue;
      const std::string before = Output(parts) + "/checkpoints/step-000000000005/" + entry.path().filename().string();
      EXPECT_EQ(*ReadFile(entry.path().string()), *ReadFile(before)) << before;
      ++compared;
    }
    EXPECT_GE(compared, 3);
    ASSERT_TRUE(TrainWithBad({5, 6}, spec, parts, second).ok());
    EXPECT_EQ(AdapterDigest(parts), AdapterDigest(whole));
    EXPECT_NE(second.warnings.at(0).find("2 in a row"), std::string::npos) << "counted across the resume";
  }
}

// As if the step had not been: the first step's update is that of a first step, bias corrections too.
TEST_F(TrainTest, ASkippedFirstStepDoesNotCountForTheOptimiser) {
  const std::vector<std::string> constant = {"run.on_nan=skip", "schedule.name=constant", "schedule.warmup_ratio=0",
                                             "run.max_steps=2", "data.train=" + Output("rows.jsonl")};
  const std::string row = R"({"prompt": "one", "completion": " two three"})";
  std::string rows;
  for (int i = 0; i < 8; ++i) rows += row + "\n";
  ASSERT_TRUE(WriteFileDurably(Output("rows.jsonl"), rows).ok());
  std::vector<std::string> one = constant;
  one.push_back("run.max_steps=1");
  Recorded events;
  ASSERT_TRUE(TrainWithBad({0}, Spec(false, constant), "skipped", events).ok());
  ASSERT_TRUE(TrainWithBad({}, Spec(false, one), "one", events).ok());
  EXPECT_EQ(AdapterDigest("skipped"), AdapterDigest("one"));
}

TEST_F(TrainTest, ElevenNonFiniteStepsInARowStopASkippingRun) {
  std::set<int64_t> bad;
  for (int64_t batch = 3; batch < 20; ++batch) bad.insert(batch);
  const v1::JobSpec spec = Spec(false, {"run.on_nan=skip", "run.save_steps=1"});
  for (const int64_t stop : {-1, 8}) {
    Recorded first, second;
    first.stop_after = stop;
    auto result = TrainWithBad(bad, spec, StrCat("row", stop), first);
    if (stop > 0) result = TrainWithBad(bad, spec, StrCat("row", stop), second);
    const std::string message(result.status().message());
    EXPECT_EQ(message.find("step 14: the loss is "), 0u) << message;
    EXPECT_NE(message.find("the 10 steps before it were skipped too"), std::string::npos) << message;
    EXPECT_EQ(first.warnings.size() + second.warnings.size(), 10u);
  }
  // A loss that is not finite because the values no longer are good for anything.
  Recorded events;
  const auto burst =
      TrainWithBad({}, Spec(false, {"run.on_nan=skip", "optimizer.learning_rate=1e36"}), "burst", events);
  EXPECT_EQ(burst.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(events.warnings.size(), 10u);
  EXPECT_EQ(LoggedSteps("burst"), UpTo(static_cast<int64_t>(events.steps.size()))) << "each line is JSON";
  EXPECT_FALSE(std::isfinite(events.steps.back().loss()));
}

TEST_F(TrainTest, ARewindGoesOnFromTheCheckpointWithTheDataAfterTheStep) {
  Recorded plain;
  ASSERT_TRUE(TrainWithBad({}, Spec(true), "plain", plain).ok());
  const v1::JobSpec spec = Spec(true, {"run.on_nan=rewind", "run.save_steps=4", "run.eval_steps=3"});
  for (const int64_t bad : {1, 5}) {  // two batches further each, of three an epoch
    const std::string whole = StrCat("whole", bad), parts = StrCat("parts", bad);
    Recorded all;
    ASSERT_TRUE(TrainWithBad({bad}, spec, whole, all).ok());
    ASSERT_EQ(all.warnings.size(), 1u);
    EXPECT_NE(all.warnings[0].find(StrCat("step ", bad + 1, ": the loss is ")), std::string::npos) << all.warnings[0];
    EXPECT_EQ(LoggedSteps(whole), UpTo(20));
    const int64_t back = bad / 4 * 4;
    const v1::StepRecord& next = all.steps.at(static_cast<size_t>(bad));  // the first after the bad one
    EXPECT_EQ(static_cast<int64_t>(next.step()), back + 1);
    EXPECT_EQ(next.tokens(), plain.steps.at(static_cast<size_t>(bad) + 1).tokens());
    for (const int64_t stop : {back + 1, back + 2, back + 5}) {
      PausedAfterAWarning first;
      Recorded second;
      first.stop_after = stop;
      ASSERT_TRUE(TrainWithBad({bad}, spec, StrCat(parts, stop), first).ok());
      ASSERT_TRUE(TrainWithBad({bad}, spec, StrCat(parts, stop), second).ok());
      EXPECT_EQ(AdapterDigest(StrCat(parts, stop)), AdapterDigest(whole)) << bad << " " << stop;
      EXPECT_EQ(LoggedSteps(StrCat(parts, stop)), UpTo(20));
    }
    EXPECT_NE(AdapterDigest(whole), AdapterDigest("plain"));
    // As a kill would leave it, before the bad step and after.
    for (const int64_t steps : {bad, bad + 1, bad + 3}) {
      const std::string cut = StrCat("cut", bad, "-", steps);
      Copied first(static_cast<size_t>(steps), Output("uncut"), Output(cut));
      Recorded second;
      fs::remove_all(Output("uncut"));
      ASSERT_TRUE(TrainWithBad({bad}, spec, "uncut", first).ok());
      ASSERT_TRUE(fs::exists(Output(cut)));
      ASSERT_TRUE(TrainWithBad({bad}, spec, cut, second).ok());
      EXPECT_EQ(AdapterDigest(cut), AdapterDigest(whole)) << bad << " " << steps;
      EXPECT_EQ(LoggedSteps(cut), UpTo(20));
    }
  }
}

TEST_F(TrainTest, AFourthRewindStopsTheRun) {
  const v1::JobSpec spec = Spec(false, {"run.on_nan=rewind", "run.save_steps=4", "data.order=shuffled"});
  Recorded events;
  ASSERT_TRUE(TrainWithBad({5, 7, 16}, spec, "three", events).ok());
  EXPECT_EQ(events.warnings.size(), 3u);
  Recorded more;
  const auto stopped = TrainWithBad({5, 7, 16, 18}, spec, "four", more);
  const std::string message(stopped.status().message());
  EXPECT_NE(message.find("the run went back 3 times already"), std::string::npos) << message;
  EXPECT_EQ(more.warnings.size(), 3u);
}

// Issue: planned bytes equal the arenas' high-water mark exactly, for ten different specs.
TEST_F(TrainTest, ArenasEndExactlyWhereTheirPlansSaid) {
  const std::vector<std::vector<std::string>> specs = {
      {},
      {"memory.packing=off"},
      {"memory.policy=smallest"},
      {"memory.policy=fastest"},
      {"memory.micro_batch_tokens=33"},
      {"adapter.lora.r=16", "adapter.lora.target_modules=[q_proj, v_proj]"},
      {"model.quantization=nf4"},
      {"data.eval_fraction=0.3", "run.eval_steps=1"},
      {"adapter.lora.layers_to_transform=[1]"},
      {"data.order=shuffled", "batch.examples=3", "data.max_length=40", "data.max_prompt_length=8"},
  };
  int i = 0;
  for (const bool kto : {true, false}) {
    for (std::vector<std::string> sets : specs) {
      sets.push_back("run.max_steps=4");
      if (kto && std::find(sets.begin(), sets.end(), "batch.examples=3") != sets.end())
        sets.push_back("objective.kto.kl_group_size=3");
      Recorded events;
      const auto result = Train(Spec(kto, sets), StrCat("plan", i++), events);
      ASSERT_TRUE(result.ok()) << result.status();
      uint64_t total = 0;
      for (const v1::ArenaUse& arena : events.memory.arenas()) {
        EXPECT_EQ(arena.actual_bytes(), arena.planned_bytes()) << arena.name() << " of spec " << i - 1;
        total += arena.actual_bytes();
      }
      EXPECT_EQ(total, events.plan.bytes().total());
    }
  }
}

TEST_F(TrainTest, APlanThatDoesNotFitIsRefusedWithWhatWouldHelp) {
  Recorded events;
  const auto result = Train(Spec(false, {"memory.vram_budget=100KB"}), "small", events);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(result.status().message()).find("memory.vram_budget"), std::string::npos) << result.status();
}

TEST_F(TrainTest, ExportsAreComparedAndReceipted) {
  Recorded events;
  const auto result =
      Train(Spec(false, {"run.max_steps=5", "export=[peft, merged:f32, gguf:f16, gguf:q8_0]"}), "exports", events);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->result["exports"].size(), 3u);
  for (const auto& receipt : result->result["exports"]) {
    const double difference = receipt["largest_logit_difference"].get<double>();
    EXPECT_LT(difference, receipt["format"] == "merged:f32" ? 1e-4 : 0.5) << receipt.dump();
  }
  for (const v1::Artifact& artifact : result->artifacts) {
    EXPECT_EQ(*Sha256HexOfFile(Output("exports") + "/" + artifact.path()), artifact.sha256());
  }
}

}  // namespace
}  // namespace hone
