#include "engine/io/model_files.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

void CopyFolder(const std::string& from, const std::string& to) { fs::copy(from, to, fs::copy_options::recursive); }

TEST(ModelFiles, HuggingFaceFolder) {
  auto model = ModelFiles::Open(Golden("llama"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->kind(), ModelSourceKind::kHuggingFace);
  EXPECT_EQ((*model)->Quantization(), "none");
  EXPECT_EQ((*model)->config().rope_theta, 50000);
  EXPECT_EQ((*model)->names().front(), "model.embed_tokens.weight");
  EXPECT_EQ((*model)->names().back(), "lm_head.weight");
  const StoredWeight weight = (*model)->Describe("model.layers.0.mlp.up_proj.weight").value();
  EXPECT_EQ(weight.dtype, DType::kBF16);
  EXPECT_EQ(weight.rows, 64);
  EXPECT_EQ(weight.cols, 32);
  EXPECT_EQ(weight.TotalBytes(), 64u * 32 * 2);
  const SafetensorsFile file = SafetensorsFile::Open(Golden("llama/model.safetensors")).value();
  for (const std::string& name : (*model)->names()) {
    const std::vector<float> expected = Floats(file, name);
    std::vector<float> got(expected.size());
    ASSERT_TRUE((*model)->ReadAsFloat(name, got.data()).ok());
    ExpectSameBits(got, expected, name);
  }
  EXPECT_EQ((*model)->Describe("nothing").status().code(), absl::StatusCode::kNotFound);
}

TEST(ModelFiles, ShardedTiedQwen2WithBias) {
  auto model = ModelFiles::Open(Golden("qwen2_sharded"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->config().qkv_bias);
  EXPECT_TRUE((*model)->config().tie_word_embeddings);
  EXPECT_FALSE((*model)->Has("lm_head.weight"));
  const StoredWeight bias = (*model)->Describe("model.layers.1.self_attn.k_proj.bias").value();
  EXPECT_EQ(bias.rows, 1);
  EXPECT_EQ(bias.cols, 16);
  EXPECT_EQ((*model)->Tensors().size(), (*model)->names().size());
}

TEST(ModelFiles, GgufEqualsGgufPyAndTheRotaryOrderIsUndone) {
  auto model = ModelFiles::Open(Golden("llama.gguf"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->kind(), ModelSourceKind::kGguf);
  EXPECT_EQ((*model)->Quantization(), "q4_0+q4_1+q8_0");
  const DecoderConfig& config = (*model)->config();
  EXPECT_EQ(config.vocab_size, 48);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.rope_theta, 50000);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_THAT(config.eos_token_ids, testing::ElementsAre(2));
  EXPECT_EQ((*model)->chat_template(), "{{ messages[0].content }}");
  EXPECT_EQ((*model)->template_tokens().bos_token, "t1");
  EXPECT_EQ((*model)->template_tokens().eos_token, "t2");
  EXPECT_THAT((*model)->template_tokens().special_tokens, testing::ElementsAre("t0", "t1", "t2"));
  const SafetensorsFile expected = SafetensorsFile::Open(Golden("llama_gguf_expected.safetensors")).value();
  for (const std::string& name : (*model)->names()) {
    const std::vector<float> values = Floats(expected, name);
    std::vector<float> got(values.size());
    ASSERT_TRUE((*model)->ReadAsFloat(name, got.data()).ok());
    ExpectSameBits(got, values, name);
  }
}

TEST(ModelFiles, BitsandbytesNf4) {
  auto model = ModelFiles::Open(Golden("llama_nf4"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->Quantization(), "nf4");
  const StoredWeight nested = (*model)->Describe("model.layers.0.self_attn.q_proj.weight").value();
  EXPECT_EQ(nested.dtype, DType::kNf4);
  EXPECT_EQ(nested.rows, 64);
  EXPECT_EQ(nested.cols, 64);
  EXPECT_TRUE(nested.nested);
  EXPECT_EQ(nested.blocks, 64u);
  EXPECT_EQ(nested.nested_blocks, 1u);
  EXPECT_EQ(nested.ScaleBytes(), 64u + (1 + 256 + 1) * 4);
  const StoredWeight plain = (*model)->Describe("model.layers.0.mlp.down_proj.weight").value();
  EXPECT_FALSE(plain.nested);
  EXPECT_EQ(plain.ScaleBytes(), 64u * 4);
  const SafetensorsFile expected = SafetensorsFile::Open(Golden("llama_nf4_expected.safetensors")).value();
  for (const SafetensorsTensor& tensor : expected.tensors()) {
    std::vector<float> got(tensor.elements);
    ASSERT_TRUE((*model)->ReadAsFloat(tensor.name, got.data()).ok());
    ExpectSameBits(got, Floats(expected, tensor.name), tensor.name);
  }
  // Parts are not listed as tensors; the tied head, which this file has too, is listed but not read.
  EXPECT_EQ((*model)->Tensors().size(), (*model)->names().size() + 1);
}

TEST(ModelFiles, RandomDependsOnNamesOnly) {
  const std::string source = "random:" + Golden("llama/config.json");
  auto one = ModelFiles::Open(source), two = ModelFiles::Open(source);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ((*one)->kind(), ModelSourceKind::kRandom);
  EXPECT_EQ((*one)->digest(), (*two)->digest());
  std::vector<float> a(64 * 32), b(64 * 32), c(64 * 32);
  ASSERT_TRUE((*one)->ReadAsFloat("model.layers.0.mlp.up_proj.weight", a.data()).ok());
  ASSERT_TRUE((*two)->ReadAsFloat("model.layers.0.mlp.up_proj.weight", b.data()).ok());
  ASSERT_TRUE((*two)->ReadAsFloat("model.layers.1.mlp.up_proj.weight", c.data()).ok());
  ExpectSameBits(a, b, "same name");
  EXPECT_NE(a, c);
  double sum = 0, squares = 0, product = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i];
    squares += a[i] * a[i];
    product += a[i] * c[i];
  }
  const double n = static_cast<double>(a.size());
  EXPECT_NEAR(sum / n, 0, 0.002);
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 0.001);
  EXPECT_NEAR(product / squares, 0, 0.1);
  std::vector<float> norm(32);
  ASSERT_TRUE((*one)->ReadAsFloat("model.norm.weight", norm.data()).ok());
  EXPECT_NEAR(norm[3], 1, 0.1);
}

