#include "engine/text/json_node.h"

#include "proto/base/status.h"

namespace hone {
namespace {

std::string TypeName(const nlohmann::json& value) {
  switch (value.type()) {
    case nlohmann::json::value_t::null:
      return "null";
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return "an array";
    case nlohmann::json::value_t::string:
      return "a string";
    case nlohmann::json::value_t::boolean:
      return "a boolean";
    default:
      return "a number";
  }
}

}  // namespace

absl::Status JsonNode::Error(std::string_view what) const {
  return InvalidArgument(file_, ": ", path_.empty() ? "" : StrCat(path_, ": "), what);
}

absl::Status JsonNode::NotImplemented(std::string_view what) const {
  return Unimplemented(file_, ": ", path_.empty() ? "" : StrCat(path_, ": "), what);
}

absl::Status JsonNode::Expected(std::string_view type) const {
  return Error(StrCat("expected ", type, ", found ", TypeName(*value_)));
}

absl::Status JsonNode::CheckObject() const { return value_->is_object() ? absl::OkStatus() : Expected("an object"); }
absl::Status JsonNode::CheckArray() const { return value_->is_array() ? absl::OkStatus() : Expected("an array"); }

absl::Status JsonNode::CheckKeys(std::initializer_list<std::string_view> known) const {
  HONE_RETURN_IF_ERROR(CheckObject());
  for (const auto& [key, value] : value_->items()) {
    bool found = false;
    for (std::string_view name : known) found = found || name == key;
    if (!found) return NotImplemented(StrCat("\"", key, "\" is not known"));
  }
  return absl::OkStatus();
}

absl::StatusOr<JsonNode> JsonNode::Member(std::string_view key) const {
  HONE_RETURN_IF_ERROR(CheckObject());
  const auto it = value_->find(std::string(key));
  if (it == value_->end()) return Error(StrCat("\"", key, "\" is missing"));
  return JsonNode(*it, path_.empty() ? std::string(key) : StrCat(path_, ".", key), file_);
}

absl::StatusOr<std::optional<JsonNode>> JsonNode::OptionalMember(std::string_view key) const {
  HONE_RETURN_IF_ERROR(CheckObject());
  const auto it = value_->find(std::string(key));
  if (it == value_->end() || it->is_null()) return std::optional<JsonNode>();
  HONE_ASSIGN_OR_RETURN(JsonNode member, Member(key));
  return std::optional<JsonNode>(std::move(member));
}

JsonNode JsonNode::Element(size_t index) const {
  return JsonNode((*value_)[index], StrCat(path_, "[", index, "]"), file_);
}

absl::StatusOr<std::string> JsonNode::String() const {
  if (!value_->is_string()) return Expected("a string");
  return value_->get<std::string>();
}

absl::StatusOr<bool> JsonNode::Bool() const {
  if (!value_->is_boolean()) return Expected("true or false");
  return value_->get<bool>();
}

absl::StatusOr<int64_t> JsonNode::Integer(int64_t low, int64_t high) const {
  const std::string wanted = StrCat("a whole number from ", low, " to ", high);
  if (!value_->is_number_integer()) return Expected(wanted);
  const bool too_large = value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (too_large || value_->get<int64_t>() < low || value_->get<int64_t>() > high) {
    return Error(StrCat("expected ", wanted, ", found ", value_->dump()));
  }
  return value_->get<int64_t>();
}

absl::StatusOr<std::string> JsonNode::StringMember(std::string_view key, std::optional<std::string> fallback) const {
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> member, OptionalMember(key));
  if (member) return member->String();
  if (fallback) return *std::move(fallback);
  return Error(StrCat("\"", key, "\" is missing"));
}

absl::StatusOr<bool> JsonNode::BoolMember(std::string_view key, std::optional<bool> fallback) const {
  HONE_ASSIGN_OR_RETURN(const std::optional<JsonNode> member, OptionalMember(key));
  if (member) return member->Bool();
  if (fallback) return *fallback;
  return Error(StrCat("\"", key, "\" is missing"));
}

}  // namespace hone
