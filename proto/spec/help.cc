// Help from descriptors: `hone spec [FIELD]` and the reference page.
#include "proto/base/status.h"
#include "proto/spec/field.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

const Descriptor& Root() { return *v1::JobSpec::descriptor(); }

std::string TypeName(const FieldDescriptor& field) {
  std::string name;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      name = "text";
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      name = "true or false";
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      name = "choice";
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      name = "number";
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "mapping";
    default:
      name = InfoOf(field).size() ? "size" : "whole number";
  }
  return field.is_repeated() ? StrCat("list of ", name, "s") : name;
}

std::string DefaultText(const FieldDescriptor& field) {
  const v1::FieldInfo info = InfoOf(field);
  if (info.required()) return "required";
  if (!info.default_value().empty()) return info.default_value();
  return info.default_note();
}

std::string RangeText(const v1::FieldInfo& info) {
  const std::string unit = info.unit().empty() || info.size() ? "" : StrCat(" ", info.unit());
  if (info.has_minimum() && info.has_maximum() && info.minimum() == info.maximum()) return StrCat(info.minimum());
  std::string text;
  if (info.has_minimum()) text = StrCat(info.exclusive_minimum() ? "above " : "at least ", info.minimum());
  if (info.has_maximum()) {
    text += StrCat(text.empty() ? "" : ", ", info.exclusive_maximum() ? "below " : "at most ", info.maximum());
  }
  return text.empty() ? info.unit() : text + unit;
}

std::string SizeNote(const v1::FieldInfo& info) {
  return info.size() ? "bytes, or with KiB, MiB, GiB, KB, MB, GB" : "";
}

// --- `hone spec`

void OutlineMessage(const Descriptor& type, const std::string& indent, std::string& out) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    std::string line = StrCat(indent, field.name(), ":");
    if (field.message_type() == nullptr) {
      if (const std::string text = DefaultText(field); !text.empty()) line += StrCat(" ", text);
    }
    line.resize(std::max<size_t>(line.size() + 2, 44), ' ');
    out += StrCat(line, "# ", InfoOf(field).help(), "\n");
    if (field.message_type() != nullptr) OutlineMessage(*field.message_type(), indent + "  ", out);
  }
}

std::string FieldHelp(const FieldDescriptor& field, const std::string& path) {
  const v1::FieldInfo info = InfoOf(field);
  std::string out = StrCat(path, "  (", TypeName(field), ")\n  ", info.help(), "\n");
  const auto add = [&out](std::string_view label, const std::string& text) {
    if (!text.empty()) out += StrCat("  ", label, ": ", text, "\n");
  };
  if (info.required() && field.message_type() == nullptr) {
    out += "  required\n";
  } else if (field.message_type() == nullptr) {
    add("default", DefaultText(field));
  }
  add("range", RangeText(info));
  add("written as", SizeNote(info));
  for (const std::string& example : info.examples()) add("example", example);
  if (field.enum_type() != nullptr) {
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      const EnumValueDescriptor& value = *field.enum_type()->value(i);
      if (value.number() == 0) continue;
      add(ShortEnumName(value), value.options().GetExtension(v1::value).help());
    }
  }
  if (field.message_type() != nullptr) OutlineMessage(*field.message_type(), "    ", out);
  return out;
}

// --- The reference page

std::string Cell(std::string text) {
  std::string cell;
  for (char c : text) cell += c == '|' ? "\\|" : std::string(1, c);
  return cell;
}

std::string ValuesCell(const FieldDescriptor& field) {
  const v1::FieldInfo info = InfoOf(field);
  if (field.enum_type() == nullptr) {
    const std::string range = RangeText(info);
    std::string text = range.empty() ? TypeName(field) : StrCat(TypeName(field), ", ", range);
    if (info.size()) text += StrCat(" (", SizeNote(info), ")");
    return text;
  }
  std::string text;
  for (int i = 0; i < field.enum_type()->value_count(); ++i) {
    const EnumValueDescriptor& value = *field.enum_type()->value(i);
    if (value.number() == 0) continue;
    text += StrCat(text.empty() ? "" : "<br>", "`", ShortEnumName(value),
                   "`: ", value.options().GetExtension(v1::value).help());
  }
  return text;
}

std::string DefaultCell(const FieldDescriptor& field) {
  const v1::FieldInfo info = InfoOf(field);
  if (info.required()) return "**required**";
  if (!info.default_value().empty()) return StrCat("`", info.default_value(), "`");
  return info.default_note();
}

void MarkdownMessage(const Descriptor& type, const std::string& path, std::string& out) {
  std::string rows;
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.message_type() != nullptr) continue;
    const v1::FieldInfo info = InfoOf(field);
    std::string help = info.help();
    for (const std::string& example : info.examples()) help += StrCat(" Example: `", example, "`.");
    rows += StrCat("| `", JoinPath(path, field.name()), "` | ", Cell(DefaultCell(field)), " | ",
                   Cell(ValuesCell(field)), " | ", Cell(help), " |\n");
  }
  if (!rows.empty()) out += StrCat("\n| field | default | values | what it does |\n|---|---|---|---|\n", rows);
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.message_type() == nullptr) continue;
    const std::string here = JoinPath(path, field.name());
    const std::string note = InfoOf(field).default_note();
    out += StrCat("\n", path.empty() ? "## " : "### ", here, "\n\n", InfoOf(field).help(),
                  note.empty() ? "" : StrCat(" Default: ", note, "."), "\n");
    if (field.message_type()->real_oneof_decl_count() > 0) out += "\nExactly one of:\n";
    MarkdownMessage(*field.message_type(), here, out);
  }
}

}  // namespace

absl::StatusOr<std::string> SpecHelp(std::string_view field_path) {
  if (field_path.empty()) {
    std::string out = "# Every field of a job file with its default. `hone spec FIELD` says more.\n";
    OutlineMessage(Root(), "", out);
    return out;
  }
  const Descriptor* type = &Root();
  std::string walked;
  std::string_view rest = field_path;
  while (true) {
    const size_t dot = rest.find('.');
    const std::string name(rest.substr(0, dot));
    if (type == nullptr) return FieldError(walked, "has no fields below it");
    const FieldDescriptor* field = type->FindFieldByName(name);
    walked = JoinPath(walked, name);
    if (field == nullptr) return FieldError(walked, UnknownFieldMessage(*type, name));
    if (dot == std::string_view::npos) return FieldHelp(*field, walked);
    type = field->message_type();
    rest.remove_prefix(dot + 1);
  }
}

std::string SpecReferenceMarkdown() {
  std::string out =
      "# The job file\n\n"
      "Generated from `proto/hone/v1/spec.proto` by `hone spec --markdown`; a test keeps it current.\n\n"
      "A job file is YAML or JSON. `hone submit job.yaml --set optimizer.learning_rate=5e-5` changes one field of it.\n"
      "Sizes take KiB, MiB, GiB, KB, MB or GB. What is not written has the default below.\n";
  MarkdownMessage(Root(), "", out);
  return out;
}

}  // namespace hone
