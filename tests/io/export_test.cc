#include "engine/io/export_model.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "engine/io/gguf.h"
#include "engine/io/model_source.h"
#include "engine/io/nf4.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

std::vector<float> Read(const ModelFiles& model, const std::string& name) {
  const StoredWeight weight = model.Describe(name).value();
  std::vector<float> out(static_cast<size_t>(weight.rows * weight.cols));
  EXPECT_TRUE(model.ReadAsFloat(name, out.data()).ok()) << name;
  return out;
}

class ExportTest : public testing::Test {
 protected:
  std::unique_ptr<ModelFiles> base_ = ModelFiles::Open(Golden("llama")).value();
  LoraAdapter adapter_ = ReadPeftAdapter(Golden("adapter"), base_->config()).value();
  TempFolder folder_;
};

TEST_F(ExportTest, MergedIsBasePlusDelta) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string out = folder_ / (dtype == DType::kF32 ? "f32" : "bf16");
    auto receipts = ExportMerged(*base_, &adapter_, dtype, out);
    ASSERT_TRUE(receipts.ok()) << receipts.status();
    for (const FileReceipt& file : *receipts) {
      EXPECT_EQ(Sha256HexOfFile(out + "/" + file.name).value(), file.sha256) << file.name;
    }
    auto merged = ModelFiles::Open(out);
    ASSERT_TRUE(merged.ok()) << merged.status();
    EXPECT_EQ((*merged)->Describe("model.norm.weight")->dtype, dtype);
    const SafetensorsFile deltas = SafetensorsFile::Open(Golden("adapter_deltas.safetensors")).value();
    for (const std::string& name : base_->names()) {
      std::vector<float> expected = Read(*base_, name);
      const bool changed = deltas.Find(name) != nullptr;
      const std::vector<float> delta = changed ? Floats(deltas, name) : std::vector<float>(expected.size());
      const std::vector<float> got = Read(**merged, name);
      for (size_t i = 0; i < got.size(); ++i) {
        const float want = expected[i] + delta[i];
        ASSERT_NEAR(got[i], want, dtype == DType::kF32 ? 1e-6 : 0.004 * std::abs(want) + 1e-6)
            << name << "[" << i << "]";
      }
    }
  }
}

TEST_F(ExportTest, Nf4HoldsTheBitsOfTheEncoder) {
  for (const std::string& source :
       {Golden("llama"), Golden("qwen2_sharded"), "random:" + Golden("llama/config.json")}) {
    const auto base = ModelFiles::Open(source).value();
    const std::string out = folder_ / StrCat("nf4_", source.size());
    int64_t last = 0;
    const auto receipts = ExportNf4(*base, out, [&](int64_t done, int64_t) { return last = done, true; });
    ASSERT_TRUE(receipts.ok()) << receipts.status();
    EXPECT_EQ(last, static_cast<int64_t>(base->names().size()));
    const auto opened = ModelFiles::Open(out);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ((*opened)->Quantization(), "nf4");
    for (const std::string& name : base->names()) {
      std::vector<float> expected = Read(*base, name);
      const StoredWeight weight = (*opened)->Describe(name).value();
      if (!IsLinearWeight(name)) {
        EXPECT_EQ(weight.dtype, base->Describe(name)->dtype) << name;
      } else {
        ASSERT_EQ(weight.dtype, DType::kNf4) << name;
        ASSERT_TRUE(weight.nested);
        const Nf4Sizes sizes = Nf4SizesOf(expected.size());
        std::vector<uint8_t> codes(sizes.code_bytes), absmax_codes(sizes.blocks);
        std::vector<float> nested(sizes.nested_blocks), absmax(sizes.blocks);
        Nf4Parts parts{codes.data(), absmax_codes.data(), nested.data(), 0};
        EncodeNf4(expected.data(), expected.size(), parts);
        DecodeNf4Absmax(absmax_codes.data(), Nf4DynamicMap().data(), nested.data(), parts.nested_offset, sizes.blocks,
                        absmax.data());
        DecodeNf4(codes.data(), absmax.data(), expected.size(), expected.data());
      }
      ExpectSameBits(Read(**opened, name), expected, name);
    }
  }
}

