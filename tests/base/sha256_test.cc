#include "proto/base/sha256.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace hone {
namespace {

// Vectors of FIPS 180-4's examples (NIST CAVP).
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillionA[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256, KnownVectors) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256, PiecesEqualWholeAndObjectStartsAnew) {
  Sha256 sha;
  for (int i = 0; i < 1000; ++i) sha.Update(std::string(1000, 'a'));
  EXPECT_EQ(sha.FinishHex(), kMillionA);
  EXPECT_EQ(sha.FinishHex(), kEmpty);
  sha.Update("ab");
  sha.Update("c");
  EXPECT_EQ(sha.FinishHex(), kAbc);
}

TEST(Sha256, File) {
  const std::string path = testing::TempDir() + "/sha256_file";
  std::ofstream(path, std::ios::binary) << std::string(1000000, 'a');
  auto digest = Sha256HexOfFile(path);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, kMillionA);
  std::filesystem::remove(path);
  EXPECT_EQ(Sha256HexOfFile(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Sha256HexOfFile(testing::TempDir()).ok());
}

TEST(Sha256, OnlyLowerCaseHexOfSixtyFourIsADigest) {
  EXPECT_TRUE(IsSha256Hex(kAbc));
  EXPECT_FALSE(IsSha256Hex(""));
  EXPECT_FALSE(IsSha256Hex(std::string(kAbc).substr(1)));
  EXPECT_FALSE(IsSha256Hex(std::string(kAbc) + "0"));
  std::string upper = kAbc;
  upper[0] = 'B';
  EXPECT_FALSE(IsSha256Hex(upper));
  std::string path = kAbc;
  path.replace(0, 3, "../");
  EXPECT_FALSE(IsSha256Hex(path));
}

}  // namespace
}  // namespace hone
