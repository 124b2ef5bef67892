#include "engine/data/records.h"

#include <algorithm>
#include <unordered_set>

#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {

namespace {

using Json = nlohmann::ordered_json;

// What nlohmann's callback throws to stop a parse; caught in ParseRow.
struct Refused {
  std::string message;
};

// nlohmann's ordered JSON with our limits: proto/base/json.h sorts keys, and a template shows their order.
absl::StatusOr<Json> ParseOrdered(std::string_view text, int max_depth) {
  std::vector<std::unordered_set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth >= max_depth) throw Refused{StrCat("nested deeper than ", max_depth, " levels")};
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      throw Refused{StrCat("duplicate key ", parsed.dump())};
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Refused& refused) {
    return InvalidArgument("invalid JSON: ", refused.message);
  } catch (const Json::parse_error&
               error) {  // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error ..."
    std::string_view what = error.what();
    if (const size_t cut = what.find(": "); cut != std::string_view::npos) what.remove_prefix(cut + 2);
    return InvalidArgument("invalid JSON at byte ", error.byte == 0 ? 0 : error.byte - 1, " of the row: ", what);
  } catch (const Json::exception& error) {
    return InvalidArgument("invalid JSON: ", error.what());
  }
}

absl::Status CheckMessages(const Json& messages, std::string_view field) {
  if (!messages.is_array() || messages.empty()) {
    return InvalidArgument(field, ": expected a list of messages, at least one, each with 'role' and 'content'");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json& message = messages[i];
    if (!message.is_object()) return InvalidArgument(field, "[", i, "]: expected an object with 'role' and 'content'");
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string())
      return InvalidArgument(field, "[", i, "].role: expected a string such as \"user\"");
    const auto content = message.find("content");
    if (content == message.end()) {
      if (message.contains("tool_calls")) continue;
      return InvalidArgument(field, "[", i, "].content: missing");
    }
    if (!content->is_string() && !content->is_null() && !content->is_array()) {
      return InvalidArgument(field, "[", i, "].content: expected a string, not ", content->type_name());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> TakeString(const Json& value, std::string_view field) {
  if (!value.is_string()) return InvalidArgument(field, ": expected a string, not ", value.type_name());
  return value.get<std::string>();
}

absl::StatusOr<std::vector<int32_t>> TakeIds(const Json& value, std::string_view field) {
  if (!value.is_array()) return InvalidArgument(field, ": expected a list of token ids, not ", value.type_name());
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      return InvalidArgument(field, "[", ids.size(), "]: expected a token id (0 to 2147483647), not ",
                             id.dump().substr(0, 40));
    }
    ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return ids;
}

absl::Status TakeTrained(const Json& value, Row* row) {
  if (!value.is_array()) return InvalidArgument("trained: expected a list of [begin, end]");
  uint64_t last = 0;
  for (const Json& range : value) {
    const std::string where = StrCat("trained[", row->trained.size(), "]: ");
    if (!range.is_array() || range.size() != 2 || !range[0].is_number_unsigned() || !range[1].is_number_unsigned()) {
      return InvalidArgument(where, "expected [begin, end], two indices into ids");
    }
    const uint64_t begin = range[0].get<uint64_t>(), end = range[1].get<uint64_t>();
    if (begin >= end || end > row->ids.size()) {
      return InvalidArgument(where, "[", begin, ", ", end, "] is not a range inside the row's ", row->ids.size(),
                             " ids");
    }
    if (begin < last) return InvalidArgument(where, "ranges must ascend and not overlap");
    row->trained.emplace_back(static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    last = end;
  }
  return absl::OkStatus();
}

absl::Status TakePromptCompletion(const Json& object, Row* row) {
  const Json &prompt = object["prompt"], &completion = object["completion"];
  if (prompt.is_array() || completion.is_array()) {
    HONE_RETURN_IF_ERROR(CheckMessages(prompt, "prompt"));
    HONE_RETURN_IF_ERROR(CheckMessages(completion, "completion"));
    row->kind = RowKind::kPromptCompletionMessages;
    row->messages = prompt;
    row->completion_messages = completion;
    return absl::OkStatus();
  }
  row->kind = RowKind::kPromptCompletionText;
  HONE_ASSIGN_OR_RETURN(row->prompt, TakeString(prompt, "prompt"));
  HONE_ASSIGN_OR_RETURN(row->completion, TakeString(completion, "completion"));
  return absl::OkStatus();
}

absl::Status TakeContent(const Json& object, Row* row) {
  const bool messages = object.contains("messages"), text = object.contains("text"), ids = object.contains("ids");
  const bool pair = object.contains("prompt") && object.contains("completion");
  const bool id_pair = object.contains("prompt_ids") && object.contains("completion_ids");
  if (messages + text + ids + pair + id_pair != 1) {
    std::string found;
    for (const auto& [key, value] : object.items()) {
      if (found.size() < 200) found += found.empty() ? key : StrCat(", ", key);
    }
    return InvalidArgument(
        "expected exactly one of 'messages', 'prompt' + 'completion', 'text', 'ids' + 'trained', 'prompt_ids' + ",
        "'completion_ids'; the row has: ", found.empty() ? std::string("nothing") : found);
  }
  if (pair) return TakePromptCompletion(object, row);
  if (messages) {
    row->kind = RowKind::kMessages;
    row->messages = object["messages"];
    return CheckMessages(row->messages, "messages");
  }
  if (text) {
    row->kind = RowKind::kText;
    HONE_ASSIGN_OR_RETURN(row->text, TakeString(object["text"], "text"));
    return absl::OkStatus();
  }
  if (id_pair) {
    row->kind = RowKind::kPromptCompletionIds;
    HONE_ASSIGN_OR_RETURN(row->ids, TakeIds(object["prompt_ids"], "prompt_ids"));
    HONE_ASSIGN_OR_RETURN(row->completion_ids, TakeIds(object["completion_ids"], "completion_ids"));
    return absl::OkStatus();
  }
  row->kind = RowKind::kIds;
  if (!object.contains("trained"))
    return InvalidArgument("'ids' needs 'trained': [[begin, end], ...], the ids that are trained");
  HONE_ASSIGN_OR_RETURN(row->ids, TakeIds(object["ids"], "ids"));
  return TakeTrained(object["trained"], row);
}

absl::Status FillRow(std::string_view text, const RowLimits& limits, Row* row) {
  if (text.size() > limits.max_row_bytes) return InvalidArgument("longer than ", limits.max_row_bytes, " bytes");
  HONE_ASSIGN_OR_RETURN(const Json object, ParseOrdered(text, limits.max_depth));
  if (!object.is_object()) return InvalidArgument("expected a JSON object, not ", object.type_name());
  HONE_RETURN_IF_ERROR(TakeContent(object, row));
  if (object.contains("label") && !object["label"].is_null()) {
    if (!object["label"].is_boolean())
      return InvalidArgument("label: expected true or false, not ", object["label"].dump().substr(0, 40));
    row->label = object["label"].get<bool>();
  }
  if (object.contains("tools")) row->tools = object["tools"];
  if (!row->tools.is_null() && !row->tools.is_array())
    return InvalidArgument("tools: expected a list, not ", row->tools.type_name());
  if (object.contains("chat_template_kwargs")) row->variables = object["chat_template_kwargs"];
  if (!row->variables.is_null() && !row->variables.is_object())
    return InvalidArgument("chat_template_kwargs: expected an object");
  return absl::OkStatus();
}

class Reader {
 public:
  Reader(std::string_view bytes, std::string_view name, const RowLimits& limits)
      : bytes_(bytes), name_(name), limits_(limits) {}

  absl::StatusOr<std::vector<Row>> Read() {
    if (bytes_.size() > limits_.max_file_bytes) {
      return InvalidArgument(name_, ": larger than the limit of ", limits_.max_file_bytes, " bytes");
    }
    size_t bad = 0;
    if (!IsValidUtf8(bytes_, &bad)) {
      const auto line = 1 + std::count(bytes_.begin(), bytes_.begin() + static_cast<long>(bad), '\n');
      return InvalidArgument(name_, ": byte ", bad, " (line ", line, "): invalid UTF-8; save the file as UTF-8");
    }
    if (bytes_.starts_with("\xef\xbb\xbf")) at_ = 3;
    SkipSpace();
    HONE_RETURN_IF_ERROR(at_ < bytes_.size() && bytes_[at_] == '[' ? ReadArray() : ReadLines());
    if (rows_.empty()) return InvalidArgument(name_, ": no rows; expected JSON lines or a JSON array of objects");
    return std::move(rows_);
  }

 private:
  static bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }
  void SkipSpace() {
    for (; at_ < bytes_.size() && IsSpace(bytes_[at_]); ++at_) line_ += bytes_[at_] == '\n';
  }

  absl::Status Add(std::string_view text, uint64_t line) {
    if (rows_.size() >= limits_.max_rows) return InvalidArgument(name_, ": more than ", limits_.max_rows, " rows");
    Row row;
    row.number = rows_.size() + 1;
    row.line = line;
    const absl::Status status = FillRow(text, limits_, &row);
    if (!status.ok()) return Annotate(status, StrCat(name_, ": row ", row.number, " (line ", line, ")"));
    rows_.push_back(std::move(row));
    return absl::OkStatus();
  }

  absl::Status ReadLines() {
    while (at_ < bytes_.size()) {
      const size_t end = std::min(bytes_.find('\n', at_), bytes_.size());
      const std::string_view text = bytes_.substr(at_, end - at_);
      if (!std::all_of(text.begin(), text.end(), IsSpace)) HONE_RETURN_IF_ERROR(Add(text, line_));
      at_ = end + 1;
      ++line_;
    }
    return absl::OkStatus();
  }

  // Past one array element: to the ',' or ']' after it that is in no string and no bracket.
  void SkipElement() {
    int64_t depth = 0;
    bool quoted = false;
    for (; at_ < bytes_.size(); ++at_) {
      const char c = bytes_[at_];
      line_ += c == '\n';
      if (quoted) {
        if (c == '\\') ++at_;
        if (c == '"') quoted = false;
        continue;
      }
      if (c == '"') quoted = true;
      if (c == '[' || c == '{') ++depth;
      if (depth == 0 && (c == ',' || c == ']')) return;
      if (c == ']' || c == '}') --depth;
    }
    at_ = bytes_.size();
  }

  absl::Status ReadArray() {
    ++at_;
    SkipSpace();
    bool closed = at_ < bytes_.size() && bytes_[at_] == ']';
    while (!closed) {
      SkipSpace();
      const size_t begin = at_;
      const uint64_t line = line_;
      SkipElement();
      if (at_ >= bytes_.size())
        return InvalidArgument(name_, ": row ", rows_.size() + 1, " (line ", line,
                               "): the JSON array is not closed by ]");
      HONE_RETURN_IF_ERROR(Add(bytes_.substr(begin, at_ - begin), line));
      closed = bytes_[at_] == ']';
      if (!closed) ++at_;
    }
    ++at_;
    SkipSpace();
    if (at_ < bytes_.size()) return InvalidArgument(name_, ": line ", line_, ": text after the end of the JSON array");
    return absl::OkStatus();
  }

  std::string_view bytes_, name_;
  const RowLimits& limits_;
  size_t at_ = 0;
  uint64_t line_ = 1;
  std::vector<Row> rows_;
};

}  // namespace

std::string_view RowKindName(RowKind kind) {
  switch (kind) {
    case RowKind::kMessages:
      return "messages";
    case RowKind::kPromptCompletionMessages:
      return "prompt + completion (messages)";
    case RowKind::kPromptCompletionText:
      return "prompt + completion";
    case RowKind::kText:
      return "text";
    case RowKind::kIds:
      return "ids";
    case RowKind::kPromptCompletionIds:
      return "prompt_ids + completion_ids";
  }
  return "unknown";
}

absl::StatusOr<std::vector<Row>> ParseRows(std::string_view bytes, std::string_view name, const RowLimits& limits) {
  return Reader(bytes, name, limits).Read();
}

absl::StatusOr<std::vector<Row>> ReadRows(const std::string& path, const RowLimits& limits) {
  HONE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  return ParseRows(file.bytes(), path, limits);
}

}  // namespace hone