TEST_F(ExportTest, Nf4RefusesWhatIsQuantised) {
  for (const char* name : {"llama_nf4", "llama.gguf"}) {
    const auto receipts = ExportNf4(*ModelFiles::Open(Golden(name)).value(), folder_ / "again");
    EXPECT_EQ(receipts.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(receipts.status().message()), HasSubstr(name));
    EXPECT_FALSE(fs::exists(folder_ / "again"));
  }
}

TEST_F(ExportTest, MergedWithoutAdapterIsTheBaseBitForBit) {
  ASSERT_TRUE(ExportMerged(*base_, nullptr, DType::kBF16, folder_ / "m").ok());
  const auto merged = ModelFiles::Open(folder_ / "m").value();
  for (const std::string& name : base_->names()) ExpectSameBits(Read(*merged, name), Read(*base_, name), name);
  // And again into the same folder, as a job that was interrupted does.
  ASSERT_TRUE(ExportMerged(*base_, &adapter_, DType::kF32, folder_ / "m").ok());
  EXPECT_EQ(ModelFiles::Open(folder_ / "m").value()->Describe("model.norm.weight")->dtype, DType::kF32);
}

TEST_F(ExportTest, MergedFromGgufAndNf4) {
  const auto gguf = ModelFiles::Open(Golden("llama.gguf")).value(), nf4 = ModelFiles::Open(Golden("llama_nf4")).value();
  ASSERT_TRUE(ExportMerged(*nf4, nullptr, DType::kF32, folder_ / "nf4").ok());
  const auto merged = ModelFiles::Open(folder_ / "nf4").value();
  EXPECT_EQ(merged->Quantization(), "none");
  for (const std::string& name : nf4->names()) ExpectSameBits(Read(*merged, name), Read(*nf4, name), name);
  // The fixture's vocabulary is no real tokenizer, so only the weights' half can be had from it.
  auto receipts = ExportMerged(*gguf, nullptr, DType::kF32, folder_ / "gguf");
  if (!receipts.ok()) {
    EXPECT_FALSE(fs::exists(folder_ / "gguf/config.json")) << "a failed export is no model";
    EXPECT_FALSE(fs::exists(folder_ / "gguf/model.safetensors"));
    return;
  }
  const auto from_gguf = ModelFiles::Open(folder_ / "gguf").value();
  for (const std::string& name : gguf->names()) ExpectSameBits(Read(*from_gguf, name), Read(*gguf, name), name);
}

TEST_F(ExportTest, NeverOverASomebodysModel) {
  fs::copy(Golden("llama"), folder_ / "mine", fs::copy_options::recursive);
  EXPECT_THAT(ErrorOf(ExportMerged(*base_, nullptr, DType::kBF16, folder_ / "mine")),
              HasSubstr("already holds a model"));
  EXPECT_TRUE(ModelFiles::Open(folder_ / "mine").ok());
}

TEST_F(ExportTest, CancelLeavesNothing) {
  int calls = 0;
  const auto cancel = [&](int64_t, int64_t) { return ++calls < 3; };
  EXPECT_TRUE(absl::IsCancelled(ExportMerged(*base_, nullptr, DType::kBF16, folder_ / "m", cancel).status()));
  EXPECT_TRUE(fs::is_empty(folder_ / "m"));
  calls = 0;
  const auto random = ModelFiles::Open("random:" + Golden("llama/config.json")).value();
  EXPECT_TRUE(absl::IsCancelled(ExportGguf(*random, nullptr, DType::kF16, folder_ / "g/x.gguf", cancel).status()));
  EXPECT_TRUE(fs::is_empty(folder_ / "g"));
}

TEST_F(ExportTest, GgufReadsBack) {
  const auto random = ModelFiles::Open("random:" + Golden("llama/config.json")).value();
  auto receipt = ExportGguf(*random, &adapter_, DType::kF16, folder_ / "x.gguf");
  ASSERT_TRUE(receipt.ok()) << receipt.status();
  EXPECT_EQ(receipt->sha256, Sha256HexOfFile(folder_ / "x.gguf").value());
  auto back = ModelFiles::Open(folder_ / "x.gguf");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(RopeInverseFrequencies((*back)->config()), RopeInverseFrequencies(random->config()));
  EXPECT_EQ((*back)->config().rms_norm_eps, random->config().rms_norm_eps);
  EXPECT_EQ((*back)->config().max_position, random->config().max_position);
  for (const std::string& name : random->names()) {
    std::vector<float> expected;
    ASSERT_TRUE(ReadMergedWeight(*random, &adapter_, name, &expected).ok());
    const bool vector = name.find("norm") != std::string::npos;
    for (float& value : expected) {
      if (!vector) value = HalfToFloat(FloatToHalf(value));
    }
    ExpectSameBits(Read(**back, name), expected, name);
  }
}

