// A JSON value together with its path, for readers whose errors name the place: "tokenizer.json: model.vocab: expected
// an object, found a string". Private to this room.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string path, std::string_view file)
      : value_(&value), path_(std::move(path)), file_(file) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool is_null() const { return value_->is_null(); }

  // InvalidArgument or Unimplemented, beginning with file and path.
  absl::Status Error(std::string_view what) const;
  absl::Status NotImplemented(std::string_view what) const;
  absl::Status Expected(std::string_view type) const;  // "expected an object, found a string"

  absl::Status CheckObject() const;
  absl::Status CheckArray() const;
  // Refuses keys that are not listed.
  absl::Status CheckKeys(std::initializer_list<std::string_view> known) const;
  // A member that must be there. An absent one and null are the same to the second form: nullopt.
  absl::StatusOr<JsonNode> Member(std::string_view key) const;
  absl::StatusOr<std::optional<JsonNode>> OptionalMember(std::string_view key) const;
  JsonNode Element(size_t index) const;

  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Integer(int64_t low, int64_t high) const;
  // Of a member; `fallback` where it is absent or null, an error where there is none.
  absl::StatusOr<std::string> StringMember(std::string_view key,
                                           std::optional<std::string> fallback = std::nullopt) const;
  absl::StatusOr<bool> BoolMember(std::string_view key, std::optional<bool> fallback = std::nullopt) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
  std::string_view file_;
};

}  // namespace hone
