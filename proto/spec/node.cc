#include "proto/spec/node.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Thrown through yaml-cpp by the handler and caught in NodeFromYaml, the only way to stop its parser.
class Refused : public std::runtime_error {
 public:
  Refused(const YAML::Mark& mark, const std::string& message)
      : std::runtime_error(message), line(mark.line + 1), column(mark.column + 1) {}
  int line;
  int column;
};

class TreeBuilder : public YAML::EventHandler {
 public:
  NodePtr root() const { return root_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_ != nullptr) throw Refused(mark, "a second document; a job file holds one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Place(mark, anchor, std::make_shared<Node>(Make(mark, Node::Kind::kNull)));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto known = anchors_.find(anchor);
    if (known == anchors_.end()) throw Refused(mark, "an alias inside its own anchor");
    Attach(mark, known->second);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    CheckTag(mark, tag);
    auto node = std::make_shared<Node>(Make(mark, Node::Kind::kScalar));
    node->text = value;
    Place(mark, anchor, std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, Node::Kind::kList);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, Node::Kind::kMap);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    std::shared_ptr<Node> node;
    YAML::anchor_t anchor = 0;
    YAML::Mark mark;
    bool has_key = false;
    Node::Entry pending;
  };

  static Node Make(const YAML::Mark& mark, Node::Kind kind) {
    Node node;
    node.kind = kind;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    return node;
  }
  static void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    static constexpr std::string_view kHarmless[] = {"", "?", "!"};
    for (std::string_view harmless : kHarmless) {
      if (tag == harmless) return;
    }
    if (tag.rfind("tag:yaml.org,2002:", 0) == 0 && tag.find('/') == std::string::npos) return;
    throw Refused(mark, "tags are not supported in a job file");
  }
  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Node::Kind kind) {
    CheckTag(mark, tag);
    if (frames_.size() >= static_cast<size_t>(kMaxSpecDepth)) {
      throw Refused(mark, StrCat("nested deeper than ", kMaxSpecDepth, " levels"));
    }
    Frame frame;
    frame.node = std::make_shared<Node>(Make(mark, kind));
    frame.anchor = anchor;
    frame.mark = mark;
    frames_.push_back(std::move(frame));
  }
  void Close() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    Place(frame.mark, frame.anchor, std::move(frame.node));
  }
  void Place(const YAML::Mark& mark, YAML::anchor_t anchor, std::shared_ptr<Node> node) {
    NodePtr done = std::move(node);
    if (anchor != 0) anchors_[anchor] = done;
    Attach(mark, std::move(done));
  }
  // Hangs a finished node under the innermost open one. Sizes are checked here, so an alias bomb stops at once.
  void Attach(const YAML::Mark& mark, NodePtr node) {
    if (frames_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = frames_.back();
    Node& parent = *frame.node;
    if (parent.kind == Node::Kind::kMap && !frame.has_key) {
      if (node->kind != Node::Kind::kScalar) throw Refused(mark, "a key must be a plain name");
      frame.pending = {node->text, mark.line + 1, mark.column + 1, nullptr};
      frame.has_key = true;
      return;
    }
    parent.size += node->size;
    parent.depth = std::max(parent.depth, node->depth + 1);
    if (parent.size > kMaxSpecNodes) throw Refused(mark, StrCat("more than ", kMaxSpecNodes, " values"));
    if (parent.depth > kMaxSpecDepth) throw Refused(mark, StrCat("nested deeper than ", kMaxSpecDepth, " levels"));
    if (parent.kind == Node::Kind::kList) {
      parent.items.push_back(std::move(node));
      return;
    }
    frame.pending.value = std::move(node);
    parent.entries.push_back(std::move(frame.pending));
    frame.has_key = false;
  }

  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, NodePtr> anchors_;
  NodePtr root_;
};

absl::Status TooLarge(std::string_view file_name, size_t bytes) {
  return InvalidArgument(file_name, ": ", bytes, " bytes; a job file has at most ", kMaxSpecBytes);
}

// Brackets opened and not closed, outside quotes as far as that can be told cheaply. yaml-cpp's own guard is too deep
// for small stacks, so absurd nesting is refused before it sees the text.
bool AbsurdlyNested(std::string_view text) {
  int depth = 0;
  for (char c : text) {
    if (c == '[' || c == '{') {
      if (++depth > 1000) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

absl::StatusOr<NodePtr> FromJsonValue(const nlohmann::json& value) {
  auto node = std::make_shared<Node>();
  if (value.is_null()) return NodePtr(node);
  if (value.is_array()) {
    node->kind = Node::Kind::kList;
    for (const auto& item : value) {
      HONE_ASSIGN_OR_RETURN(NodePtr child, FromJsonValue(item));
      node->size += child->size;
      node->items.push_back(std::move(child));
    }
  } else if (value.is_object()) {
    node->kind = Node::Kind::kMap;
    for (const auto& [key, item] : value.items()) {
      HONE_ASSIGN_OR_RETURN(NodePtr child, FromJsonValue(item));
      node->size += child->size;
      node->entries.push_back({key, 0, 0, std::move(child)});
    }
  } else {
    node->kind = Node::Kind::kScalar;
    if (value.is_string()) {
      node->text = value.get<std::string>();
    } else if (value.is_boolean()) {
      node->text = value.get<bool>() ? "true" : "false";
    } else if (value.is_number_float()) {
      node->text = StrCat(value.get<double>());
    } else {
      node->text = value.dump();
    }
  }
  if (node->size > kMaxSpecNodes) return InvalidArgument("more than ", kMaxSpecNodes, " values");
  return NodePtr(node);
}

}  // namespace

absl::StatusOr<NodePtr> NodeFromYaml(std::string_view text, std::string_view file_name) {
  if (text.size() > kMaxSpecBytes) return TooLarge(file_name, text.size());
  size_t offset = 0;
  if (!IsValidUtf8(text, &offset)) return InvalidArgument(file_name, ": not valid UTF-8 at byte ", offset);
  // yaml-cpp takes a NUL for the end of the text; what stands behind it would be ignored silently.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return InvalidArgument(file_name, ": a NUL character at byte ", nul);
  }
  if (AbsurdlyNested(text)) return InvalidArgument(file_name, ": nested deeper than ", kMaxSpecDepth, " levels");
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder;
    while (parser.HandleNextDocument(builder)) {
    }
    if (builder.root() == nullptr) return NodePtr(std::make_shared<Node>());
    return builder.root();
  } catch (const Refused& refused) {
    return InvalidArgument(file_name, ":", refused.line, ":", refused.column, ": ", refused.what());
  } catch (const YAML::Exception& error) {
    return InvalidArgument(file_name, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg);
  } catch (const std::exception& error) {
    return InvalidArgument(file_name, ": not readable as YAML: ", error.what());
  }
}

absl::StatusOr<NodePtr> NodeFromJson(std::string_view text, std::string_view file_name) {
  if (text.size() > kMaxSpecBytes) return TooLarge(file_name, text.size());
  absl::StatusOr<nlohmann::json> value = ParseJson(text, {.max_bytes = kMaxSpecBytes, .max_depth = kMaxSpecDepth});
  if (!value.ok()) return Annotate(value.status(), file_name);
  absl::StatusOr<NodePtr> node = FromJsonValue(*value);
  if (!node.ok()) return Annotate(node.status(), file_name);
  return node;
}

}  // namespace hone