TEST_F(ExportTest, GgufQ8KeepsVectorsAndHasBlocks) {
  const auto random = ModelFiles::Open("random:" + Golden("qwen2_sharded/config.json")).value();
  ASSERT_TRUE(ExportGguf(*random, nullptr, DType::kQ8_0, folder_ / "x.gguf").ok());
  const auto back = ModelFiles::Open(folder_ / "x.gguf").value();
  EXPECT_EQ(back->Quantization(), "q8_0");
  EXPECT_TRUE(back->config().tie_word_embeddings);
  EXPECT_TRUE(back->config().qkv_bias);
  for (const std::string& name : random->names()) {
    const std::vector<float> got = Read(*back, name), expected = Read(*random, name);
    const bool vector = name.find("norm") != std::string::npos || name.ends_with(".bias");
    if (vector) {
      ExpectSameBits(got, expected, name);
      continue;
    }
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 0.07 / 127) << name;
  }
}

TEST_F(ExportTest, Llama3ScalingSurvivesGguf) {
  nlohmann::json config = nlohmann::json::parse(ReadFile(Golden("llama/config.json")).value());
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 32.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  config["rope_theta"] = 500000.0;
  config["head_dim"] = 64;
  std::ofstream(folder_ / "config.json") << config;
  const auto random = ModelFiles::Open("random:" + (folder_ / "config.json")).value();
  ASSERT_TRUE(ExportGguf(*random, nullptr, DType::kF16, folder_ / "x.gguf").ok());
  auto back = ModelFiles::Open(folder_ / "x.gguf");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ((*back)->config().rope_scaling.kind, RopeScalingKind::kLlama3);
  const auto a = RopeInverseFrequencies((*back)->config()), b = RopeInverseFrequencies(random->config());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6 * b[i]);
  // Other constants cannot be told from the factors.
  config["rope_scaling"]["low_freq_factor"] = 2.0;
  std::ofstream(folder_ / "config.json") << config;
  const auto other = ModelFiles::Open("random:" + (folder_ / "config.json")).value();
  ASSERT_TRUE(ExportGguf(*other, nullptr, DType::kF16, folder_ / "y.gguf").ok());
  EXPECT_THAT(ErrorOf(ModelFiles::Open(folder_ / "y.gguf")), HasSubstr("rope_freqs.weight"));
}

TEST_F(ExportTest, SmolLM2RoundTrip) {
  const char* path = std::getenv("HONE_TEST_SMOLLM2");
  if (path == nullptr) GTEST_SKIP() << "HONE_TEST_SMOLLM2 is not set";
  const auto model = ModelFiles::Open(path).value();
  ASSERT_TRUE(ExportMerged(*model, nullptr, DType::kBF16, folder_ / "m").ok());
  auto merged = ModelFiles::Open(folder_ / "m");
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ((*merged)->chat_template(), model->chat_template());
  EXPECT_EQ((*merged)->template_tokens().eos_token, model->template_tokens().eos_token);
  EXPECT_EQ((*merged)->config().eos_token_ids, model->config().eos_token_ids);
  EXPECT_EQ(RopeInverseFrequencies((*merged)->config()), RopeInverseFrequencies(model->config()));
  const std::string text = "Hello, 12345 wörld!\n  def f(x): return x";
  const auto a = model->OpenTokenizer().value(), b = (*merged)->OpenTokenizer().value();
  EXPECT_EQ(a->Encode(text, true)->ids, b->Encode(text, true)->ids);
  // The merged folder as GGUF again: the tokenizer's kind is recognised from tokenizer.json.
  ASSERT_TRUE(ExportGguf(**merged, nullptr, DType::kQ8_0, folder_ / "x.gguf").ok());
  const auto back = ModelFiles::Open(folder_ / "x.gguf");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(GgufFile::Open(folder_ / "x.gguf")->String("tokenizer.ggml.pre").value(), "smollm");
  EXPECT_EQ((*back)->OpenTokenizer().value()->Encode(text, true)->ids, a->Encode(text, true)->ids);
  EXPECT_EQ((*back)->template_tokens().special_tokens, model->template_tokens().special_tokens);
}

}  // namespace
}  // namespace hone
