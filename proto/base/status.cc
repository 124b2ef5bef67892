#include "proto/base/status.h"

#include <charconv>

namespace hone {
namespace internal {

void AppendPiece(std::string& out, std::string_view piece) { out.append(piece); }
void AppendPiece(std::string& out, bool value) { out.append(value ? "true" : "false"); }

template <typename T>
static void AppendNumber(std::string& out, T value) {
  char buffer[64];
  auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  out.append(buffer, result.ptr);
}
void AppendPiece(std::string& out, long long value) { AppendNumber(out, value); }
void AppendPiece(std::string& out, unsigned long long value) { AppendNumber(out, value); }
void AppendPiece(std::string& out, double value) { AppendNumber(out, value); }

}  // namespace internal

absl::Status Annotate(const absl::Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), ToAbsl(StrCat(prefix, ": ", status.message())));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { annotated.SetPayload(url, payload); });
  return annotated;
}

void FailInvariant(const char* file, int line, const char* condition, const std::string& detail) {
  throw InvariantError(StrCat(file, ":", line, ": invariant broken: ", condition, detail.empty() ? "" : ": ", detail));
}

}  // namespace hone
