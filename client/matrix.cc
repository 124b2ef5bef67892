#include "client/matrix.h"

#include <charconv>
#include <cmath>

#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxCombinations = 1000;

std::vector<std::string> SplitValues(const std::string& text) {
  std::vector<std::string> values(1);
  int depth = 0;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',' && depth == 0) {
      values.emplace_back();
      continue;
    }
    values.back().push_back(c);
  }
  return values;
}

}  // namespace

absl::StatusOr<std::vector<Combination>> ExpandMatrix(const std::vector<std::string>& matrices) {
  std::vector<Combination> all(1);
  for (const std::string& matrix : matrices) {
    const size_t equals = matrix.find('=');
    if (equals == std::string::npos || equals == 0) {
      return InvalidArgument("--matrix ", matrix, ": FIELD=VALUE,VALUE,... is expected");
    }
    const std::string field = matrix.substr(0, equals);
    const std::string leaf = field.substr(field.rfind('.') + 1);
    const std::vector<std::string> values = SplitValues(matrix.substr(equals + 1));
    std::vector<Combination> next;
    for (const Combination& before : all) {
      for (const std::string& value : values) {
        if (value.empty()) return InvalidArgument("--matrix ", matrix, ": an empty value");
        Combination one = before;
        one.sets.push_back(StrCat(field, "=", value));
        one.name += StrCat(one.name.empty() ? "" : " ", leaf, "=", value);
        next.push_back(std::move(one));
        if (next.size() > kMaxCombinations) {
          return InvalidArgument("--matrix: more than ", kMaxCombinations, " jobs at once");
        }
      }
    }
    all = std::move(next);
  }
  return all;
}

absl::StatusOr<uint64_t> ParseDuration(const std::string& text) {
  double value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit(parsed.ptr, text.data() + text.size());
  const double factor = unit.empty() || unit == "s" ? 1
                        : unit == "m"               ? 60
                        : unit == "h"               ? 3600
                        : unit == "d"               ? 86400
                                                    : 0;
  if (parsed.ec != std::errc() || factor == 0 || !(value > 0) || value * factor > 1e9) {
    return InvalidArgument("\"", text, "\": a time such as 90s, 30m, 2h or 1d is expected");
  }
  return static_cast<uint64_t>(std::ceil(value * factor));
}

}  // namespace hone
