// A plan's choices on a five-layer model (random weights): recompute levels, offload, kept decoded weights, the table
// on the host do not change a bit; chunks of rows, null rows, weights decoded apart change sums within rounding; what
// is forward-only in a launch equals a pass of its own. And arenas end where the dry run said.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "engine/io/model_files.h"
#include "engine/train/session.h"
#include "gtest/gtest.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/file.h"
#include "proto/base/status.h"
#include "tests/model/late_ops.h"

namespace hone {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLayers = 5;
using Levels = std::vector<Recompute>;

struct Shape {
  const char* name;
  const char* model_type;
  bool tied;
};
constexpr Shape kShapes[] = {{"llama", "llama", false}, {"qwen2", "qwen2", true}, {"qwen3", "qwen3", false}};

// A random model's folder, gone at the end.
class Files {
 public:
  explicit Files(const Shape& shape) {
    folder_ = fs::temp_directory_path() / StrCat("hone-plans-", shape.name, "-", ::getpid());
    fs::create_directories(folder_);
    const std::string config = StrCat(
        R"({"model_type": ")", shape.model_type,
        R"(", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": )", kLayers,
        R"(, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "vocab_size": 96,)",
        R"( "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256, "dtype": "float32",)",
        R"( "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": )", shape.tied ? "true" : "false", "}");
    EXPECT_TRUE(WriteFileDurably((folder_ / "config.json").string(), config).ok());
    auto files = ModelFiles::Open("random:" + (folder_ / "config.json").string());
    EXPECT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
  }
  ~Files() { fs::remove_all(folder_); }
  const ModelFiles& operator*() const { return *files_; }

 private:
  fs::path folder_;
  std::unique_ptr<ModelFiles> files_;
};

SessionOptions Options(const Levels& levels = {}) {
  SessionOptions options;
  options.lora.r = 3;
  options.lora.alpha = 6;
  options.optimizer.add_betas(0.9);
  options.optimizer.add_betas(0.999);
  options.optimizer.set_eps(1);  // a step proportional to the gradient: rounding stays rounding
  options.decoder.recompute = levels;
  options.decoder.head_chunk_rows = 5;
  options.limits = {{48, 64, 8}, {48, 64, 8}};
  return options;
}

int32_t Token(int64_t i) { return static_cast<int32_t>((i * 37 + i * i * 11 + 5) % 96); }

void Want(PackedBatch& batch, int32_t row, int32_t target) {
  batch.logit_rows.push_back(row);
  batch.targets.push_back(target);
}

// Two documents and two completions of one prompt.
PackedBatch Batch() {
  PackedBatch batch;
  std::vector<int32_t> ids(40);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = Token(static_cast<int64_t>(i));
  for (const auto& [begin, count] : {std::pair(0, 9), std::pair(9, 6)}) {
    const int32_t row = AppendDocument(batch, ids.data() + begin, count);
    for (int32_t i = 0; i + 1 < count; ++i) Want(batch, row + i, ids[begin + i + 1]);
  }
  const int32_t prompt = AppendDocument(batch, ids.data() + 15, 7);
  for (const auto& [begin, count] : {std::pair(22, 5), std::pair(27, 8)}) {
    const int32_t row = AppendCompletion(batch, ids.data() + begin, count, prompt, 7);
    for (int32_t i = 0; i + 1 < count; ++i) Want(batch, row + i, ids[begin + i + 1]);
  }
  return batch;
}

struct Result {
  std::vector<float> gradients, log_probs, forward, reference;
};

void SetAdapter(TrainSession& session) {
  std::vector<float> values = InitialLoraValues(session.layout(), 3);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == 0) values[i] = 0.01f * static_cast<float>(Token(static_cast<int64_t>(i)) - 48);
  }
  session.Upload(values, session.lora().values);
}

void Pass(TrainSession& session, const PackedBatch& batch, Result* result) {
  session.ForwardBackward(batch, [&](std::span<const float> log_probs, std::span<float> out) {
    if (result != nullptr) result->log_probs.assign(log_probs.begin(), log_probs.end());
    for (size_t i = 0; i < out.size(); ++i) out[i] = 0.1f + 0.01f * static_cast<float>(i);
  });
}

