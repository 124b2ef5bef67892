// Error helpers shared by every room: absl::Status builders that take std::string_view, early-return macros, and
// production invariants. Not here: gRPC mapping (server/), which turns these into rich errors.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hone {

// Debian's absl::string_view is not std::string_view; these two are the only bridge.
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }

namespace internal {
void AppendPiece(std::string& out, std::string_view piece);
void AppendPiece(std::string& out, bool value);
void AppendPiece(std::string& out, long long value);
void AppendPiece(std::string& out, unsigned long long value);
void AppendPiece(std::string& out, double value);  // shortest text that reads back equal

template <typename T>
void AppendAny(std::string& out, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    AppendPiece(out, value);
  } else if constexpr (std::is_same_v<T, char>) {
    out.push_back(value);
  } else if constexpr (std::is_floating_point_v<T>) {
    AppendPiece(out, static_cast<double>(value));
  } else if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
    AppendPiece(out, static_cast<long long>(value));
  } else if constexpr (std::is_integral_v<T>) {
    AppendPiece(out, static_cast<unsigned long long>(value));
  } else if constexpr (std::is_same_v<T, absl::string_view>) {
    AppendPiece(out, ToStd(value));
  } else {
    AppendPiece(out, std::string_view(value));
  }
}
}  // namespace internal

// Concatenates strings (std or absl), numbers, chars and bools.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::string out;
  (internal::AppendAny(out, args), ...);
  return out;
}

// The text a user reads says: the field, file or byte offset; what was expected; what to do.
template <typename... Args>
absl::Status InvalidArgument(const Args&... args) {
  return absl::InvalidArgumentError(StrCat(args...));
}
template <typename... Args>
absl::Status NotFound(const Args&... args) {
  return absl::NotFoundError(StrCat(args...));
}
template <typename... Args>
absl::Status FailedPrecondition(const Args&... args) {
  return absl::FailedPreconditionError(StrCat(args...));
}
template <typename... Args>
absl::Status ResourceExhausted(const Args&... args) {
  return absl::ResourceExhaustedError(StrCat(args...));
}
template <typename... Args>
absl::Status Unimplemented(const Args&... args) {
  return absl::UnimplementedError(StrCat(args...));
}
template <typename... Args>
absl::Status Internal(const Args&... args) {
  return absl::InternalError(StrCat(args...));
}
template <typename... Args>
absl::Status DataLoss(const Args&... args) {
  return absl::DataLossError(StrCat(args...));
}

// Same code, "prefix: message": how a caller adds the file or field it knows.
absl::Status Annotate(const absl::Status& status, std::string_view prefix);

// A broken invariant of ours, never a user's mistake. It ends the job (the worker's main catches it), not the daemon.
class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};
[[noreturn]] void FailInvariant(const char* file, int line, const char* condition, const std::string& detail);

}  // namespace hone

// HONE_CHECK(cond) or HONE_CHECK(cond, "detail ", value): on in production.
#define HONE_CHECK(condition, ...)                                                        \
  do {                                                                                    \
    if (!(condition)) [[unlikely]] {                                                      \
      ::hone::FailInvariant(__FILE__, __LINE__, #condition, ::hone::StrCat(__VA_ARGS__)); \
    }                                                                                     \
  } while (false)

#define HONE_RETURN_IF_ERROR(expression)                                                   \
  do {                                                                                     \
    if (absl::Status hone_status_ = (expression); !hone_status_.ok()) return hone_status_; \
  } while (false)

#define HONE_CONCAT_INNER_(a, b) a##b
#define HONE_CONCAT_(a, b) HONE_CONCAT_INNER_(a, b)
#define HONE_ASSIGN_OR_RETURN(declaration, expression) \
  HONE_ASSIGN_OR_RETURN_INNER_(HONE_CONCAT_(hone_statusor_, __LINE__), declaration, expression)
#define HONE_ASSIGN_OR_RETURN_INNER_(temporary, declaration, expression) \
  auto temporary = (expression);                                         \
  if (!temporary.ok()) return temporary.status();                        \
  declaration = *std::move(temporary)
