// SHA-256 (FIPS 180-4, through OpenSSL): digests of blobs, checkpoints and cache keys.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hone {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(std::string_view bytes);
  // 64 lower-case hex digits. Ends the digest; the object starts anew afterwards.
  std::string FinishHex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(std::string_view bytes);
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path);
// Whether `text` is 64 lower-case hex digits: the only form of digest that may become part of a path.
bool IsSha256Hex(std::string_view text);

}  // namespace hone
