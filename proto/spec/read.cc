// Tree -> message, guided by descriptors: SpecFromYaml, SpecFromJson, SetField, positions.
#include <algorithm>
#include <utility>

#include "proto/base/status.h"
#include "proto/spec/field.h"
#include "proto/spec/node.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

constexpr size_t kMaxListItems = 1024;

class Reader {
 public:
  Reader(std::string_view file_name, SpecPositions* positions) : file_name_(file_name), positions_(positions) {}

  absl::Status ReadMessage(const Node& node, Message& message, const std::string& path) {
    const Descriptor& type = *message.GetDescriptor();
    if (node.kind != Node::Kind::kMap) return Fail(node, path, ExpectedMapping(node, type));
    for (size_t i = 0; i < node.entries.size(); ++i) {
      const Node::Entry& entry = node.entries[i];
      const std::string here = JoinPath(path, entry.key);
      const FieldDescriptor* field = type.FindFieldByName(entry.key);
      if (field == nullptr) {
        return Fail(entry.line, entry.column, Printable(here), UnknownFieldMessage(type, entry.key));
      }
      HONE_RETURN_IF_ERROR(CheckDuplicate(node, i, here));
      const Node& value = *entry.value;
      if (positions_ != nullptr) {
        const bool placed = value.line > 0 && value.kind != Node::Kind::kNull;
        positions_->fields[here] = placed ? std::pair(value.line, value.column) : std::pair(entry.line, entry.column);
      }
      HONE_RETURN_IF_ERROR(ReadField(value, message, *field, here));
    }
    return absl::OkStatus();
  }

  absl::Status ReadField(const Node& node, Message& message, const FieldDescriptor& field, const std::string& path) {
    if (field.real_containing_oneof() != nullptr) HONE_RETURN_IF_ERROR(CheckOneof(node, message, field, path));
    if (field.is_repeated()) return ReadList(node, message, field, path);
    if (field.message_type() != nullptr) {
      if (node.kind == Node::Kind::kNull) {
        // `sft:` alone chooses it; `memory:` alone says nothing.
        if (field.real_containing_oneof() != nullptr) message.GetReflection()->MutableMessage(&message, &field);
        return absl::OkStatus();
      }
      return ReadMessage(node, *message.GetReflection()->MutableMessage(&message, &field), path);
    }
    if (node.kind == Node::Kind::kNull) return absl::OkStatus();
    return ReadScalar(node, message, field, path);
  }

  absl::Status Fail(const Node& node, const std::string& path, std::string_view message) const {
    return Fail(node.line, node.column, path, message);
  }

 private:
  absl::Status Fail(int line, int column, const std::string& path, std::string_view message) const {
    absl::Status status = FieldError(path, message);
    if (file_name_.empty()) return status;
    return Annotate(status, line > 0 ? StrCat(file_name_, ":", line, ":", column) : std::string(file_name_));
  }

  static std::string Printable(const std::string& path) {
    const std::string quoted = Quoted(path);
    return quoted == StrCat("`", path, "`") ? path : quoted;
  }

  absl::Status CheckDuplicate(const Node& node, size_t index, const std::string& path) const {
    const Node::Entry& entry = node.entries[index];
    for (size_t i = 0; i < index; ++i) {
      if (node.entries[i].key != entry.key) continue;
      return Fail(entry.line, entry.column, path, StrCat("given twice; first on line ", node.entries[i].line));
    }
    return absl::OkStatus();
  }

  absl::Status CheckOneof(const Node& node, const Message& message, const FieldDescriptor& field,
                          const std::string& path) const {
    const FieldDescriptor* other =
        message.GetReflection()->GetOneofFieldDescriptor(message, field.real_containing_oneof());
    if (other == nullptr || other == &field) return absl::OkStatus();
    return Fail(node, path, StrCat("only one of ", other->name(), " and ", field.name(), " can be given"));
  }

