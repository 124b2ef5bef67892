#include "engine/io/peft.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "engine/io/model_files.h"
#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

DecoderConfig TinyLlama() { return ModelFiles::Open(Golden("llama")).value()->config(); }

// s B A, row-major [out, in].
std::vector<float> Delta(const LoraWeights& lora, const LinearShape& shape) {
  std::vector<float> out(static_cast<size_t>(shape.out * shape.in));
  for (int64_t o = 0; o < shape.out; ++o) {
    for (int64_t i = 0; i < shape.in; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < lora.r; ++k) sum += double(lora.b[o * lora.r + k]) * lora.a[k * shape.in + i];
      out[o * shape.in + i] = static_cast<float>(lora.scale * sum);
    }
  }
  return out;
}

TEST(Peft, ReadsWhatPeftWrote) {
  const DecoderConfig config = TinyLlama();
  auto adapter = ReadPeftAdapter(Golden("adapter"), config);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->metadata.r, 4);
  EXPECT_EQ(adapter->metadata.alpha, 6);
  EXPECT_TRUE(adapter->metadata.use_rslora);
  ASSERT_EQ(adapter->weights.size(), 6u);
  const SafetensorsFile expected = SafetensorsFile::Open(Golden("adapter_deltas.safetensors")).value();
  EXPECT_EQ(expected.tensors().size(), 6u);
  for (const LoraWeights& lora : adapter->weights) {
    const std::string name = LinearModuleName(lora.layer, lora.kind);
    EXPECT_EQ(lora.r, lora.kind == LinearKind::kV ? 2 : 4) << name;
    const std::vector<float> got = Delta(lora, ShapeOf(config, lora.kind)), want = Floats(expected, name + ".weight");
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-6) << name << "[" << i << "]";
  }
}

TEST(Peft, WhatIsWrittenReadsBack) {
  const DecoderConfig config = TinyLlama();
  const LoraAdapter adapter = ReadPeftAdapter(Golden("adapter"), config).value();
  TempFolder folder;
  auto receipts = WritePeftAdapter(folder / "a", adapter, config);
  ASSERT_TRUE(receipts.ok()) << receipts.status();
  EXPECT_EQ(receipts->size(), 2u);
  auto again = ReadPeftAdapter(folder / "a", config);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->weights.size(), adapter.weights.size());
  for (size_t i = 0; i < adapter.weights.size(); ++i) {
    EXPECT_EQ(again->weights[i].a, adapter.weights[i].a);
    EXPECT_EQ(again->weights[i].b, adapter.weights[i].b);
    EXPECT_EQ(again->weights[i].scale, adapter.weights[i].scale);
  }
  auto twice = WritePeftAdapter(folder / "b", adapter, config);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ((*twice)[i].sha256, (*receipts)[i].sha256) << "equal content, equal bytes";
}

nlohmann::json ConfigOf(const LoraAdapter& adapter, const DecoderConfig& config) {
  TempFolder folder;
  EXPECT_TRUE(WritePeftAdapter(folder.path(), adapter, config).ok());
  return nlohmann::json::parse(ReadFile(folder / "adapter_config.json").value());
}

LoraAdapter Zeros(const DecoderConfig& config, const std::vector<std::pair<int64_t, LinearKind>>& modules) {
  LoraAdapter adapter{.metadata = {.r = 2, .alpha = 4}};
  for (const auto& [layer, kind] : modules) {
    const LinearShape shape = ShapeOf(config, kind);
    adapter.weights.push_back({.layer = layer,
                               .kind = kind,
                               .r = 2,
                               .a = std::vector<float>(2 * shape.in),
                               .b = std::vector<float>(2 * shape.out)});
  }
  return adapter;
}

TEST(Peft, ModuleNamesAreExplicit) {
  const DecoderConfig config = TinyLlama();
  using K = LinearKind;
  auto all = ConfigOf(Zeros(config, {{0, K::kQ}, {0, K::kUp}, {1, K::kQ}, {1, K::kUp}}), config);
  EXPECT_EQ(all["target_modules"], (nlohmann::json{"q_proj", "up_proj"}));
  EXPECT_TRUE(all["layers_to_transform"].is_null());
  auto one = ConfigOf(Zeros(config, {{1, K::kQ}, {1, K::kUp}}), config);
  EXPECT_EQ(one["layers_to_transform"], (nlohmann::json::array({1})));
  auto mixed = ConfigOf(Zeros(config, {{0, K::kQ}, {1, K::kUp}}), config);
  EXPECT_EQ(mixed["target_modules"], (nlohmann::json{"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"}));
  EXPECT_EQ(all["lora_alpha"], 4);
}

TEST(Peft, WhatIsNotImplementedIsRefusedByName) {
  const DecoderConfig config = TinyLlama();
  TempFolder folder;
  fs::copy(Golden("adapter"), folder / "a", fs::copy_options::recursive);
  const nlohmann::json original = nlohmann::json::parse(ReadFile(Golden("adapter/adapter_config.json")).value());
  const auto with = [&](const char* field, const char* value) {
    nlohmann::json changed = original;
    changed[field] = nlohmann::json::parse(value);
    std::ofstream(folder / "a/adapter_config.json") << changed;
    return ErrorOf(ReadPeftAdapter(folder / "a", config));
  };
  EXPECT_EQ(with("r", "4"), "no error");
  EXPECT_THAT(with("use_dora", "true"), HasSubstr("use_dora is not implemented"));
  EXPECT_THAT(with("bias", "\"all\""), HasSubstr("bias"));
  EXPECT_THAT(with("modules_to_save", "[\"lm_head\"]"), HasSubstr("modules_to_save"));
  EXPECT_THAT(with("init_lora_weights", "\"pissa\""), HasSubstr("pissa"));
  EXPECT_THAT(with("peft_type", "\"IA3\""), HasSubstr("peft_type"));
  EXPECT_THAT(with("rank_pattern", R"({"^v.*": 2})"), HasSubstr("regular expressions"));
  EXPECT_THAT(with("rank_pattern", R"({"v_proj": 3})"), HasSubstr("expected [3, 32]"));
  EXPECT_THAT(with("r", "0"), HasSubstr("r must be an integer"));
  EXPECT_THAT(with("r", "5"), HasSubstr("expected [5, 32]"));
  EXPECT_THAT(with("lora_alpha", "\"x\""), HasSubstr("lora_alpha"));
  EXPECT_THAT(with("layer_replication", "[[0, 2]]"), HasSubstr("layer_replication"));
  EXPECT_THAT(ErrorOf(ReadPeftAdapter(folder / "none", config)), HasSubstr("adapter_config.json"));
  DecoderConfig smaller = config;
  smaller.num_layers = 1;
  with("r", "4");
  EXPECT_THAT(ErrorOf(ReadPeftAdapter(folder / "a", smaller)), HasSubstr("model.layers.1.mlp.down_proj"));
}

TEST(Peft, Scale) {
  const LoraMetadata plain{.r = 16, .alpha = 32, .alpha_pattern = {{"up_proj", 8}, {"layers.1.self_attn.q_proj", 4}}};
  EXPECT_EQ(LoraScale(plain, 0, LinearKind::kQ, 16), 2);
  EXPECT_EQ(LoraScale(plain, 1, LinearKind::kQ, 16), 0.25);
  EXPECT_EQ(LoraScale(plain, 1, LinearKind::kUp, 4), 2);
  EXPECT_EQ(LoraScale({.r = 16, .alpha = 32, .use_rslora = true}, 0, LinearKind::kQ, 16), 8);
}

}  // namespace
}  // namespace hone