// Runs batch in arenas that a dry run of the limits sized and that hold NaN; twice, so that a second launch meets what
// the first left, and where `learning_rate` is above 0 with a step between.
Result RunPlan(const ModelFiles& files, const SessionOptions& options, const PackedBatch& batch = Batch(),
               double learning_rate = 0, bool rehearse = false) {
  const auto dry = MakeDryOps(BackendKind::kCpu, DType::kF32);
  ArenaSet measured = ArenaSet::Dry();
  auto rehearsal = *TrainSession::Create(files, options, *dry, measured);
  const PackedBatch largest = LargestBatch(options.limits.train);
  std::vector<float> unused(largest.targets.size());
  Pass(*rehearsal, largest, nullptr);
  rehearsal->LogProbs(largest, AdapterMode::kOn, unused);
  rehearsal->OptimizerStep(0, 0);

  static Backend* const backend = OpenCpu({1})->release();  // opening checks the BLAS, which takes a while
  LateOps ops(backend->ops());
  ArenaSet arenas = *ArenaSet::Reserve(*backend, measured.HighWater(), measured.PinnedHighWater());
  for (const auto& block : arenas.blocks) {
    std::fill_n(static_cast<float*>(block->data()), block->size() / sizeof(float), std::nanf(""));
  }
  auto session = *TrainSession::Create(files, options, ops, arenas);
  SetAdapter(*session);
  Result result;
  result.forward.resize(batch.targets.size());
  result.reference.resize(batch.targets.size());
  session->optimizer().Reset();
  if (rehearse) {
    session->SetRehearsing(true);
    Pass(*session, batch, &result);
    session->LogProbs(batch, AdapterMode::kOn, result.forward);
    session->SetRehearsing(false);
    session->AdapterChanged();
  }
  for (int i = 0; i < 2; ++i) {
    if (i == 1 && learning_rate > 0) session->OptimizerStep(0, learning_rate);
    session->ZeroGradients();
    Pass(*session, batch, &result);
    session->LogProbs(batch, AdapterMode::kOn, result.forward);
    session->LogProbs(batch, AdapterMode::kOff, result.reference);
  }
  result.gradients = session->Download(session->lora().gradients);
  const v1::MemoryUse use = arenas.Use();
  for (const v1::ArenaUse& arena : use.arenas()) {
    EXPECT_EQ(arena.planned_bytes(), arena.actual_bytes()) << arena.name();
  }
  EXPECT_EQ(use.pinned_bytes(), measured.PinnedHighWater());
  int64_t offloaded = 0;
  for (int64_t layer = 0; layer < kLayers; ++layer) offloaded += OnHost(options.decoder, layer);
  if (options.lora.layers.empty()) {
    EXPECT_EQ(ops.transfers > 0, offloaded > 1);
  }
  return result;
}

