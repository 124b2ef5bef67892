// Two-layer models of every family against transformers + PEFT in fp32 (tests/golden/make_model.py): log-probabilities
// with and without the adapter, every LoRA gradient, greedy tokens; packed and one document at a time, at every
// recompute level.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "engine/io/model_files.h"
#include "engine/io/peft.h"
#include "engine/io/safetensors.h"
#include "engine/train/session.h"
#include "engine/worker/inference.h"
#include "gtest/gtest.h"
#include "kernels/dry/dry_ops.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

struct Fixture {
  std::string folder;
  std::unique_ptr<ModelFiles> files;
  LoraAdapter adapter;
  nlohmann::json expected;
  std::vector<std::vector<int32_t>> documents;
};

Fixture Load(const std::string& family) {
  Fixture fixture;
  fixture.folder = std::string(HONE_GOLDEN) + "/model/" + family;
  auto files = ModelFiles::Open(fixture.folder);
  EXPECT_TRUE(files.ok()) << files.status();
  fixture.files = *std::move(files);
  auto adapter = ReadPeftAdapter(fixture.folder + "/adapter", fixture.files->config());
  EXPECT_TRUE(adapter.ok()) << adapter.status();
  fixture.adapter = *adapter;
  fixture.expected = *ParseJson(*ReadFile(fixture.folder + "/expected.json"));
  fixture.documents = fixture.expected["documents"].get<std::vector<std::vector<int32_t>>>();
  return fixture;
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

// A session with the fixture's adapter, in arenas that a dry run of the same calls sized.
struct Session {
  std::unique_ptr<Backend> backend;
  ArenaSet arenas = ArenaSet::Dry();
  std::unique_ptr<TrainSession> session;
};

v1::OptimizerSpec Optimizer() {
  v1::OptimizerSpec spec;
  spec.add_betas(0.9);
  spec.add_betas(0.999);
  spec.set_eps(1e-8);
  return spec;
}

Session Open(const Fixture& fixture, Recompute recompute, const BatchLimits& limits) {
  Session s;
  auto flat = FlattenAdapter(fixture.files->config(), fixture.adapter);
  EXPECT_TRUE(flat.ok()) << flat.status();
  SessionOptions options;
  options.lora = flat->config;
  options.optimizer = Optimizer();
  options.decoder.recompute.assign(fixture.files->config().num_layers, recompute);
  options.decoder.head_chunk_rows = 7;
  options.limits = {limits, limits};
  s.backend = *OpenCpu({1});
  const auto dry = MakeDryOps(BackendKind::kCpu, DType::kF32);
  ArenaSet measured = ArenaSet::Dry();
  auto rehearsal = *TrainSession::Create(*fixture.files, options, *dry, measured);
  PackedBatch batch = Pack({std::vector<int32_t>(limits.tokens, 0)});
  std::vector<float> unused(batch.targets.size());
  rehearsal->ForwardBackward(batch, [](auto, auto) {});
  rehearsal->LogProbs(batch, AdapterMode::kOn, unused);
  s.arenas = *ArenaSet::Reserve(*s.backend, measured.HighWater());
  s.session = *TrainSession::Create(*fixture.files, options, s.backend->ops(), s.arenas);
  s.session->Upload(flat->values, s.session->lora().values);
  return s;
}

double RelativeError(std::span<const float> actual, std::span<const float> expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (static_cast<double>(actual[i]) - expected[i]) * (static_cast<double>(actual[i]) - expected[i]);
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(difference) / std::sqrt(norm);
}

class GoldenModel : public testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, LogProbsEqualTransformersWithAndWithoutAdapter) {
  const Fixture fixture = Load(GetParam());
  const PackedBatch batch = Pack(fixture.documents);
  Session s = Open(fixture, Recompute::kNone, {batch.tokens(), batch.tokens(), 8});
  for (const auto& [mode, key] :
       {std::pair(AdapterMode::kOn, "log_probs"), std::pair(AdapterMode::kOff, "base_log_probs")}) {
    std::vector<float> log_probs(batch.targets.size());
    s.session->LogProbs(batch, mode, log_probs);
    size_t i = 0;
    for (const auto& document : fixture.expected[key]) {
      for (const auto& value : document) EXPECT_NEAR(log_probs[i++], value.get<double>(), 2e-5) << key;
    }
  }
}

TEST_P(GoldenModel, GradientsEqualPeftPackedAndApartAtEveryRecomputeLevel) {
  const Fixture fixture = Load(GetParam());
  const auto gradients = *SafetensorsFile::Open(fixture.folder + "/gradients.safetensors");
  int64_t count = 0, longest = 0, total = 0;
  for (const auto& ids : fixture.documents) {
    count += static_cast<int64_t>(ids.size()) - 1;
    total += static_cast<int64_t>(ids.size());
    longest = std::max<int64_t>(longest, static_cast<int64_t>(ids.size()));
  }
  std::map<bool, std::vector<float>> by_packing;
  for (Recompute recompute :
       {Recompute::kNone, Recompute::kActivation, Recompute::kMlp, Recompute::kBlock, Recompute::kFull}) {
    for (bool packed : {true, false}) {
      const int64_t tokens = packed ? total : longest;
      Session s = Open(fixture, recompute, {tokens, tokens, 8});
      s.session->ZeroGradients();
      double loss = 0;
      auto coefficients = [&](std::span<const float> log_probs, std::span<float> out) {
        for (size_t i = 0; i < out.size(); ++i) {
          loss -= log_probs[i] / static_cast<double>(count);
          out[i] = -1.0f / static_cast<float>(count);
        }
      };
      if (packed) {
        s.session->ForwardBackward(Pack(fixture.documents), coefficients);
      } else {
        for (const auto& ids : fixture.documents) s.session->ForwardBackward(Pack({ids}), coefficients);
      }
      EXPECT_NEAR(loss, fixture.expected["loss"].get<double>(), 1e-5);
      const std::vector<float> flat = s.session->Download(s.session->lora().gradients);
      for (const LoraMatrix& m : s.session->layout().matrices()) {
        for (char which : {'A', 'B'}) {
          const SafetensorsTensor* golden = gradients.Find(LoraTensorName(m.layer, m.kind, which));
          ASSERT_NE(golden, nullptr);
          std::vector<float> expected(golden->elements);
          std::memcpy(expected.data(), golden->bytes.data(), golden->bytes.size());
          const float* actual = flat.data() + (which == 'A' ? m.a_offset : m.b_offset);
          EXPECT_LE(RelativeError({actual, expected.size()}, expected), 1e-5) << LoraTensorName(m.layer, m.kind, which);
        }
      }
      // Tier 2: the recompute level does not change a bit.
      auto [it, first] = by_packing.emplace(packed, flat);
      EXPECT_TRUE(first || std::memcmp(it->second.data(), flat.data(), flat.size() * sizeof(float)) == 0);
    }
  }
}

