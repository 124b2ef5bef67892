#include "proto/spec/message_json.h"

#include <cmath>
#include <ctime>
#include <vector>

#include "google/protobuf/timestamp.pb.h"
#include "nlohmann/json.hpp"
#include "proto/base/status.h"
#include "proto/spec/field.h"

namespace hone {
namespace {

using Json = nlohmann::ordered_json;

Json MessageValue(const Message& message);

std::string Rfc3339(int64_t seconds, int32_t nanos) {
  const std::time_t time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  if (gmtime_r(&time, &parts) == nullptr) return StrCat(seconds);
  char text[64];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  char fraction[16];
  std::snprintf(fraction, sizeof fraction, ".%03dZ", nanos / 1000000);
  return std::string(text, length) + fraction;
}

Json NumberValue(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

Json BytesValue(const std::string& bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string hex;
  for (unsigned char c : bytes) {
    hex.push_back(kHex[c >> 4]);
    hex.push_back(kHex[c & 15]);
  }
  return hex;
}

Json FieldValue(const Message& message, const FieldDescriptor& field, int index) {
  const google::protobuf::Reflection& r = *message.GetReflection();
  const bool one = index < 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageValue(one ? r.GetMessage(message, &field) : r.GetRepeatedMessage(message, &field, index));
    case FieldDescriptor::CPPTYPE_BOOL:
      return one ? r.GetBool(message, &field) : r.GetRepeatedBool(message, &field, index);
    case FieldDescriptor::CPPTYPE_ENUM:
      return ShortEnumName(*(one ? r.GetEnum(message, &field) : r.GetRepeatedEnum(message, &field, index)));
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = one ? r.GetString(message, &field) : r.GetRepeatedString(message, &field, index);
      return field.type() == FieldDescriptor::TYPE_BYTES ? BytesValue(text) : Json(text);
    }
    case FieldDescriptor::CPPTYPE_INT32:
      return one ? r.GetInt32(message, &field) : r.GetRepeatedInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return one ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return one ? r.GetUInt32(message, &field) : r.GetRepeatedUInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return one ? r.GetUInt64(message, &field) : r.GetRepeatedUInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberValue(one ? r.GetDouble(message, &field) : r.GetRepeatedDouble(message, &field, index));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return NumberValue(one ? r.GetFloat(message, &field) : r.GetRepeatedFloat(message, &field, index));
  }
  return nullptr;
}

Json MapValue(const Message& message, const FieldDescriptor& field) {
  const google::protobuf::Reflection& r = *message.GetReflection();
  const FieldDescriptor& key = *field.message_type()->map_key();
  const FieldDescriptor& value = *field.message_type()->map_value();
  std::map<std::string, Json> sorted;
  for (int i = 0; i < r.FieldSize(message, &field); ++i) {
    const Message& entry = r.GetRepeatedMessage(message, &field, i);
    const Json name = FieldValue(entry, key, -1);
    sorted[name.is_string() ? name.get<std::string>() : name.dump()] = FieldValue(entry, value, -1);
  }
  Json object = Json::object();
  for (auto& [name, item] : sorted) object[name] = std::move(item);
  return object;
}

Json MessageValue(const Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  if (type.full_name() == "google.protobuf.Timestamp") {
    const auto& stamp = static_cast<const google::protobuf::Timestamp&>(message);
    return Rfc3339(stamp.seconds(), stamp.nanos());
  }
  const google::protobuf::Reflection& r = *message.GetReflection();
  // In the spec an empty list means "not set", as everywhere in it: what is not set is not shown.
  const bool only_set = type.file()->name() == "hone/v1/spec.proto";
  Json object = Json::object();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.is_repeated()) {
      const int size = r.FieldSize(message, &field);
      if (size == 0 && only_set) continue;
      if (field.is_map()) {
        object[field.name()] = MapValue(message, field);
        continue;
      }
      Json list = Json::array();
      for (int k = 0; k < size; ++k) list.push_back(FieldValue(message, field, k));
      object[field.name()] = std::move(list);
    } else if (!field.has_presence() || r.HasField(message, &field)) {
      object[field.name()] = FieldValue(message, field, -1);
    }
  }
  return object;
}

}  // namespace

std::string MessageToJson(const Message& message, bool pretty) {
  return MessageValue(message).dump(pretty ? 2 : -1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace hone
