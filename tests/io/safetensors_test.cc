#include "engine/io/safetensors.h"

#include <gmock/gmock.h>

#include <fstream>

#include "proto/base/file.h"
#include "tests/io/test_files.h"

namespace hone {
namespace {

using testing::HasSubstr;

std::string Build(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  return out + header + std::string(data_bytes, 'x');
}

std::string ParseError(const std::string& header, size_t data_bytes) {
  const std::string bytes = Build(header, data_bytes);
  return ErrorOf(SafetensorsFile::Parse(bytes, "f"));
}

TEST(Safetensors, ReadsWhatTransformersWrote) {
  auto file = SafetensorsFile::Open(Golden("llama/model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsTensor* tensor = file->Find("model.layers.1.self_attn.k_proj.weight");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->type, "BF16");
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(tensor->bytes.size(), 16u * 32 * 2);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->Find("nothing"), nullptr);
}

TEST(Safetensors, LyingHeaders) {
  const std::string entry = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})";
  EXPECT_EQ(ParseError(entry, 8), "no error");
  EXPECT_THAT(ParseError(entry, 7), HasSubstr("tensor 'a': data_offsets [0, 8] do not lie in the 7 bytes"));
  EXPECT_THAT(ParseError(entry, 9), HasSubstr("belong to no tensor"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", 8), HasSubstr("take 12"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})", 8), HasSubstr("'a'"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}})", 8), HasSubstr("F99"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})", 8),
              HasSubstr("unsigned"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}})", 8),
              HasSubstr("unsigned"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}})", 8), HasSubstr("two"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}})", 8), HasSubstr("shape"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": 3, "shape": [2], "data_offsets": [0, 8]}})", 8), HasSubstr("dtype"));
  EXPECT_THAT(ParseError(R"({"a": 1})", 0), HasSubstr("'a'"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2), HasSubstr("whole bytes"));
  EXPECT_THAT(ParseError("[]", 0), HasSubstr("must begin with '{'"));
  EXPECT_THAT(ParseError("{", 0), HasSubstr("header"));
  EXPECT_THAT(ParseError(R"({"__metadata__": {"a": 1}})", 0), HasSubstr("must be a string"));
}

TEST(Safetensors, OverflowingSizes) {
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}})", 8),
              HasSubstr("overflows"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "F64", "shape": [2305843009213693953], "data_offsets": [0, 8]}})", 8),
              HasSubstr("overflows"));
  EXPECT_THAT(ParseError(R"({"a": {"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 8]}})", 8),
              HasSubstr("unsigned"));
  EXPECT_THAT(
      ParseError(
          R"({"a": {"dtype": "U8", "shape": [8], "data_offsets": [18446744073709551608, 18446744073709551615]}})", 8),
      HasSubstr("do not lie"));
  EXPECT_THAT(ErrorOf(SafetensorsFile::Parse(std::string(8, '\xff'), "f")), HasSubstr("at most"));
  std::string long_header(8, '\0');
  long_header[1] = 1;  // 256 bytes that are not there
  EXPECT_THAT(ErrorOf(SafetensorsFile::Parse(long_header, "f")), HasSubstr("the file has 8 bytes"));
  EXPECT_THAT(ErrorOf(SafetensorsFile::Parse("abc", "f")), HasSubstr("not a safetensors file"));
}

TEST(Safetensors, OverlapsAndHoles) {
  const auto two = [](int begin, int end) {
    return StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[)", end - begin,
                  R"(],"data_offsets":[)", begin, ",", end, "]}}");
  };
  EXPECT_EQ(ParseError(two(4, 8), 8), "no error");
  EXPECT_THAT(ParseError(two(3, 8), 8), HasSubstr("tensor 'b': overlaps another tensor at byte"));
  EXPECT_THAT(ParseError(two(0, 8), 8), HasSubstr("overlaps"));
  EXPECT_THAT(ParseError(two(0, 4), 4), HasSubstr("overlaps"));
  EXPECT_THAT(ParseError(two(5, 8), 8), HasSubstr("belong to no tensor"));
  EXPECT_EQ(ParseError(two(4, 4), 4), "no error") << "an empty tensor";
  EXPECT_THAT(ParseError(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                             "a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                         4),
              HasSubstr("duplicate key"));
}