TEST(ModelFiles, WhatIsNotAModelIsRefused) {
  TempFolder folder;
  EXPECT_EQ(ModelFiles::Open(folder / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(ModelFiles::Open("")), HasSubstr("a model source is"));
  EXPECT_THAT(ErrorOf(ModelFiles::Open(folder.path())), HasSubstr("has no config.json"));
  EXPECT_THAT(ErrorOf(ModelFiles::Open(Golden("llama/model.safetensors"))), HasSubstr("holds weights only"));
  EXPECT_THAT(ErrorOf(ModelFiles::Open(Golden("llama/config.json"))), HasSubstr("not a GGUF file"));
  EXPECT_FALSE(ModelFiles::Open("random:" + folder.path() + "/config.json").ok());
  if (const char* data = std::getenv("HONE_TEST_DATA")) {
    EXPECT_THAT(ErrorOf(ModelFiles::Open(std::string(data) + "/hostile/safetensors")), HasSubstr("has no config.json"));
  }
}

TEST(ModelFiles, MissingAndMisshapenWeights) {
  TempFolder folder;
  CopyFolder(Golden("llama"), folder / "m");
  const auto edit = [&](const char* from, const char* to) {
    std::string config = ReadFile(Golden("llama/config.json")).value();
    config.replace(config.find(from), strlen(from), to);
    std::ofstream(folder / "m/config.json") << config;
    return ErrorOf(ModelFiles::Open(folder / "m"));
  };
  EXPECT_THAT(edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
              HasSubstr("model.layers.2.input_layernorm.weight is missing"));
  EXPECT_THAT(edit("\"intermediate_size\": 64", "\"intermediate_size\": 65"),
              HasSubstr("the configuration says [65, 32]"));
  EXPECT_THAT(edit("\"vocab_size\": 48", "\"vocab_size\": 49"), HasSubstr("model.embed_tokens.weight is [48, 32]"));
  fs::remove(folder / "m/model.safetensors");
  EXPECT_THAT(ErrorOf(ModelFiles::Open(folder / "m")), HasSubstr("model.safetensors"));
}

TEST(ModelFiles, DigestFollowsContentNotPlace) {
  TempFolder folder;
  CopyFolder(Golden("llama"), folder / "m");
  const std::string original = ModelFiles::Open(Golden("llama")).value()->digest();
  EXPECT_EQ(ModelFiles::Open(folder / "m").value()->digest(), original);
  std::fstream file(folder / "m/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-5, std::ios::end);
  file.put('\x11');
  file.close();
  EXPECT_NE(ModelFiles::Open(folder / "m").value()->digest(), original);
}

TEST(ModelFiles, ChatTemplateSources) {
  TempFolder folder;
  CopyFolder(Golden("llama"), folder / "m");
  const auto open = [&] { return ModelFiles::Open(folder / "m"); };
  EXPECT_EQ(open().value()->chat_template(), "");
  std::ofstream(folder / "m/tokenizer_config.json")
      << R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
             "bos_token": {"content": "<s>"}, "eos_token": "</s>",
             "added_tokens_decoder": {"0": {"content": "<s>", "special": true}, "5": {"content": "x", "special": false}}})";
  EXPECT_EQ(open().value()->chat_template(), "D");
  EXPECT_EQ(open().value()->template_tokens().bos_token, "<s>");
  EXPECT_EQ(open().value()->template_tokens().eos_token, "</s>");
  EXPECT_THAT(open().value()->template_tokens().special_tokens, testing::ElementsAre("<s>"));
  EXPECT_EQ(ModelFiles::ReadChatTemplateOnly(folder / "m").value(), "D");
  std::ofstream(folder / "m/chat_template.jinja") << "J";
  EXPECT_EQ(open().value()->chat_template(), "J");
  std::ofstream(folder / "m/tokenizer_config.json") << "{\"chat_template\": 3}";
  fs::remove(folder / "m/chat_template.jinja");
  EXPECT_THAT(ErrorOf(open()), HasSubstr("chat_template: expected a string"));
}