  absl::Status ReadList(const Node& node, Message& message, const FieldDescriptor& field, const std::string& path) {
    if (node.kind == Node::Kind::kNull) return absl::OkStatus();
    if (node.kind == Node::Kind::kScalar && field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      return ReadScalar(node, message, field, path);  // `export: peft`
    }
    if (node.kind != Node::Kind::kList) {
      const v1::FieldInfo info = InfoOf(field);
      const std::string example = info.examples_size() > 0 ? info.examples(0) : info.default_value();
      return Fail(node, path, StrCat("expected a list", example.empty() ? "" : StrCat(", such as ", example)));
    }
    if (node.items.empty()) return Fail(node, path, "an empty list; leave the field out to get its default");
    if (node.items.size() > kMaxListItems) return Fail(node, path, StrCat("more than ", kMaxListItems, " items"));
    for (size_t i = 0; i < node.items.size(); ++i) {
      const Node& item = *node.items[i];
      const std::string here = StrCat(path, "[", i, "]");
      if (item.kind == Node::Kind::kNull)
        return Fail(item, here, StrCat("expected ", Expectation(field), ", got nothing"));
      HONE_RETURN_IF_ERROR(ReadScalar(item, message, field, here));
    }
    return absl::OkStatus();
  }

  absl::Status ReadScalar(const Node& node, Message& message, const FieldDescriptor& field, const std::string& path) {
    if (node.kind != Node::Kind::kScalar) {
      const std::string_view got = node.kind == Node::Kind::kList ? "a list" : "a mapping";
      return Fail(node, path, StrCat("expected ", Expectation(field), ", got ", got));
    }
    if (std::optional<std::string> problem = SetScalarFromText(message, field, node.text)) {
      return Fail(node, path, *problem);
    }
    return absl::OkStatus();
  }

  static std::string ExpectedMapping(const Node& node, const Descriptor& type) {
    std::string message = "expected a mapping of fields";
    if (type.real_oneof_decl_count() == 1) {
      const auto& choice = *type.oneof_decl(0);
      const FieldDescriptor* meant = choice.field(0);
      for (int i = 0; i < choice.field_count(); ++i) {
        if (node.kind == Node::Kind::kScalar && choice.field(i)->name() == node.text) meant = choice.field(i);
      }
      message += StrCat(", such as {", meant->name(), ": {}}");
    } else if (type.field_count() > 0) {
      message += StrCat(", such as {", type.field(0)->name(), ": ...}");
    }
    if (node.kind == Node::Kind::kList) return message + ", got a list";
    return node.kind == Node::Kind::kScalar ? StrCat(message, ", got ", Quoted(node.text)) : message + ", got nothing";
  }

  std::string_view file_name_;
  SpecPositions* positions_;
};

absl::StatusOr<v1::JobSpec> ReadSpec(const Node& root, std::string_view file_name, SpecPositions* positions) {
  if (positions != nullptr) positions->file_name = std::string(file_name);
  if (root.kind == Node::Kind::kNull) {
    return InvalidArgument(file_name, ": empty; a job needs at least model, objective, data, batch and optimizer");
  }
  v1::JobSpec spec;
  HONE_RETURN_IF_ERROR(Reader(file_name, positions).ReadMessage(root, spec, ""));
  return spec;
}

// "a, b" and "[a, b]" alike: what a shell user types for a list.
std::string AsFlowList(std::string_view value) {
  const size_t start = value.find_first_not_of(' ');
  if (start != std::string_view::npos && value[start] == '[') return std::string(value);
  return StrCat("[", value, "]");
}

// Follows `path` from the spec to the message that holds its last field.
struct Target {
  Message* message;
  const FieldDescriptor* field;
};
absl::StatusOr<Target> FindTarget(v1::JobSpec& spec, std::string_view path) {
  Message* message = &spec;
  std::string walked;
  while (true) {
    const size_t dot = path.find('.');
    const std::string name(path.substr(0, dot));
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
    walked = JoinPath(walked, name);
    if (field == nullptr) return FieldError(walked, UnknownFieldMessage(*message->GetDescriptor(), name));
    if (dot == std::string_view::npos) return Target{message, field};
    if (field->message_type() == nullptr) return FieldError(walked, "has no fields below it");
    if (const auto* choice = field->real_containing_oneof()) {
      const FieldDescriptor* other = message->GetReflection()->GetOneofFieldDescriptor(*message, choice);
      if (other != nullptr && other != field) {
        const std::string parent = walked.substr(0, walked.rfind('.'));
        return FieldError(walked, StrCat("the job has ", parent, ".", other->name(), "; change that with --set ",
                                         parent, "={", name, ": {}} first"));
      }
    }
    message = message->GetReflection()->MutableMessage(message, field);
    path.remove_prefix(dot + 1);
  }
}

}  // namespace