bool Same(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

void ExpectSameBits(const Result& actual, const Result& expected) {
  EXPECT_TRUE(Same(actual.gradients, expected.gradients));
  EXPECT_TRUE(Same(actual.log_probs, expected.log_probs));
  EXPECT_TRUE(Same(actual.forward, expected.forward));
  EXPECT_TRUE(Same(actual.reference, expected.reference));
}

void ExpectNear(std::span<const float> actual, std::span<const float> expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  EXPECT_GT(norm, 0);
  EXPECT_LE(std::sqrt(difference / norm), tolerance);
}

void ExpectNear(const Result& actual, const Result& expected) {
  ExpectNear(actual.gradients, expected.gradients, 4e-6);
  ExpectNear(actual.log_probs, expected.log_probs, 1e-6);
  ExpectNear(actual.forward, expected.forward, 1e-6);
  ExpectNear(actual.reference, expected.reference, 1e-6);
}

Levels Uniform(Recompute level) { return Levels(kLayers, level); }

const std::vector<Levels>& AllLevels() {
  using enum Recompute;
  static const std::vector<Levels> levels = {
      Uniform(kActivation),
      Uniform(kMlp),
      Uniform(kBlock),
      Uniform(kFull),
      {kNone, kFull, kActivation, kBlock, kMlp},
      {kFull, kFull, kNone, kFull, kFull},
      {kBlock, kNone, kBlock, kBlock, kFull},
  };
  return levels;
}

class DecoderPlans : public testing::TestWithParam<Shape> {};

TEST_P(DecoderPlans, TrainingAndForwardPassesAgreeToTheBit) {
  const Files files(GetParam());
  const Result result = RunPlan(*files, Options());
  EXPECT_TRUE(Same(result.log_probs, result.forward));
  EXPECT_FALSE(Same(result.log_probs, result.reference));
}

TEST_P(DecoderPlans, RecomputeLevelsDoNotChangeABit) {
  const Files files(GetParam());
  const Result expected = RunPlan(*files, Options());
  for (const Levels& levels : AllLevels()) {
    for (const bool apart : {false, true}) {
      // Decoded apart, gate and up give their input's gradient in two sums.
      SessionOptions options = Options(levels), plain = Options();
      options.decoder.decode_apart = plain.decoder.decode_apart = apart;
      ExpectSameBits(RunPlan(*files, options), apart ? RunPlan(*files, plain) : expected);
    }
  }
}

TEST_P(DecoderPlans, OffloadDoesNotChangeABit) {
  using enum Recompute;
  const Files files(GetParam());
  const Result expected = RunPlan(*files, Options());
  for (const Recompute from : {kNone, kActivation, kMlp, kBlock}) {
    for (Levels levels : AllLevels()) {
      SessionOptions options = Options(levels);
      options.decoder.offload_inputs = true;
      options.decoder.offload_from = from;
      ExpectSameBits(RunPlan(*files, options), expected);
    }
    // The lower layers keep nothing.
    SessionOptions options = Options({kFull, kMlp, kBlock, kActivation, kMlp}), plain = Options();
    options.decoder.offload_inputs = true;
    options.decoder.offload_from = from;
    options.lora.layers = plain.lora.layers = {2, 3, 4};
    ExpectSameBits(RunPlan(*files, options), RunPlan(*files, plain));
  }
}

// Any layers may wait on the host, gate and up of neighbours or of layers far apart in one buffer.
TEST_P(DecoderPlans, AnyLayersOnTheHostDoNotChangeABit) {
  using enum Recompute;
  const Files files(GetParam());
  const Result expected = RunPlan(*files, Options());
  const std::vector<Levels> mixes = {Uniform(kActivation),
                                     Uniform(kMlp),
                                     {kActivation, kMlp, kActivation, kMlp, kActivation},
                                     {kActivation, kMlp, kMlp, kMlp, kActivation},
                                     {kActivation, kActivation, kFull, kMlp, kMlp},
                                     {kMlp, kBlock, kNone, kNone, kFull}};
  for (const Levels& levels : mixes) {
    for (uint32_t mask = 1; mask < 1u << kLayers; ++mask) {
      SessionOptions options = Options(levels);
      for (int64_t layer = 0; layer < kLayers; ++layer) options.decoder.on_host.push_back((mask >> layer & 1) != 0);
      SCOPED_TRACE(mask);
      ExpectSameBits(RunPlan(*files, options), expected);
    }
  }
}

// A rehearsal touches no more than a real pass, and leaves nothing behind that one could meet.
TEST_P(DecoderPlans, ARehearsalLeavesTheResultAlone) {
  const Files files(GetParam());
  SessionOptions options =
      Options({Recompute::kFull, Recompute::kMlp, Recompute::kMlp, Recompute::kFull, Recompute::kActivation});
  options.decoder.on_host = {true, true, false, true, true};
  options.decoded_layers = 1;
  const Result expected = RunPlan(*files, options), rehearsed = RunPlan(*files, options, Batch(), 0, true);
  ExpectSameBits(rehearsed, expected);
}

TEST_P(DecoderPlans, DecodedLayersAndATableOnTheHostDoNotChangeABit) {
  const Files files(GetParam());
  for (const WeightQuantization quantization : {WeightQuantization::kNone, WeightQuantization::kNf4}) {
    SessionOptions options = Options();
    options.quantization = quantization;
    // A step, that kept weights must follow.
    const Result expected = RunPlan(*files, options, Batch(), 0.2);
    options.embedding_on_host = true;
    for (const int64_t decoded : {int64_t{0}, int64_t{2}, kLayers}) {
      options.decoded_layers = decoded;
      for (const Recompute level : {Recompute::kNone, Recompute::kFull}) {
        options.decoder.recompute = Uniform(level);
        ExpectSameBits(RunPlan(*files, options, Batch(), 0.2), expected);
      }
    }
  }
}

TEST_P(DecoderPlans, SomeTargetsAndSomeLayersAtEveryLevel) {
  const Files files(GetParam());
  const std::vector<std::vector<LinearKind>> targets = {
      {LinearKind::kQ, LinearKind::kV}, {LinearKind::kUp}, {LinearKind::kDown}, {LinearKind::kO, LinearKind::kGate}};
  for (const auto& chosen : targets) {
    SessionOptions options = Options();
    options.lora.targets = chosen;
    options.lora.layers = {1, 3};
    const Result expected = RunPlan(*files, options);
    for (const Levels& levels : AllLevels()) {
      options.decoder.recompute = levels;
      ExpectSameBits(RunPlan(*files, options), expected);
    }
  }
}

TEST_P(DecoderPlans, ChunksNullRowsAndWeightsApartChangeOnlyRounding) {
  const Files files(GetParam());
  const Result expected = RunPlan(*files, Options());
  for (const Recompute level : {Recompute::kNone, Recompute::kMlp, Recompute::kBlock, Recompute::kFull}) {
    for (const int64_t chunk : {0, 1, 8, 13, 200}) {
      for (const int64_t multiple : {1, 16}) {
        SessionOptions options = Options(Uniform(level));
        options.decoder.mlp_chunk_rows = chunk;
        options.decoder.row_multiple = multiple;
        options.decoder.decode_apart = chunk == 13;
        options.decoder.offload_inputs = level >= Recompute::kBlock && chunk == 8;
        ExpectNear(RunPlan(*files, options), expected);
      }
    }
  }
}

// Launches as large as their limits leave no room that a wrong size could hide in.
TEST_P(DecoderPlans, AFullLaunchFitsItsArenas) {
  const Files files(GetParam());
  SessionOptions options = Options(Uniform(Recompute::kFull));
  const PackedBatch batch = Batch();
  options.limits.train = options.limits.forward = {batch.tokens(), static_cast<int64_t>(batch.targets.size()),
                                                   static_cast<int64_t>(batch.segments.size())};
  options.decoder.mlp_chunk_rows = 8;
  options.decoder.offload_inputs = true;
  options.decoder.row_multiple = 16;
  ExpectNear(RunPlan(*files, options), RunPlan(*files, Options()));
}

// KTO: mismatched completions behind their prompts, forward-only, beside the policy's rows.
TEST_P(DecoderPlans, ForwardOnlyRowsEqualAPassOfTheirOwn) {
  const Files files(GetParam());
  const PackedBatch policy = Batch();
  PackedBatch both = policy;
  const int32_t prompt = 15;  // of Batch's completions
  const std::vector<int32_t> other = {3, 44, 70, 9, 12, 81};
  const int32_t row = AppendCompletion(both, other.data(), 6, prompt, 7);
  Want(both, prompt + 6, other[0]);  // a policy row, wanted again
  for (int32_t i = 0; i < 5; ++i) Want(both, row + i, other[i + 1]);
  both.tail_rows = 6;
  both.tail_logits = 6;
  for (const Levels& levels : AllLevels()) {
    for (const bool special : {false, true}) {
      SessionOptions options = Options(levels);
      options.limits.train.tokens = options.limits.forward.tokens = 48;
      options.limits.train.backward_tokens = special ? 36 : policy.tokens();  // 35 of 41 rows
      options.decoder.on_host.assign(kLayers, special);
      options.decoder.mlp_chunk_rows = special ? 8 : 0;
      options.decoder.row_multiple = special ? 16 : 1;
      const Result alone = RunPlan(*files, options, policy), together = RunPlan(*files, options, both);
      ExpectNear(together.gradients, alone.gradients, 4e-6);
      ASSERT_EQ(together.log_probs.size(), policy.targets.size() + 6);
      ExpectNear(std::span(together.log_probs).first(policy.targets.size()), alone.log_probs, 1e-6);
      PackedBatch document;
      std::vector<int32_t> ids;
      for (int i = 0; i < 7; ++i) ids.push_back(Token(15 + i));
      ids.insert(ids.end(), other.begin(), other.end());
      AppendDocument(document, ids.data(), 13);
      for (int32_t i = 6; i < 12; ++i) Want(document, i, ids[i + 1]);
      ExpectNear(std::span(together.log_probs).last(6), RunPlan(*files, options, document).forward, 1e-6);
    }
  }
}

// One row at a time uses weights as stored, behind a cache.
TEST_P(DecoderPlans, TokenByTokenEqualsTheWholeDocument) {
  const Files files(GetParam());
  for (const WeightQuantization quantization : {WeightQuantization::kNone, WeightQuantization::kNf4}) {
    for (const auto& targets : {std::vector<LinearKind>{}, {LinearKind::kK, LinearKind::kUp}}) {
      SessionOptions options = Options();
      options.quantization = quantization;
      options.lora.targets = targets;
      options.decoded_layers = 1;
      PackedBatch document;
      std::vector<int32_t> ids(12);
      for (int i = 0; i < 12; ++i) ids[i] = Token(i);
      AppendDocument(document, ids.data(), 12);
      for (int32_t i = 0; i < 11; ++i) Want(document, i, ids[i + 1]);
      const Result expected = RunPlan(*files, options, document);

      static Backend* const backend = OpenCpu({1})->release();
      std::vector<char> weights(4 << 20), adapter(1 << 18), gradients(1 << 18), optimizer(1 << 19), scratch(4 << 20);
      auto arena = [](const char* name, std::vector<char>& bytes) {
        auto* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(bytes.data()) + 255) / 256 * 256);
        return Arena(name, base, bytes.size() - 256);
      };
      ArenaSet arenas = ArenaSet::Dry();
      arenas.weights = arena("weights", weights), arenas.adapter = arena("adapter", adapter);
      arenas.scratch = arena("scratch", scratch), arenas.saved = Arena("saved", nullptr, 0);
      arenas.gradients = arena("gradients", gradients), arenas.optimizer = arena("optimizer", optimizer);
      auto session = *TrainSession::Create(*files, options, backend->ops(), arenas);
      SetAdapter(*session);
      Decoder decoder(backend->ops(), session->model(), &session->lora(), {});
      Arena& memory = arenas.scratch;
      KvCache cache = Decoder::AllocateCache(backend->ops(), session->model().config(), 12, memory);
      for (const auto& [mode, log_probs] :
           {std::pair(AdapterMode::kOn, expected.forward), std::pair(AdapterMode::kOff, expected.reference)}) {
        std::vector<float> actual, logits;
        for (int32_t t = 0; t < 11; ++t) {
          PackedBatch one;
          one.ids = {ids[t]};
          one.positions = {t};
          one.segments = {{0, 1, 0, t + 1, 0, 0}};
          one.logit_rows = {0};
          one.targets = {0};
          decoder.Logits(one, {1, 1, 1}, std::vector<int32_t>{t}, cache, mode, memory, logits);
          double sum = 0;
          for (float z : logits) sum += std::exp(static_cast<double>(z));
          actual.push_back(static_cast<float>(logits[ids[t + 1]] - std::log(sum)));
        }
        ExpectNear(actual, log_probs, 1e-5);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DecoderPlans, testing::ValuesIn(kShapes),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace hone
