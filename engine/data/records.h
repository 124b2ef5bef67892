// Rows of a data file as the user wrote them: JSON Lines or one JSON array, in the shapes of CONTRACT.md "Rows". Not
// here: templates, tokens and truncation (examples.h).
//
// Errors name the file, the row and its line ("answers.jsonl: row 17 (line 17): ..."); invalid UTF-8 the byte offset in
// the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace hone {

enum class RowKind {
  kMessages,                  // messages
  kPromptCompletionMessages,  // messages (the prompt's) and completion_messages
  kPromptCompletionText,      // prompt and completion
  kText,                      // text
  kIds,                       // ids and trained
  kPromptCompletionIds,       // ids (the prompt's) and completion_ids
};
std::string_view RowKindName(RowKind kind);  // as the user writes it: "messages", "prompt + completion", ...

struct Row {
  RowKind kind = RowKind::kText;
  uint64_t number = 0;  // from 1
  uint64_t line = 0;    // from 1: where the row begins
  nlohmann::ordered_json messages, completion_messages;
  nlohmann::ordered_json tools;      // null or array ("tools")
  nlohmann::ordered_json variables;  // null or object ("chat_template_kwargs")
  std::string prompt, completion, text;
  std::vector<int32_t> ids, completion_ids;
  std::vector<std::pair<uint32_t, uint32_t>> trained;  // ranges of indices into ids, ascending, apart
  std::optional<bool> label;
};

struct RowLimits {
  uint64_t max_file_bytes = uint64_t{4} << 30;
  uint64_t max_row_bytes = uint64_t{16} << 20;
  uint64_t max_rows = 20'000'000;
  int max_depth = 64;
};

// `name` stands for the file in errors. Empty lines are skipped; a file without any row is an error.
absl::StatusOr<std::vector<Row>> ParseRows(std::string_view bytes, std::string_view name, const RowLimits& limits = {});
absl::StatusOr<std::vector<Row>> ReadRows(const std::string& path, const RowLimits& limits = {});

}  // namespace hone
