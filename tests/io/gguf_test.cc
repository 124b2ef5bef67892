#include "engine/io/gguf.h"

#include <gmock/gmock.h>

#include "engine/io/gguf_config.h"
#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::HasSubstr;

// Builds files by hand, so that every field can lie.
struct Raw {
  std::string bytes;
  template <typename T>
  Raw& Put(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Raw& Text(std::string_view text) {
    Put<uint64_t>(text.size());
    bytes.append(text);
    return *this;
  }
  Raw& Header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    bytes = "GGUF";
    return Put<uint32_t>(version).Put<uint64_t>(tensors).Put<uint64_t>(keys);
  }
  Raw& Tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    Text(name).Put<uint32_t>(dims.size());
    for (uint64_t dim : dims) Put<uint64_t>(dim);
    return Put<uint32_t>(type).Put<uint64_t>(offset);
  }
  Raw& Data(size_t size) {
    bytes.resize((bytes.size() + 31) / 32 * 32 + size);
    return *this;
  }
  std::string Error() const { return ErrorOf(GgufFile::Parse(bytes, "f")); }
};

TEST(Gguf, ReadsWhatGgufPyWrote) {
  auto file = GgufFile::Open(Golden("llama.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->String("general.architecture").value(), "llama");
  EXPECT_EQ(file->Integer("llama.block_count").value(), 2);
  EXPECT_EQ(file->Integer("test.i8").value(), -5);
  EXPECT_THAT(ErrorOf(file->Integer("test.u64")), HasSubstr("test.u64"));
  EXPECT_FLOAT_EQ(file->Float("llama.attention.layer_norm_rms_epsilon").value(), 1e-5f);
  EXPECT_EQ(file->Float("llama.block_count").value(), 2);
  EXPECT_EQ(file->Floats("test.floats").value(), (std::vector<float>{0.5f, -1.5f}));
  EXPECT_EQ(file->Strings("tokenizer.ggml.tokens").value()[47], "t47");
  EXPECT_EQ(file->Integers("tokenizer.ggml.token_type").value().size(), 48u);
  EXPECT_EQ(file->String("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(file->String("llama.block_count")), HasSubstr("llama.block_count is u32, expected a string"));
  EXPECT_THAT(ErrorOf(file->Bool("llama.block_count")), HasSubstr("expected a bool"));
  EXPECT_THAT(ErrorOf(file->Integers("tokenizer.ggml.tokens")), HasSubstr("expected an array of integers"));
  EXPECT_THAT(ErrorOf(file->Strings("tokenizer.ggml.token_type")), HasSubstr("expected an array of strings"));
  const GgufTensor* tensor = file->Find("blk.1.attn_k.weight");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->dtype, DType::kQ4_0);
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(tensor->bytes.size(), 16u * 18);
}

TEST(Gguf, LyingHeaders) {
  EXPECT_EQ(Raw().Header(0, 0).Error(), "no error");
  EXPECT_THAT(ErrorOf(GgufFile::Parse("GGU", "f")), HasSubstr("not a GGUF file"));
  EXPECT_THAT(Raw().Header(0, 0, 2).Error(), HasSubstr("version 2"));
  EXPECT_THAT(Raw().Header(0, 0, 0x03000000).Error(), HasSubstr("big-endian"));
  EXPECT_THAT(Raw().Header(1'000'000'000, 0).Error(), HasSubstr("1000000000 tensors, at most"));
  EXPECT_THAT(Raw().Header(0, 1'000'000'000).Error(), HasSubstr("metadata keys, at most"));
  EXPECT_THAT(Raw().Header(UINT64_MAX, 0).Error(), HasSubstr("at most"));
  EXPECT_THAT(Raw().Header(1, 0).Error(), HasSubstr("the file ends inside a tensor name"));
  EXPECT_THAT(Raw().Header(0, 1).Put<uint64_t>(UINT64_MAX).Error(), HasSubstr("at most 65535"));
  EXPECT_THAT(Raw().Header(0, 1).Put<uint64_t>(100).Error(), HasSubstr("the file has 0 left"));
  EXPECT_THAT(Raw().Header(0, 1).Text("k").Put<uint32_t>(99).Error(), HasSubstr("unknown value type 99"));
  EXPECT_THAT(Raw().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(UINT64_MAX).Error(), HasSubstr("key 'k'"));
}

TEST(Gguf, LyingArrays) {
  const auto array = [](uint32_t element, uint64_t count) {
    return Raw().Header(0, 1).Text("k").Put<uint32_t>(9).Put<uint32_t>(element).Put<uint64_t>(count);
  };
  EXPECT_THAT(array(4, 1'000'000'000).Error(), HasSubstr("an array of 1000000000 u32"));
  EXPECT_THAT(array(10, UINT64_MAX / 4).Error(), HasSubstr("array of"));
  EXPECT_THAT(array(8, 1'000'000'000).Error(), HasSubstr("an array of 1000000000 string"));
  EXPECT_THAT(array(8, UINT64_MAX / 8 + 1).Error(), HasSubstr("array of"));
  EXPECT_THAT(array(9, 1).Error(), HasSubstr("arrays of arrays"));
  EXPECT_THAT(array(77, 0).Error(), HasSubstr("unknown array type"));
  EXPECT_EQ(array(8, 0).Error(), "no error");
  EXPECT_THAT(
      Raw().Header(0, 2).Text("k").Put<uint32_t>(0).Put<uint8_t>(1).Text("k").Put<uint32_t>(0).Put<uint8_t>(1).Error(),
      HasSubstr("is there twice"));
}

TEST(Gguf, LyingTensors) {
  EXPECT_EQ(Raw().Header(1, 0).Tensor("a", {4}, 0, 0).Data(16).Error(), "no error");
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {4}, 0, 0).Data(15).Error(), HasSubstr("tensor 'a': 16 bytes"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {4}, 0, 32).Data(16).Error(), HasSubstr("beyond"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {4}, 0, UINT64_MAX - 31).Data(16).Error(), HasSubstr("beyond"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {4}, 0, 4).Data(32).Error(), HasSubstr("multiple of 32"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {1ull << 32, 1ull << 32}, 0, 0).Data(16).Error(), HasSubstr("overflows"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {1ull << 62}, 0, 0).Data(16).Error(), HasSubstr("overflows"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {0}, 0, 0).Data(16).Error(), HasSubstr("a dimension of 0"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {UINT64_MAX}, 0, 0).Data(16).Error(), HasSubstr("a dimension of"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {1, 1, 1, 1, 1}, 0, 0).Data(16).Error(), HasSubstr("5 dimensions"));
  EXPECT_THAT(Raw().Header(1, 0).Tensor("a", {33}, 8, 0).Data(99).Error(), HasSubstr("not whole Q8_0 blocks"));
  EXPECT_THAT(Raw().Header(2, 0).Tensor("a", {4}, 0, 0).Tensor("a", {4}, 0, 32).Data(48).Error(),
              HasSubstr("is there twice"));
  EXPECT_THAT(Raw().Header(2, 0).Tensor("a", {16}, 0, 0).Tensor("b", {4}, 0, 32).Data(64).Error(),
              HasSubstr("tensor 'b' overlaps another"));
  EXPECT_THAT(Raw().Header(2, 0).Tensor("a", {4}, 0, 0).Tensor("b", {4}, 0, 0).Data(64).Error(), HasSubstr("overlaps"));
}

TEST(Gguf, Alignment) {
  const auto aligned = [](uint32_t alignment) {
    return Raw()
        .Header(1, 1)
        .Text("general.alignment")
        .Put<uint32_t>(4)
        .Put<uint32_t>(alignment)
        .Tensor("a", {4}, 0, 0)
        .Data(999);
  };
  EXPECT_EQ(aligned(64).Error(), "no error");
  EXPECT_THAT(aligned(0).Error(), HasSubstr("general.alignment must be a power of two"));
  EXPECT_THAT(aligned(24).Error(), HasSubstr("power of two"));
  EXPECT_THAT(aligned(1u << 31).Error(), HasSubstr("power of two"));
  EXPECT_THAT(
      Raw().Header(1, 1).Text("general.alignment").Put<uint32_t>(8).Text("32").Tensor("a", {4}, 0, 0).Data(99).Error(),
      HasSubstr("power of two"));
}

TEST(Gguf, UnreadableTypesAreListedAndPlaced) {
  auto raw = Raw().Header(2, 0).Tensor("k", {256}, 14, 0).Tensor("new", {4}, 99, 224).Data(300);
  auto file = GgufFile::Parse(raw.bytes, "f");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("k")->type_name, "Q6_K");
  EXPECT_EQ(file->Find("k")->dtype, std::nullopt);
  EXPECT_EQ(file->Find("k")->bytes.size(), 210u);
  EXPECT_EQ(file->Find("new")->type_name, "type 99");
}

TEST(Gguf, WriterRoundTrip) {
  TempFolder folder;
  {
    GgufWriter writer;
    writer.AddString("s", "text");
    writer.AddU32("u", 7);
    writer.AddF32("f", 0.25f);
    writer.AddBool("b", true);
    writer.AddStrings("ss", {"x", "", "yz"});
    writer.AddI32s("is", {-1, 2});
    writer.AddF32s("fs", {1.5f});
    ASSERT_TRUE(writer.AddTensor("m", DType::kQ8_0, {2, 32}).ok());
    ASSERT_TRUE(writer.AddTensor("v", DType::kF32, {3}).ok());
    EXPECT_FALSE(writer.AddTensor("v", DType::kF32, {3}).ok());
    EXPECT_FALSE(writer.AddTensor("w", DType::kQ8_0, {3, 33}).ok());
    EXPECT_FALSE(writer.AddTensor("n", DType::kNf4, {2, 32}).ok());
    ASSERT_TRUE(writer.Begin(folder / "x.gguf").ok());
    ASSERT_TRUE(writer.Write("v", std::string(12, 'v')).ok());
    EXPECT_THROW((void)writer.Write("v", std::string(12, 'v')), InvariantError);
    EXPECT_THROW((void)writer.Finish(), InvariantError);
    ASSERT_TRUE(writer.Write("m", std::string(68, 'm')).ok());
    EXPECT_FALSE(std::filesystem::exists(folder / "x.gguf"));
    ASSERT_TRUE(writer.Finish().ok());
  }
  EXPECT_EQ(folder.Entries(), 1u);
  auto file = GgufFile::Open(folder / "x.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->String("s").value(), "text");
  EXPECT_EQ(file->Integer("u").value(), 7);
  EXPECT_EQ(file->Float("f").value(), 0.25);
  EXPECT_EQ(file->Bool("b").value(), true);
  EXPECT_EQ(file->Strings("ss").value(), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(file->Integers("is").value(), (std::vector<int32_t>{-1, 2}));
  EXPECT_EQ(file->Floats("fs").value(), (std::vector<float>{1.5f}));
  EXPECT_EQ(file->Find("m")->bytes, std::string(68, 'm'));
  EXPECT_EQ(file->Find("m")->shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file->Find("v")->bytes, std::string(12, 'v'));
}

TEST(GgufTensorName, MapsDecoderNames) {
  EXPECT_EQ(GgufTensorName("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
  EXPECT_EQ(GgufTensorName("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
  EXPECT_EQ(GgufTensorName("model.layers.0.self_attn.k_norm.weight"), "blk.0.attn_k_norm.weight");
  EXPECT_EQ(GgufTensorName("lm_head.weight"), "output.weight");
  for (const char* name :
       {"", "model.layers", "model.layers..mlp.up_proj.weight", "model.layers.x.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj", "model.layers.1.other.weight", "model.layers.12345678901.mlp.up_proj.weight"}) {
    EXPECT_EQ(GgufTensorName(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace hone
