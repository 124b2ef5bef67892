// What the descriptors say about one field of the spec, and text <-> scalar for it. Internal to proto/spec.
// Not here: walking messages (read.cc, write.cc, resolve.cc).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "hone/v1/options.pb.h"

namespace hone {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

v1::FieldInfo InfoOf(const FieldDescriptor& field);
std::string JoinPath(std::string_view parent, std::string_view name);

// PRECISION_BF16 -> "bf16"; a value that does not carry its enum's prefix keeps its name.
std::string ShortEnumName(const EnumValueDescriptor& value);
// By short or full name; never the unspecified value.
const EnumValueDescriptor* FindEnumValue(const EnumDescriptor& type, std::string_view name);
std::vector<std::string> EnumNames(const EnumDescriptor& type);

// Edits (insert, delete, replace, swap of neighbours) between two words.
size_t EditDistance(std::string_view a, std::string_view b);
// The nearest candidate, or "" if none is near enough to be meant.
std::string Closest(std::string_view word, const std::vector<std::string>& candidates);
// "unknown field; did you mean learning_rate?" for a name that `type` does not have.
std::string UnknownFieldMessage(const Descriptor& type, std::string_view name);

// "a number", "a whole number, 0 or more", "one of adamw", "a size such as 20GiB", ...
std::string Expectation(const FieldDescriptor& field);

std::optional<double> ParseDouble(std::string_view text);
std::optional<uint64_t> ParseUnsigned(std::string_view text);
// "20GiB", "1.5 MB", "4096": whole bytes.
std::optional<uint64_t> ParseSize(std::string_view text);

// What is wrong with the value by the field's own options; nullopt if nothing.
std::optional<std::string> RangeProblem(const v1::FieldInfo& info, double value);
// Not UTF-8, a NUL byte, too long.
std::optional<std::string> StringProblem(std::string_view value);

// Parses `text` and sets the field (adds to it, if repeated). Returns what is wrong, ranges included; nullopt on
// success.
std::optional<std::string> SetScalarFromText(Message& message, const FieldDescriptor& field, std::string_view text);

// The scalar as a user would write it: a set singular field, or element `index` of a repeated one (-1: singular).
std::string ScalarToText(const Message& message, const FieldDescriptor& field, int index);
// As double, for numeric fields.
std::optional<double> NumericValue(const Message& message, const FieldDescriptor& field, int index);

// "`bytes`" shortened for a message: control characters escaped, at most 60 bytes.
std::string Quoted(std::string_view text);

}  // namespace hone
