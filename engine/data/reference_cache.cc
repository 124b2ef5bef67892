#include "engine/data/reference_cache.h"

#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone {

namespace {

static_assert(std::endian::native == std::endian::little, "the cache file is little-endian");

constexpr std::string_view kMagic = "HONEREF1";
constexpr size_t kHeaderBytes = 16, kRecordBytes = 40, kDigestBytes = 32;

ReferenceKey FromHex(const std::string& hex) {
  ReferenceKey key{};
  for (size_t i = 0; i < key.size(); ++i) {
    const auto digit = [&](char c) { return static_cast<uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10); };
    key[i] = static_cast<uint8_t>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  }
  return key;
}

absl::Status Damaged(const std::string& path, std::string_view what) {
  return DataLoss(path, ": not a usable reference cache (", what, "); delete it, it will be computed again");
}

}  // namespace

ReferenceKey MakeReferenceKey(std::string_view model_digest, const Example& example) {
  Sha256 sha;
  const uint64_t sizes[] = {model_digest.size(), example.ids.size()};
  sha.Update({reinterpret_cast<const char*>(sizes), sizeof(sizes)});
  sha.Update(model_digest);
  sha.Update({reinterpret_cast<const char*>(example.ids.data()), example.ids.size() * sizeof(int32_t)});
  sha.Update({reinterpret_cast<const char*>(example.trained.data()), example.trained.size()});
  return FromHex(sha.FinishHex());
}

absl::StatusOr<ReferenceCache> ReferenceCache::Load(const std::string& path) {
  ReferenceCache cache;
  if (::access(path.c_str(), F_OK) != 0) return cache;
  HONE_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  if (bytes.size() < kHeaderBytes + kDigestBytes || !std::string_view(bytes).starts_with(kMagic))
    return Damaged(path, "no header");
  uint64_t count = 0;
  std::memcpy(&count, bytes.data() + kMagic.size(), sizeof(count));
  const size_t body = bytes.size() - kHeaderBytes - kDigestBytes;
  if (body % kRecordBytes != 0 || count != body / kRecordBytes)
    return Damaged(path, "its length does not match its count");
  const std::string_view covered = std::string_view(bytes).substr(0, bytes.size() - kDigestBytes);
  const ReferenceKey digest = FromHex(Sha256Hex(covered));
  if (std::memcmp(digest.data(), bytes.data() + covered.size(), kDigestBytes) != 0)
    return Damaged(path, "its checksum is wrong");
  for (uint64_t i = 0; i < count; ++i) {
    const char* record = bytes.data() + kHeaderBytes + i * kRecordBytes;
    ReferenceKey key;
    double value = 0;
    std::memcpy(key.data(), record, key.size());
    std::memcpy(&value, record + key.size(), sizeof(value));
    cache.entries_.emplace_hint(cache.entries_.end(), key, value);
  }
  if (cache.entries_.size() != count) return Damaged(path, "a key is there twice");
  return cache;
}

absl::Status ReferenceCache::Save(const std::string& path) const {
  std::string bytes(kMagic);
  const uint64_t count = entries_.size();
  bytes.append(reinterpret_cast<const char*>(&count), sizeof(count));
  for (const auto& [key, value] : entries_) {
    bytes.append(reinterpret_cast<const char*>(key.data()), key.size());
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  const ReferenceKey digest = FromHex(Sha256Hex(bytes));
  bytes.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  return WriteFileDurably(path, bytes);
}

std::optional<double> ReferenceCache::Find(const ReferenceKey& key) const {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return std::nullopt;
  return entry->second;
}

void ReferenceCache::Put(const ReferenceKey& key, double log_prob) { entries_[key] = log_prob; }

}  // namespace hone
