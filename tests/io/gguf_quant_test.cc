#include "engine/io/gguf_quant.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/io/test_files.h"

namespace hone {
namespace {

TEST(GgufQuant, DecodesWhatGgufPyWrote) {
  const SafetensorsFile file = SafetensorsFile::Open(Golden("quant_cases.safetensors")).value();
  const std::pair<const char*, DType> kinds[] = {{"q8_0", DType::kQ8_0},
                                                 {"q4_0", DType::kQ4_0},
                                                 {"q4_1", DType::kQ4_1},
                                                 {"f16", DType::kF16},
                                                 {"bf16", DType::kBF16}};
  for (const auto& [name, dtype] : kinds) {
    const std::vector<float> expected = Floats(file, StrCat(name, ".decoded"));
    std::vector<float> out(expected.size());
    ASSERT_EQ(file.Find(name)->bytes.size(), *StorageBytes(dtype, out.size())) << name;
    DecodeToFloat(dtype, file.Find(name)->bytes.data(), out.size(), out.data());
    ExpectSameBits(out, expected, name);
  }
}

TEST(GgufQuant, EncodesAsGgufPy) {
  const SafetensorsFile file = SafetensorsFile::Open(Golden("quant_cases.safetensors")).value();
  const std::vector<float> x = Floats(file, "x");
  const std::pair<const char*, DType> kinds[] = {{"q8_0", DType::kQ8_0}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};
  for (const auto& [name, dtype] : kinds) {
    std::string out(*StorageBytes(dtype, x.size()), '?');
    EncodeFromFloat(dtype, x.data(), x.size(), out.data());
    const std::string_view expected = file.Find(name)->bytes;
    ASSERT_EQ(out.size(), expected.size());
    for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected[i]) << name << " byte " << i;
  }
}

TEST(GgufQuant, EveryHalfSurvives) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    const bool is_nan = (bits & 0x7FFF) > 0x7C00;
    EXPECT_EQ(std::isnan(value), is_nan);
    if (is_nan) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), bits);
    }
    const float wide = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (!std::isnan(wide)) {
      ASSERT_EQ(FloatToBf16(wide), bits);
    }
  }
}

TEST(GgufQuant, RoundsToNearestEven) {
  EXPECT_EQ(HalfToFloat(FloatToHalf(2049.0f)), 2048.0f);
  EXPECT_EQ(HalfToFloat(FloatToHalf(2051.0f)), 2052.0f);
  EXPECT_EQ(HalfToFloat(FloatToHalf(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(HalfToFloat(FloatToHalf(65520.0f))));
  EXPECT_EQ(HalfToFloat(FloatToHalf(0x1p-25f)), 0.0f);
  EXPECT_EQ(HalfToFloat(FloatToHalf(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(FloatToHalf(-0x1.ffffp-15f)), -0x1p-14f);
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(257.0f)), 256.0f);
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(259.0f)), 260.0f);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(Bf16ToFloat(FloatToBf16(3.4e38f))));
}

}  // namespace
}  // namespace hone