TEST_P(GoldenModel, ArenasEndExactlyWhereTheDryRunSaid) {
  const Fixture fixture = Load(GetParam());
  const PackedBatch batch = Pack(fixture.documents);
  Session s = Open(fixture, Recompute::kFull, {batch.tokens(), batch.tokens(), 8});
  s.session->ZeroGradients();
  s.session->ForwardBackward(batch, [](auto, std::span<float> out) { std::fill(out.begin(), out.end(), 1.0f); });
  std::vector<float> log_probs(batch.targets.size());
  s.session->LogProbs(batch, AdapterMode::kOn, log_probs);
  const v1::MemoryUse use = s.arenas.Use();
  for (const v1::ArenaUse& arena : use.arenas()) EXPECT_EQ(arena.planned_bytes(), arena.actual_bytes()) << arena.name();
}

TEST_P(GoldenModel, GreedyTokensEqualGenerate) {
  const Fixture fixture = Load(GetParam());
  const auto backend = *OpenCpu({1});
  // peft.generate ran without the adapter.
  const auto session = *InferenceSession::Open(*backend, *fixture.files, &fixture.adapter);
  GenerationRequest request;
  request.prompt = fixture.documents[1];
  request.sampling.max_new_tokens = 12;
  std::vector<std::vector<int32_t>> ids(3);
  // Three at once, of which two are the one of the fixture: neighbours change nothing.
  GenerationRequest other = request;
  other.prompt = fixture.documents[0];
  const std::vector<GenerationRequest> requests = {request, other, request};
  const auto reasons = session->Run(requests, AdapterMode::kOff, [&](int64_t r, int32_t token) {
    ids[r].push_back(token);
    return true;
  });
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  auto expected = fixture.expected["greedy"].get<std::vector<int32_t>>();
  if (const auto eos = std::find(expected.begin(), expected.end(), 1); eos != expected.end())
    expected.erase(eos, expected.end());
  EXPECT_EQ(ids[0], expected);
  EXPECT_EQ(ids[2], expected);
}

// The CPU, which refuses some requests for memory.
class RefusingBackend : public Backend {
 public:
  explicit RefusingBackend(Backend& inner) : inner_(inner) {}
  int accept = 0, refuse = 0;  // so many calls, then so many that fail
  Ops& ops() override { return inner_.ops(); }
  std::string name() const override { return inner_.name(); }
  uint64_t FreeBytes() const override { return inner_.FreeBytes(); }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> Reserve(uint64_t bytes) override {
    if (accept > 0) {
      --accept;
    } else if (refuse > 0) {
      --refuse;
      return ResourceExhausted("no room for ", bytes, " bytes");
    }
    return inner_.Reserve(bytes);
  }
  absl::StatusOr<std::unique_ptr<MemoryBlock>> ReservePinned(uint64_t bytes) override {
    return inner_.ReservePinned(bytes);
  }

 private:
  Backend& inner_;
};

TEST_P(GoldenModel, GeneratesFewerAtOnceWhereMemoryEnds) {
  const Fixture fixture = Load(GetParam());
  const auto cpu = *OpenCpu({1});
  RefusingBackend backend(*cpu);
  const auto session = *InferenceSession::Open(backend, *fixture.files, nullptr);
  const auto generate = [&](size_t count, int64_t tokens) {
    GenerationRequest request;
    request.prompt = fixture.documents[1];
    request.sampling.max_new_tokens = tokens;
    std::vector<std::vector<int32_t>> ids(count);
    const auto reasons =
        session->Run(std::vector<GenerationRequest>(count, request), AdapterMode::kOff, [&](int64_t r, int32_t token) {
          ids[r].push_back(token);
          return true;
        });
    return reasons.ok() ? absl::StatusOr<std::vector<std::vector<int32_t>>>(ids) : reasons.status();
  };
  backend.refuse = 1000;
  EXPECT_TRUE(absl::IsResourceExhausted(generate(5, 3).status()));
  backend.refuse = 0;
  const std::vector<int32_t> alone = generate(1, 5)->front();
  ASSERT_FALSE(alone.empty());
  backend.refuse = 2;  // the cache of seven, and of three
  EXPECT_EQ(*generate(7, 5), std::vector(7, alone));
  EXPECT_EQ(backend.refuse, 0);
  backend.accept = 1, backend.refuse = 1;  // the buffers beside the cache
  EXPECT_EQ(*generate(20, 5), std::vector(20, alone));
  EXPECT_EQ(*generate(9, 5), std::vector(9, alone));
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenModel, testing::Values("llama", "llama3rope", "qwen2", "mistral", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace hone
