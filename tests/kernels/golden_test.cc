// Stored weights decode to the bits that bitsandbytes and gguf give, by the reference and by the CPU back end on every
// instruction set. Values: tests/golden/make_kernels.py.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/dynamic_map.h"
#include "kernels/reference/decode.h"

namespace hone {
namespace {

std::vector<uint8_t> Read(const std::string& name) {
  std::ifstream file(std::string(HONE_GOLDEN) + "/kernels/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
std::vector<T> ReadAs(const std::string& name) {
  const std::vector<uint8_t> bytes = Read(name);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

void ExpectBits(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size());
  size_t different = 0;
  for (size_t i = 0; i < got.size(); ++i) different += std::memcmp(&got[i], &expected[i], 4) != 0;
  EXPECT_EQ(different, 0u) << what;
}

void CheckDecode(const WeightView& weight, const std::string& name) {
  const auto expected = ReadAs<float>(name + ".decoded");
  std::vector<float> values;
  for (int64_t i = 0; i < weight.rows * weight.cols; ++i) values.push_back(reference::DecodeElement(weight, i));
  ExpectBits(values, expected, name + " by the reference");
  for (const CpuKernels& kernels : CpuKernelSets()) {
    CpuOps ops(2, kernels);
    std::fill(values.begin(), values.end(), NAN);
    ops.DecodeWeight(weight, {values.data(), DType::kF32, weight.rows, weight.cols, weight.cols});
    ExpectBits(values, expected, name + " by " + kernels.name);
  }
}

TEST(Golden, GgufBlocks) {
  for (auto [name, dtype] : {std::pair{"q8_0", DType::kQ8_0},
                             {"q4_0", DType::kQ4_0},
                             {"q4_1", DType::kQ4_1},
                             {"f16", DType::kF16},
                             {"bf16", DType::kBF16}}) {
    const std::vector<uint8_t> codes = Read(std::string(name) + ".codes");
    WeightView weight;
    weight.data = codes.data();
    weight.dtype = dtype;
    weight.rows = 9;
    weight.cols = 96;
    ASSERT_EQ(codes.size(), *StorageBytes(dtype, 9 * 96)) << name;
    CheckDecode(weight, name);
  }
}

TEST(Golden, Nf4Plain) {
  const std::vector<uint8_t> codes = Read("nf4_plain.codes");
  const auto absmax = ReadAs<float>("nf4_plain.absmax");
  WeightView weight;
  weight.data = codes.data();
  weight.dtype = DType::kNf4;
  weight.rows = 9;
  weight.cols = 70;
  weight.absmax = absmax.data();
  CheckDecode(weight, "nf4_plain");
}

TEST(Golden, Nf4Nested) {
  const std::vector<uint8_t> codes = Read("nf4_nested.codes"), absmax_codes = Read("nf4_nested.absmax_codes");
  const auto nested_code = ReadAs<float>("nf4_nested.nested_code"),
             nested_absmax = ReadAs<float>("nf4_nested.nested_absmax");
  WeightView weight;
  weight.data = codes.data();
  weight.dtype = DType::kNf4;
  weight.rows = 170;
  weight.cols = 110;
  weight.absmax_codes = absmax_codes.data();
  weight.nested_code = nested_code.data();
  weight.nested_absmax = nested_absmax.data();
  weight.nested_offset = ReadAs<float>("nf4_nested.nested_offset").at(0);
  CheckDecode(weight, "nf4_nested");
  // To bf16: one rounding from the fp32 value.
  const auto expected = ReadAs<uint16_t>("nf4_nested.bf16");
  std::vector<uint16_t> rounded(expected.size());
  CpuOps ops(1);
  ops.DecodeWeight(weight, {rounded.data(), DType::kBF16, 170, 110, 110});
  EXPECT_EQ(rounded, expected);
}

// torch's linspace rounds by its vector width: the last bits depend on the machine that made the file.
TEST(Golden, DynamicMapsUpToTheLastBits) {
  for (const auto& [name, map] : {std::pair{"signed", &SignedDynamicMap()}, {"unsigned", &UnsignedDynamicMap()}}) {
    const auto expected = ReadAs<float>(std::string("dynamic_map_") + name);
    ASSERT_EQ(expected.size(), map->size());
    for (size_t i = 0; i < map->size(); ++i) {
      EXPECT_LE(std::fabs((*map)[i] - expected[i]), std::fabs(expected[i]) * 2.4e-7f) << name << "[" << i << "]";
    }
  }
}

TEST(Golden, NearestCodeIsNearestAndTheMiddleGoesDown) {
  for (const DynamicMap* map : {&SignedDynamicMap(), &UnsignedDynamicMap()}) {
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(NearestCode((*map)[i], *map), i);
      if (i == 255) continue;
      const float middle = ((*map)[i] + (*map)[i + 1]) * 0.5f;
      EXPECT_EQ(NearestCode(middle, *map), i);
      EXPECT_EQ(NearestCode(std::nextafter(middle, 2.0f), *map), i + 1);
    }
    EXPECT_EQ(NearestCode(-2, *map), 0);
    EXPECT_EQ(NearestCode(2, *map), 255);
  }
}

}  // namespace
}  // namespace hone
