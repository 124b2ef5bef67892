#include "client/report.h"

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

void Render(const Json& value, const std::string& indent, std::string& out);

void RenderEntry(const std::string& key, const Json& value, const std::string& indent, std::string& out) {
  if (value.is_object() && !value.empty()) {
    out += StrCat(indent, key, ":\n");
    Render(value, indent + "  ", out);
  } else if (value.is_array() && IsFlat(value)) {
    std::string line;
    for (const Json& item : value) line += StrCat(line.empty() ? "" : ", ", Scalar(item));
    if (line.size() > kShortList)
      line = StrCat(line.substr(0, line.rfind(',', kShortList)), ", ... (", value.size(), ")");
    out += StrCat(indent, key, ": ", line, "\n");
  } else if (value.is_array()) {
    out += StrCat(indent, key, ":\n");
    Render(value, indent + "  ", out);
  } else if (value.is_string() && value.get<std::string>().find('\n') != std::string::npos) {
    out += StrCat(indent, key, ":\n");
    std::string text = indent + "  | " + Scalar(value);
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1))
      text.insert(at + 1, indent + "  | ");
    out += text + "\n";
  } else {
    std::string label = key + ":";
    label.resize(std::max<size_t>(label.size() + 1, 26 - std::min<size_t>(indent.size(), 20)), ' ');
    out += StrCat(indent, label, value.is_object() ? "-" : Scalar(value), "\n");
  }
}

void Render(const Json& value, const std::string& indent, std::string& out) {
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) RenderEntry(Printable(key), item, indent, out);
  } else if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) RenderEntry(StrCat("- ", i + 1), value[i], indent, out);
  } else {
    out += indent + Scalar(value) + "\n";
  }
}

}  // namespace

std::string RenderReport(std::string_view json) {
  const Json value = Json::parse(json, nullptr, false);
  if (value.is_discarded()) return Printable(json) + "\n";
  std::string out;
  Render(value, "", out);
  return out;
}

std::string OneLineJson(std::string_view json) {
  Json value = Json::parse(json, nullptr, false);
  if (value.is_discarded()) value = std::string(json);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace hone
