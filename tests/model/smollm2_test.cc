// A real quantised model from its GGUF against transformers on the same file (tests/golden/make_smollm2.py), and the
// 260K Llama with what its author's code expects. Skipped where the files are not there.
#include <cmath>
#include <cstdlib>
#include <cstring>

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

const std::string kFixture = std::string(HONE_GOLDEN) + "/smollm2";

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("HONE_TEST_SMOLLM2");
    if (path == nullptr) GTEST_SKIP() << "HONE_TEST_SMOLLM2 is not set";
    auto files = ModelFiles::Open(path);
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
    backend_ = *OpenCpu();
    expected_ = *ParseJson(*ReadFile(kFixture + "/expected.json"));
  }
  std::unique_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
  nlohmann::json expected_;
};

TEST_F(SmolLm2, LogProbsOfTwentyTextsEqualTransformers) {
  const auto session = *InferenceSession::Open(*backend_, *files_, nullptr);
  double worst = 0;
  ASSERT_EQ(expected_["documents"].size(), 20u);
  for (size_t d = 0; d < 20; ++d) {
    const auto log_probs = session->Score(expected_["documents"][d].get<std::vector<int32_t>>());
    ASSERT_TRUE(log_probs.ok()) << log_probs.status();
    ASSERT_EQ(log_probs->size(), expected_["log_probs"][d].size());
    for (size_t i = 0; i < log_probs->size(); ++i) {
      worst = std::max(worst, std::abs((*log_probs)[i] - expected_["log_probs"][d][i].get<double>()));
    }
  }
  RecordProperty("worst", StrCat(worst));
  EXPECT_LE(worst, 1e-3);
}

TEST_F(SmolLm2, GreedyAnswersOfTwentyPromptsEqualTransformers) {
  const auto session = *InferenceSession::Open(*backend_, *files_, nullptr);
  std::vector<GenerationRequest> requests;
  for (const auto& prompt : expected_["prompts"]) {
    requests.push_back({prompt.get<std::vector<int32_t>>(), {}});
    requests.back().sampling.max_new_tokens = 24;
  }
  std::vector<std::vector<int32_t>> answers(requests.size());
  const auto reasons = session->Run(requests, AdapterMode::kOn, [&](int64_t r, int32_t token) {
    answers[r].push_back(token);
    return true;
  });
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  for (size_t i = 0; i < answers.size(); ++i)
    EXPECT_EQ(answers[i], expected_["answers"][i].get<std::vector<int32_t>>()) << "prompt " << i;
}

TEST_F(SmolLm2, GradientsOfFourTextsEqualPeft) {
  const auto adapter = ReadPeftAdapter(kFixture + "/adapter", files_->config());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  const FlatAdapter flat = *FlattenAdapter(files_->config(), *adapter);
  PackedBatch batch;
  for (size_t d = 0; d < 4; ++d) {
    const auto ids = expected_["documents"][d].get<std::vector<int32_t>>();
    const int32_t row = AppendDocument(batch, ids.data(), static_cast<int64_t>(ids.size()));
    for (size_t t = 1; t < ids.size(); ++t) {
      batch.logit_rows.push_back(row + static_cast<int32_t>(t) - 1);
      batch.targets.push_back(ids[t]);
    }
  }
  SessionOptions options;
  options.lora = flat.config;
  options.optimizer.add_betas(0.9);
  options.optimizer.add_betas(0.999);
  options.optimizer.set_eps(1e-8);
  options.limits.train = {batch.tokens(), static_cast<int64_t>(batch.targets.size()), 4};
  auto nothing = [](std::span<const float>, std::span<float>) {};
  ArenaSet measured = ArenaSet::Dry();
  const auto dry = MakeDryOps(BackendKind::kCpu, DType::kF32);
  (*TrainSession::Create(*files_, options, *dry, measured))->ForwardBackward(batch, nothing);
  ArenaSet arenas = *ArenaSet::Reserve(*backend_, measured.HighWater());
  const auto session = *TrainSession::Create(*files_, options, backend_->ops(), arenas);
  session->Upload(flat.values, session->lora().values);
  session->ZeroGradients();
  double loss = 0;
  const auto count = static_cast<double>(batch.targets.size());
  session->ForwardBackward(batch, [&](std::span<const float> log_probs, std::span<float> out) {
    for (size_t i = 0; i < out.size(); ++i) loss -= log_probs[i] / count, out[i] = static_cast<float>(-1 / count);
  });
  EXPECT_NEAR(loss, expected_["loss"].get<double>(), 1e-4);
  const auto golden = *SafetensorsFile::Open(kFixture + "/gradients.safetensors");
  const std::vector<float> gradients = session->Download(session->lora().gradients);
  ASSERT_EQ(session->layout().matrices().size(), 21u);
  for (const LoraMatrix& m : session->layout().matrices()) {
    for (char which : {'A', 'B'}) {
      const SafetensorsTensor* tensor = golden.Find(LoraTensorName(m.layer, m.kind, which));
      ASSERT_NE(tensor, nullptr);
      std::vector<float> wanted(tensor->elements);
      std::memcpy(wanted.data(), tensor->bytes.data(), tensor->bytes.size());
      const float* actual = gradients.data() + (which == 'A' ? m.a_offset : m.b_offset);
      double difference = 0, norm = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        difference += std::pow(static_cast<double>(actual[i]) - wanted[i], 2);
        norm += std::pow(static_cast<double>(wanted[i]), 2);
      }
      EXPECT_LE(std::sqrt(difference / norm), 1e-4) << LoraTensorName(m.layer, m.kind, which);
    }
  }
}

TEST(Stories260K, GreedyIdsAndMeanNllEqualTheExpected) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  const std::string folder = std::string(data) + "/models/stories260K";
  const auto files = ModelFiles::Open(folder);
  ASSERT_TRUE(files.ok()) << files.status();
  const auto backend = *OpenCpu({1});
  const auto session = *InferenceSession::Open(*backend, **files, nullptr);
  const auto expected = *ParseJson(*ReadFile(folder + "/expected.json"));
  const auto ids = expected["ids"].get<std::vector<int32_t>>();
  const auto log_probs = *session->Score(ids);
  double sum = 0;
  for (size_t i = 0; i < log_probs.size(); ++i) {
    EXPECT_NEAR(log_probs[i], expected["logprob_of_each_next_id"][i].get<double>(), 1e-4) << i;
    sum -= log_probs[i];
  }
  EXPECT_NEAR(sum / static_cast<double>(log_probs.size()), 0.475192, 1e-4);
  GenerationRequest request;
  request.prompt = {ids[0]};
  request.sampling.max_new_tokens = static_cast<int64_t>(ids.size()) - 1;
  std::vector<int32_t> greedy = {ids[0]};
  const auto reasons = session->Run({&request, 1}, AdapterMode::kOn, [&](int64_t, int32_t token) {
    greedy.push_back(token);
    return true;
  });
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  EXPECT_EQ(greedy, ids);
}

}  // namespace
}  // namespace hone
