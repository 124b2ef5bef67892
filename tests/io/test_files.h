// Helpers of these tests: a folder that goes away, fixtures, tensors of fixtures as floats.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/gguf_quant.h"
#include "engine/io/safetensors.h"
#include "proto/base/status.h"

namespace hone {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = testing::TempDir() + "/hone_io_XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  size_t Entries() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::string path_;
};

inline std::string Golden(const std::string& name) { return std::string(HONE_GOLDEN) + "/io/" + name; }

inline std::vector<float> Floats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsTensor* tensor = file.Find(name);
  EXPECT_NE(tensor, nullptr) << name;
  if (tensor == nullptr || !tensor->dtype) return {};
  std::vector<float> out(tensor->elements);
  DecodeToFloat(*tensor->dtype, tensor->bytes.data(), tensor->elements, out.data());
  return out;
}

// Bit for bit, so that -0 and NaN count.
inline void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    uint32_t a, b;
    std::memcpy(&a, &got[i], 4);
    std::memcpy(&b, &expected[i], 4);
    ASSERT_EQ(a, b) << what << "[" << i << "]: " << got[i] << " and " << expected[i];
  }
}

inline std::string ErrorOf(const absl::Status& status) { return std::string(status.message()); }
template <typename T>
std::string ErrorOf(const absl::StatusOr<T>& result) {
  return result.ok() ? "no error" : std::string(result.status().message());
}

}  // namespace hone
