// What timing found on one machine, kept in a small text file: for each matrix product the algorithm that was fastest.
// The file belongs to one `machine` (card, driver, library version); a file of another machine, another format or with
// damage is as good as none. Not here: timing, and what an algorithm's bytes mean (gemm.cc asks the library before
// use).
//
//   hone matrix products 1
//   machine <one line>
//   <kTuningKeySize integers> <algorithm, 128 hex digits> <workspace bytes> <microseconds> <description, no spaces>
//   ...
//   end <number of products> <first 16 hex digits of the SHA-256 of all lines before this one>
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace hone::cuda {

inline constexpr int kTuningKeySize = 18;
using TuningKey = std::array<int64_t, kTuningKeySize>;

struct TunedAlgorithm {
  std::array<uint8_t, 64> bytes{};  // cublasLtMatmulAlgo_t
  uint64_t workspace_bytes = 0;
  double microseconds = 0;
  std::string description;
};
using TuningTable = std::map<TuningKey, TunedAlgorithm>;

std::string FormatTuning(std::string_view machine, const TuningTable& table);
// Empty if `text` is not a whole file of this machine.
TuningTable ParseTuning(std::string_view text, std::string_view machine);

TuningTable LoadTuning(const std::string& path, std::string_view machine);  // empty where there is no such file
absl::Status SaveTuning(const std::string& path, std::string_view machine, const TuningTable& table);

}  // namespace hone::cuda