absl::Status FieldError(std::string_view path, std::string_view message) {
  if (path.empty()) return InvalidArgument(message);
  absl::Status status = InvalidArgument(path, ": ", message);
  status.SetPayload(ToAbsl(kFieldPayload), absl::Cord(ToAbsl(path)));
  return status;
}

std::string FieldOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(ToAbsl(kFieldPayload));
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status SpecPositions::Locate(const absl::Status& status) const {
  if (status.ok() || file_name.empty()) return status;
  const std::string_view message = ToStd(status.message());
  if (message.substr(0, file_name.size()) == file_name) return status;
  std::string path = FieldOf(status);
  while (!path.empty()) {
    const auto found = fields.find(path);
    if (found != fields.end() && found->second.first > 0) {
      return Annotate(status, StrCat(file_name, ":", found->second.first, ":", found->second.second));
    }
    const size_t cut = path.find_last_of(".[");
    path.resize(cut == std::string::npos ? 0 : cut);
  }
  return Annotate(status, file_name);
}

absl::StatusOr<v1::JobSpec> SpecFromYaml(std::string_view yaml, std::string_view file_name, SpecPositions* positions) {
  absl::StatusOr<NodePtr> root = NodeFromYaml(yaml, file_name);
  if (root.ok()) return ReadSpec(**root, file_name, positions);
  // JSON's surrogate pairs are the one thing that YAML's quotes lack.
  const size_t start = yaml.find_first_not_of(" \t\r\n");
  if (start != std::string_view::npos && yaml[start] == '{') {
    absl::StatusOr<NodePtr> json = NodeFromJson(yaml, file_name);
    if (json.ok()) return ReadSpec(**json, file_name, positions);
  }
  return root.status();
}

absl::StatusOr<v1::JobSpec> SpecFromJson(std::string_view json, std::string_view file_name) {
  HONE_ASSIGN_OR_RETURN(const NodePtr root, NodeFromJson(json, file_name));
  return ReadSpec(*root, file_name, nullptr);
}

absl::Status SetField(v1::JobSpec& spec, std::string_view path_equals_value) {
  const size_t equals = path_equals_value.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    return InvalidArgument("expected field=value, such as optimizer.learning_rate=5e-5, got ",
                           Quoted(path_equals_value));
  }
  const std::string path(path_equals_value.substr(0, equals));
  const std::string_view value = path_equals_value.substr(equals + 1);
  v1::JobSpec changed = spec;  // a failed set changes nothing
  HONE_ASSIGN_OR_RETURN(const Target target, FindTarget(changed, path));
  const FieldDescriptor& field = *target.field;
  Node node;
  if (value.empty() || value == "null" || value == "~") {
    target.message->GetReflection()->ClearField(target.message, &field);
    spec = std::move(changed);
    return absl::OkStatus();
  }
  const bool text_is_value = !field.is_repeated() && field.message_type() == nullptr;
  if (text_is_value) {
    node.kind = Node::Kind::kScalar;
    node.text = std::string(value);
  } else {
    absl::StatusOr<NodePtr> parsed = NodeFromYaml(field.is_repeated() ? AsFlowList(value) : std::string(value), path);
    if (!parsed.ok()) return FieldError(path, StrCat("not readable as YAML: ", parsed.status().message()));
    node = **parsed;
    target.message->GetReflection()->ClearField(target.message, &field);
    if (const auto* choice = field.real_containing_oneof()) {
      target.message->GetReflection()->ClearOneof(target.message, choice);
    }
  }
  HONE_RETURN_IF_ERROR(Reader("", nullptr).ReadField(node, *target.message, field, path));
  spec = std::move(changed);
  return absl::OkStatus();
}

}  // namespace hone
