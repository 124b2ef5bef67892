// Message -> YAML and JSON, in field order, only what is set.
#include <cctype>

#include "nlohmann/json.hpp"
#include "proto/base/status.h"
#include "proto/spec/field.h"
#include "proto/spec/message_json.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

// Plain where every YAML reader takes it for the same text, otherwise double-quoted as JSON does.
std::string YamlText(const std::string& text) {
  static constexpr std::string_view kMarks = "_./-:@+";
  bool plain =
      !text.empty() && text.size() < 200 && (std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '/');
  for (char c : text) {
    plain = plain && (std::isalnum(static_cast<unsigned char>(c)) || kMarks.find(c) != std::string_view::npos);
  }
  if (!text.empty() && text.back() == ':') plain = false;
  static constexpr std::string_view kWords[] = {"null", "true", "false", "yes", "no", "on",
                                                "off",  "y",    "n",     "nan", "inf"};
  for (std::string_view word : kWords) {
    if (text.size() == word.size() && Closest(text, {std::string(word)}) == word) plain = false;
  }
  if (plain) return text;
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string YamlScalar(const Message& message, const FieldDescriptor& field, int index) {
  const std::string text = ScalarToText(message, field, index);
  return field.cpp_type() == FieldDescriptor::CPPTYPE_STRING ? YamlText(text) : text;
}

void WriteMessage(const Message& message, const std::string& indent, std::string& out) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    out += StrCat(indent, field->name(), ":");
    if (field->is_repeated()) {
      std::string list;
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        list += StrCat(i > 0 ? ", " : "", YamlScalar(message, *field, i));
      }
      out += StrCat(" [", list, "]\n");
    } else if (field->message_type() != nullptr) {
      std::string inner;
      WriteMessage(reflection.GetMessage(message, field), indent + "  ", inner);
      out += inner.empty() ? " {}\n" : "\n" + inner;
    } else {
      out += StrCat(" ", YamlScalar(message, *field, -1), "\n");
    }
  }
}

}  // namespace

std::string SpecToYaml(const v1::JobSpec& spec) {
  std::string out;
  WriteMessage(spec, "", out);
  return out.empty() ? "{}\n" : out;
}

std::string SpecToJson(const v1::JobSpec& spec, bool pretty) { return MessageToJson(spec, pretty); }

}  // namespace hone