TEST(Safetensors, TooManyEntries) {
  std::string header = "{";
  for (int i = 0; i < 65538; ++i) {
    header += StrCat(i == 0 ? "" : ",", "\"", i, R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  EXPECT_THAT(ParseError(header + "}", 0), HasSubstr("at most 65536"));
}

TEST(Safetensors, WriterRoundTripAndDeterminism) {
  TempFolder folder;
  const std::string a(12, 'a'), b(8, 'b'), c(5, 'c');
  const auto write = [&](const std::string& path, bool reversed) {
    std::vector<SafetensorsWriter::Declaration> tensors = {{"a\n\"", DType::kF32, {3}},
                                                           {"b", DType::kBF16, {2, 2}},
                                                           {"c", DType::kU8, {5}},
                                                           {"empty", DType::kF32, {0, 4}}};
    if (reversed) std::reverse(tensors.begin(), tensors.end());
    auto writer = SafetensorsWriter::Create(path, tensors, {{"k", "v"}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->WritePart("a\n\"", 0, std::string_view(a).substr(0, 5)).ok());
    ASSERT_TRUE((*writer)->Write("c", c).ok());
    ASSERT_TRUE((*writer)->Write("b", b).ok());
    ASSERT_TRUE((*writer)->WritePart("a\n\"", 5, std::string_view(a).substr(5)).ok());
    EXPECT_FALSE(std::filesystem::exists(path)) << "nothing is visible before Finish";
    ASSERT_TRUE((*writer)->Finish().ok());
  };
  write(folder / "one", false);
  write(folder / "two", true);
  EXPECT_EQ(ReadFile(folder / "one").value(), ReadFile(folder / "two").value());
  auto file = SafetensorsFile::Open(folder / "one");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("a\n\"")->bytes, a);
  EXPECT_EQ(file->Find("b")->bytes, b);
  EXPECT_EQ(file->Find("b")->shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(file->Find("c")->bytes, c);
  EXPECT_EQ(file->Find("empty")->elements, 0u);
  EXPECT_EQ(file->metadata().at("k"), "v");
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ((8 + file->header().size()) % 8, 0u);
  EXPECT_EQ(folder.Entries(), 2u);
}

TEST(Safetensors, UnfinishedWriterLeavesNothing) {
  TempFolder folder;
  {
    auto writer = SafetensorsWriter::Create(folder / "x", {{"a", DType::kU8, {4}}});
    ASSERT_TRUE(writer.ok());
    EXPECT_THROW((void)(*writer)->Finish(), InvariantError);
    EXPECT_THROW((void)(*writer)->Write("a", "12345"), InvariantError);
    EXPECT_THROW((void)(*writer)->Write("b", ""), InvariantError);
  }
  EXPECT_EQ(folder.Entries(), 0u);
  EXPECT_FALSE(SafetensorsWriter::Create(folder / "no/x", {}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(folder / "x", {{"a", DType::kU8, {4}}, {"a", DType::kU8, {4}}}).ok());
}

TEST(SafetensorsDirectory, FindsTensorsOfShards) {
  auto directory = SafetensorsDirectory::Open(Golden("qwen2_sharded"));
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(directory->files().size(), 3u);
  EXPECT_NE(directory->Find("model.layers.0.self_attn.q_proj.bias"), nullptr);
  EXPECT_NE(directory->Find("model.norm.weight"), nullptr);
}

TEST(SafetensorsDirectory, ShardsStayInTheFolder) {
  TempFolder folder;
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin"}) {
    std::ofstream(folder / "model.safetensors.index.json") << R"({"weight_map": {"t": ")" << name << "\"}}";
    EXPECT_THAT(ErrorOf(SafetensorsDirectory::Open(folder.path())), HasSubstr("in the same folder")) << name;
  }
  std::ofstream(folder / "model.safetensors.index.json") << R"({"weight_map": {"t": "gone.safetensors"}})";
  EXPECT_THAT(ErrorOf(SafetensorsDirectory::Open(folder.path())), HasSubstr("gone.safetensors"));
  std::ofstream(folder / "model.safetensors.index.json") << "[]";
  EXPECT_THAT(ErrorOf(SafetensorsDirectory::Open(folder.path())), HasSubstr("weight_map"));
}

TEST(EscapeForDisplay, MakesTerminalsSafe) {
  EXPECT_EQ(EscapeForDisplay("plain é – “漢” 😀"), "plain é – “漢” 😀");
  EXPECT_EQ(EscapeForDisplay("\x1b[31m\n\"\\"), "\\x1b[31m\\x0a\\x22\\x5c");
  EXPECT_EQ(EscapeForDisplay("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(EscapeForDisplay("\xc2\x9b"), "\\xc2\\x9b");           // a C1 control
  EXPECT_EQ(EscapeForDisplay("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // right-to-left override
  EXPECT_EQ(EscapeForDisplay("abcdef", 3), "abc...");
}

TEST(Hostile, FilesLoadAsDataWithInertMetadata) {
  const char* data = std::getenv("HONE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "HONE_TEST_DATA is not set";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(data) + "/hostile/safetensors")) {
    auto file = SafetensorsFile::Open(entry.path().string());
    EXPECT_TRUE(file.ok()) << entry.path() << ": " << file.status();
    if (!file.ok()) continue;
    for (const auto& [key, value] : file->metadata()) {
      for (unsigned char c : EscapeForDisplay(value, 10000)) EXPECT_GE(c, 0x20);
    }
    ++count;
  }
  EXPECT_GE(count, 5);
}

}  // namespace
}  // namespace hone
