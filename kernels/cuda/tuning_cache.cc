#include "kernels/cuda/tuning_cache.h"

#include <charconv>
#include <optional>
#include <vector>

#include "proto/base/file.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"

namespace hone::cuda {
namespace {

constexpr std::string_view kTitle = "hone matrix products 1";
constexpr uint64_t kMaxFileBytes = 16 << 20;
constexpr char kHex[] = "0123456789abcdef";

std::string Digest(std::string_view text) { return Sha256Hex(text).substr(0, 16); }

// The text up to `end`, which is taken off as well; nullopt if there is none.
std::optional<std::string_view> Take(std::string_view& text, char end) {
  const size_t at = text.find(end);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at + 1);
  return taken;
}

template <typename T>
bool TakeNumber(std::string_view& line, T& value) {
  const auto word = Take(line, ' ');
  if (!word) return false;
  const auto [end, error] = std::from_chars(word->data(), word->data() + word->size(), value);
  return error == std::errc() && end == word->data() + word->size();
}

bool TakeBytes(std::string_view& line, std::array<uint8_t, 64>& bytes) {
  const auto word = Take(line, ' ');
  if (!word || word->size() != bytes.size() * 2) return false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto [end, error] = std::from_chars(word->data() + 2 * i, word->data() + 2 * i + 2, bytes[i], 16);
    if (error != std::errc() || end != word->data() + 2 * i + 2) return false;
  }
  return true;
}

bool ParseLine(std::string_view line, TuningTable& table) {
  TuningKey key;
  for (int64_t& part : key) {
    if (!TakeNumber(line, part)) return false;
  }
  TunedAlgorithm tuned;
  if (!TakeBytes(line, tuned.bytes) || !TakeNumber(line, tuned.workspace_bytes) ||
      !TakeNumber(line, tuned.microseconds)) {
    return false;
  }
  tuned.description = std::string(line);
  return table.emplace(key, tuned).second;
}

}  // namespace

std::string FormatTuning(std::string_view machine, const TuningTable& table) {
  std::string text = StrCat(kTitle, "\nmachine ", machine, "\n");
  for (const auto& [key, tuned] : table) {
    for (int64_t part : key) text += StrCat(part, " ");
    for (uint8_t byte : tuned.bytes) text += {kHex[byte >> 4], kHex[byte & 15]};
    text += StrCat(" ", tuned.workspace_bytes, " ", tuned.microseconds, " ", tuned.description, "\n");
  }
  return StrCat(text, "end ", table.size(), " ", Digest(text), "\n");
}

TuningTable ParseTuning(std::string_view text, std::string_view machine) {
  const size_t end = text.rfind("end ");
  if (end == std::string_view::npos || end == 0 || text[end - 1] != '\n') return {};
  std::string_view lines = text.substr(0, end);
  const std::string digest = Digest(lines);
  if (Take(lines, '\n') != kTitle || Take(lines, '\n') != StrCat("machine ", machine)) return {};
  TuningTable table;
  while (const auto line = Take(lines, '\n')) {
    if (!ParseLine(*line, table)) return {};
  }
  if (text.substr(end) != StrCat("end ", table.size(), " ", digest, "\n")) return {};
  return table;
}

TuningTable LoadTuning(const std::string& path, std::string_view machine) {
  const auto text = ReadFile(path, kMaxFileBytes);
  return text.ok() ? ParseTuning(*text, machine) : TuningTable();
}

absl::Status SaveTuning(const std::string& path, std::string_view machine, const TuningTable& table) {
  return WriteFileDurably(path, FormatTuning(machine, table));
}

}  // namespace hone::cuda
