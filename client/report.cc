#include "client/report.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <utility>
#include <vector>

#include "client/terminal.h"
#include "nlohmann/json.hpp"
#include "proto/base/status.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kShortList = 100;

std::string Scalar(const Json& value) {
  if (value.is_string()) return Printable(value.get<std::string>());
  if (value.is_number_float()) return FormatNumber(value.get<double>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool IsFlat(const Json& list) {
  for (const Json& item : list) {
    if (item.is_structured()) return false;
  }
  return true;
}

bool AllHave(const Json& list, const char* first, const char* second) {
  if (!list.is_array() || list.empty()) return false;
  for (const Json& item : list) {
    if (!item.is_object() || !item.contains(first) || !item.contains(second)) return false;
  }
  return true;
}

std::string Indented(const std::string& text, const std::string& indent) {
  std::string out = indent;
  for (char c : text) {
    out.push_back(c);
    if (c == '\n') out += indent;
  }
  return out + "\n";
}

// The mask as a reader sees it: runs of trained tokens between marks.
std::string TokenText(const Json& tokens, bool colours) {
  std::string text, run;
  bool trained = false;
  const auto flush = [&] {
    text += trained && !run.empty() ? Paint(colours, Colour::kGreen, StrCat("«", run, "»")) : run;
    run.clear();
  };
  for (const Json& token : tokens) {
    const bool now = token["trained"].is_boolean() && token["trained"].get<bool>();
    if (now != trained) flush();
    trained = now;
    run += token["text"].is_string() ? Printable(token["text"].get<std::string>()) : Scalar(token["text"]);
  }
  flush();
  return text;
}

std::string Histogram(const Json& rows, const std::string& indent) {
  double most = 0;
  for (const Json& row : rows) {
    if (row["examples"].is_number()) most = std::max(most, row["examples"].get<double>());
  }
  std::string out;
  for (const Json& row : rows) {
    const double count = row["examples"].is_number() ? row["examples"].get<double>() : 0;
    std::string label = StrCat("up to ", Scalar(row["up_to"]));
    label.resize(std::max<size_t>(label.size() + 1, 14), ' ');
    out += StrCat(indent, label, Bar(most > 0 ? count / most : 0, 20), " ", Scalar(row["examples"]), "\n");
  }
  return out;
}

void Render(const Json& value, const std::string& indent, bool colours, std::string& out);

void RenderEntry(const std::string& key, const Json& value, const std::string& indent, bool colours, std::string& out) {
  if (AllHave(value, "text", "trained")) {
    out += StrCat(indent, key, ":\n", Indented(TokenText(value, colours), indent + "  | "));
    return;
  }
  if (AllHave(value, "up_to", "examples")) {
    out += StrCat(indent, key, ":\n", Histogram(value, indent + "  "));
    return;
  }
  if (value.is_object() && !value.empty()) {
    out += StrCat(indent, key, ":\n");
    Render(value, indent + "  ", colours, out);
  } else if (value.is_array() && IsFlat(value)) {
    std::string line = value.empty() ? "none" : "";
    for (const Json& item : value) line += StrCat(line.empty() ? "" : ", ", Scalar(item));
    if (line.size() > kShortList)
      line = StrCat(line.substr(0, line.rfind(',', kShortList)), ", ... (", value.size(), ")");
    out += StrCat(indent, key, ": ", line, "\n");
  } else if (value.is_array()) {
    out += StrCat(indent, key, ":\n");
    Render(value, indent + "  ", colours, out);
  } else if (value.is_string() && value.get<std::string>().find('\n') != std::string::npos) {
    out += StrCat(indent, key, ":\n", Indented(Scalar(value), indent + "  | "));
  } else {
    std::string label = key + ":";
    label.resize(std::max<size_t>(label.size() + 1, 26 - std::min<size_t>(indent.size(), 20)), ' ');
    out += StrCat(indent, label, value.is_object() ? "-" : Scalar(value), "\n");
  }
}

void Render(const Json& value, const std::string& indent, bool colours, std::string& out) {
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) RenderEntry(Printable(key), item, indent, colours, out);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) RenderEntry(StrCat("- ", i + 1), value[i], indent, colours, out);
  } else {
    out += indent + Scalar(value) + "\n";
  }
}

}  // namespace

std::string RenderReport(std::string_view json, bool colours) {
  const Json value = Json::parse(json, nullptr, false);
  if (value.is_discarded()) return Printable(json) + "\n";
  std::string out;
  Render(value, "", colours, out);
  return out;
}

std::string OneLineJson(std::string_view json) {
  Json value = Json::parse(json, nullptr, false);
  if (value.is_discarded()) value = std::string(json);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string LevelsInWords(std::string_view recompute) {
  constexpr std::string_view kApart = " apart";
  const bool apart = recompute.ends_with(kApart);
  std::string_view rest = recompute.substr(0, recompute.size() - (apart ? kApart.size() : 0));
  std::vector<std::pair<std::string, int64_t>> counts;  // by kind, in order of appearance
  while (!rest.empty()) {
    const std::string_view run = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(run.size() + 1, rest.size()));
    const size_t colon = run.find(':');
    int64_t count = 0;
    if (colon == std::string_view::npos ||
        std::from_chars(run.data() + colon + 1, run.data() + run.size(), count).ec != std::errc()) {
      return std::string(recompute);
    }
    const std::string kind(run.substr(0, colon));
    const auto known =
        std::find_if(counts.begin(), counts.end(), [&](const auto& entry) { return entry.first == kind; });
    if (known == counts.end()) {
      counts.emplace_back(kind, count);
    } else {
      known->second += count;
    }
  }
  std::string text;
  for (const auto& [kind, count] : counts) {
    text += text.empty() ? StrCat(kind, " on ", count, count == 1 ? " layer" : " layers")
                         : StrCat(", ", kind, " on ", count);
  }
  return apart ? text + ", weights decoded for each use" : text;
}

}  // namespace hone