TEST(ModelFiles, SmolLM2FromGguf) {
  const char* path = std::getenv("HONE_TEST_SMOLLM2");
  if (path == nullptr) GTEST_SKIP() << "HONE_TEST_SMOLLM2 is not set";
  auto model = ModelFiles::Open(path);
  ASSERT_TRUE(model.ok()) << model.status();
  const DecoderConfig& config = (*model)->config();
  EXPECT_EQ(config.num_layers, 30);
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.num_heads, 9);
  EXPECT_EQ(config.num_kv_heads, 3);
  EXPECT_EQ(config.rope_theta, 100000);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ((*model)->Quantization(), "q4_1");
  EXPECT_THAT((*model)->chat_template(), HasSubstr("<|im_start|>"));
  EXPECT_EQ((*model)->template_tokens().eos_token, "<|im_end|>");
  EXPECT_EQ((*model)->Tensors().size(), 272u);
  auto tokenizer = (*model)->OpenTokenizer();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), config.vocab_size);
}

TEST(ModelFiles, Stories260K) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  auto model = ModelFiles::Open(std::string(data) + "/models/stories260K");
  ASSERT_TRUE(model.ok()) << model.status();
  auto tokenizer = (*model)->OpenTokenizer();
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
}

}  // namespace
}  // namespace hone
