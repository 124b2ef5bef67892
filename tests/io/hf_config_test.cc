#include "engine/io/hf_config.h"

#include <gmock/gmock.h>

#include "nlohmann/json.hpp"
#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Llama() {
  return json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false, "torch_dtype": "bfloat16",
    "bos_token_id": 128000, "eos_token_id": [128001, 128008]})");
}

json Qwen2() {
  return json::parse(R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936,
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "hidden_act": "silu", "tie_word_embeddings": true, "use_sliding_window": false, "sliding_window": 32768,
    "max_window_layers": 21, "eos_token_id": 151645})");
}

absl::StatusOr<HfConfig> Parse(const json& config, std::string_view generation = {}) {
  return ParseHfConfig(config.dump(), generation);
}

template <typename T>
std::string ErrorWith(json config, const char* field, T value) {
  config[field] = value;
  return ErrorOf(Parse(config));
}
std::string ErrorWith(json config, const char* field, const char* text) {
  config[field] = json::parse(text);
  return ErrorOf(Parse(config));
}

TEST(HfConfig, ReadsLlama31) {
  auto parsed = Parse(Llama());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const DecoderConfig& config = parsed->decoder;
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.rope_theta, 500000);
  EXPECT_EQ(config.rope_scaling.kind, RopeScalingKind::kLlama3);
  EXPECT_EQ(config.rope_scaling.factor, 8);
  EXPECT_EQ(config.rope_scaling.original_max_position, 8192);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008));
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_EQ(parsed->dtype, DType::kBF16);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.sliding_window, 0);
}

TEST(HfConfig, ReadsQwen2) {
  auto parsed = Parse(Qwen2(), R"({"eos_token_id": [151645, 151643]})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(parsed->decoder.qkv_bias);
  EXPECT_TRUE(parsed->decoder.tie_word_embeddings);
  EXPECT_EQ(parsed->decoder.sliding_window, 0) << "use_sliding_window is false";
  EXPECT_EQ(parsed->decoder.head_dim, 64);
  EXPECT_THAT(parsed->decoder.eos_token_ids, ElementsAre(151645, 151643)) << "generation_config.json wins";
}

TEST(HfConfig, BothSpellingsOfRope) {
  json config = Llama();
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config["rope_parameters"] = json::parse(R"({"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0})");
  auto parsed = Parse(config);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->decoder.rope_theta, 20000);
  EXPECT_EQ(parsed->decoder.rope_scaling.kind, RopeScalingKind::kLinear);
  EXPECT_EQ(parsed->decoder.rope_scaling.factor, 2);
  config["rope_parameters"] = json::parse(R"({"rope_type": "default", "rope_theta": 20000.0})");
  EXPECT_EQ(Parse(config)->decoder.rope_scaling.kind, RopeScalingKind::kNone);
  config["rope_theta"] = 10000.0;
  EXPECT_THAT(ErrorOf(Parse(config)), HasSubstr("contradicts rope_theta"));
  json old = Llama();
  old["rope_scaling"] = json::parse(R"({"type": "linear", "factor": 4})");
  EXPECT_EQ(Parse(old)->decoder.rope_scaling.factor, 4);
  old["rope_scaling"] = nullptr;
  EXPECT_EQ(Parse(old)->decoder.rope_scaling.kind, RopeScalingKind::kNone);
  old["dtype"] = "float32";
  EXPECT_EQ(Parse(old)->dtype, DType::kF32) << "the newer spelling wins";
}

TEST(HfConfig, WhatIsNotImplementedIsAnError) {
  EXPECT_THAT(ErrorWith(Llama(), "model_type", R"("gpt_neox")"), HasSubstr("'gpt_neox'"));
  EXPECT_THAT(ErrorWith(Llama(), "model_type", "\"a\\u001b[31m\""), HasSubstr("a\\x1b[31m"));
  EXPECT_THAT(ErrorWith(Llama(), "architectures", R"(["LlamaForSequenceClassification"])"), HasSubstr("SequenceClass"));
  EXPECT_THAT(ErrorWith(Llama(), "hidden_act", R"("relu2")"), HasSubstr("relu2"));
  EXPECT_THAT(ErrorWith(Llama(), "rope_scaling", R"({"rope_type": "yarn", "factor": 4})"), HasSubstr("'yarn'"));
  EXPECT_THAT(ErrorWith(Llama(), "rope_scaling", R"({"type": "dynamic", "factor": 4})"), HasSubstr("'dynamic'"));
  EXPECT_THAT(ErrorWith(Llama(), "rope_scaling", R"({"factor": 4})"), HasSubstr("rope_type: is missing"));
  EXPECT_THAT(ErrorWith(Llama(), "attention_bias", true), HasSubstr("attention_bias"));
  EXPECT_THAT(ErrorWith(Llama(), "mlp_bias", true), HasSubstr("mlp_bias"));
  EXPECT_THAT(ErrorWith(Llama(), "partial_rotary_factor", 0.5), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(ErrorWith(Llama(), "sliding_window", 4096), HasSubstr("sliding_window"));
  EXPECT_THAT(ErrorWith(Llama(), "torch_dtype", R"("float8_e4m3fn")"), HasSubstr("float8"));
  EXPECT_THAT(ErrorWith(Llama(), "quantization_config", R"({"quant_method": "gptq"})"), HasSubstr("gptq"));
  EXPECT_THAT(ErrorWith(Llama(), "quantization_config", R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"),
              HasSubstr("bitsandbytes"));
  EXPECT_THAT(ErrorWith(Llama(), "quantization_config",
                        R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})"),
              HasSubstr("fp4"));
  EXPECT_THAT(ErrorWith(Qwen2(), "use_sliding_window", true), HasSubstr("with and without a sliding window"));
  EXPECT_THAT(ErrorWith(Qwen2(), "layer_types", R"(["linear_attention"])"), HasSubstr("linear_attention"));
}

TEST(HfConfig, SlidingWindowOfQwen2) {
  json config = Qwen2();
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 0;
  EXPECT_EQ(Parse(config)->decoder.sliding_window, 32768);
  config["max_window_layers"] = 24;
  EXPECT_EQ(Parse(config)->decoder.sliding_window, 0);
  config.erase("max_window_layers");
  EXPECT_THAT(ErrorOf(Parse(config)), HasSubstr("max_window_layers: is missing"));
}

TEST(HfConfig, WrongTypesAndSizes) {
  for (const char* field : {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act"}) {
    json config = Llama();
    config.erase(field);
    EXPECT_THAT(ErrorOf(Parse(config)), HasSubstr(StrCat("config.json: ", field, ": is missing")));
    config[field] = json::array();
    EXPECT_THAT(ErrorOf(Parse(config)), HasSubstr(StrCat("config.json: ", field, ": expected")));
  }
  EXPECT_THAT(ErrorWith(Llama(), "hidden_size", 0), HasSubstr("hidden_size"));
  EXPECT_THAT(ErrorWith(Llama(), "hidden_size", -4096), HasSubstr("hidden_size"));
  EXPECT_THAT(ErrorWith(Llama(), "hidden_size", "18446744073709551615"), HasSubstr("hidden_size"));
  EXPECT_THAT(ErrorWith(Llama(), "hidden_size", 4096.5), HasSubstr("hidden_size"));
  EXPECT_THAT(ErrorWith(Llama(), "num_hidden_layers", 1000000000), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(ErrorWith(Llama(), "num_key_value_heads", 5), HasSubstr("does not divide"));
  EXPECT_THAT(ErrorWith(Llama(), "head_dim", 127), HasSubstr("odd"));
  EXPECT_THAT(ErrorWith(Llama(), "rms_norm_eps", 0), HasSubstr("above 0"));
  EXPECT_THAT(ErrorWith(Llama(), "eos_token_id", R"("x")"), HasSubstr("eos_token_id"));
  EXPECT_THAT(ErrorWith(Llama(), "eos_token_id", R"([1, -2])"), HasSubstr("eos_token_id"));
  EXPECT_THAT(ErrorOf(ParseHfConfig("[1]")), HasSubstr("expected an object"));
  EXPECT_THAT(ErrorOf(ParseHfConfig("{")), HasSubstr("config.json: invalid JSON at byte"));
  EXPECT_THAT(ErrorOf(ParseHfConfig(Llama().dump(), "{]")), HasSubstr("generation_config.json"));
}

TEST(HfConfig, WhatIsWrittenReadsBack) {
  for (const json& source : {Llama(), Qwen2()}) {
    auto parsed = Parse(source);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const std::string text = WriteHfConfig(parsed->decoder, DType::kBF16);
    auto again = ParseHfConfig(text, WriteHfGenerationConfig(parsed->decoder));
    ASSERT_TRUE(again.ok()) << again.status() << text;
    EXPECT_EQ(again->dtype, DType::kBF16);
    const DecoderConfig &a = parsed->decoder, &b = again->decoder;
    EXPECT_EQ(WriteHfConfig(b, DType::kBF16), text);
    EXPECT_EQ(a.rope_theta, b.rope_theta);
    EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
    EXPECT_EQ(RopeInverseFrequencies(a), RopeInverseFrequencies(b));
    EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
    EXPECT_EQ(a.sliding_window, b.sliding_window);
    EXPECT_EQ(a.qkv_bias, b.qkv_bias);
  }
}

}  // namespace
}  // namespace hone
