#include "engine/data/examples.h"

#include <algorithm>
#include <numeric>

#include "proto/base/status.h"

namespace hone {

int32_t Example::supervised() const { return std::accumulate(trained.begin(), trained.end(), int32_t{0}); }

namespace {

template <typename... Args>
absl::Status RowError(uint64_t row, uint64_t line, const Args&... args) {
  return InvalidArgument("row ", row, " (line ", line, "): ", args...);
}

absl::Status NeedTokenizer(const Row& row, const TextTools& tools) {
  if (tools.tokenizer != nullptr) return absl::OkStatus();
  return RowError(row.number, row.line, "the model has no tokenizer; only 'ids' rows can be used with it");
}

// Ids of a rendered conversation and, for each, the message whose trained span it overlaps, or -1.
struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<int32_t> message;
};

absl::StatusOr<ChatTokens> TokenizeChat(const Row& row, const TextTools& tools) {
  HONE_RETURN_IF_ERROR(NeedTokenizer(row, tools));
  if (tools.chat_template == nullptr) {
    return RowError(
        row.number, row.line,
        "message rows need a chat template and the model has none; give 'prompt' and 'completion' as strings");
  }
  RenderRequest request;
  request.messages = row.messages;
  for (const auto& message : row.completion_messages) request.messages.push_back(message);
  request.tools = row.tools;
  request.variables = row.variables;
  auto chat = tools.chat_template->Render(request);
  if (!chat.ok()) return Annotate(chat.status(), StrCat("row ", row.number, " (line ", row.line, ")"));
  auto encoding = tools.tokenizer->Encode(chat->text, /*add_special_tokens=*/false);
  if (!encoding.ok()) return Annotate(encoding.status(), StrCat("row ", row.number, " (line ", row.line, ")"));
  ChatTokens tokens{std::move(encoding->ids), {}};
  tokens.message.assign(tokens.ids.size(), -1);
  size_t turn = 0;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    const auto [begin, end] = encoding->spans[i];
    while (turn < chat->turns.size() && chat->turns[turn].bytes.end <= begin) ++turn;
    if (turn < chat->turns.size() && chat->turns[turn].bytes.begin < end && begin < end)
      tokens.message[i] = chat->turns[turn].message;
  }
  return tokens;
}

// The first message that is trained: 0, past the prompt, or the last assistant message of a KTO row.
int32_t FirstTrainedMessage(const Row& row, bool last_only) {
  if (row.kind == RowKind::kPromptCompletionMessages) return static_cast<int32_t>(row.messages.size());
  if (!last_only) return 0;
  for (size_t i = row.messages.size(); i-- > 0;) {
    if (row.messages[i].value("role", "") == "assistant") return static_cast<int32_t>(i);
  }
  return static_cast<int32_t>(row.messages.size());
}

absl::StatusOr<std::vector<int32_t>> EncodeRow(const Row& row, const TextTools& tools, const std::string& text,
                                               bool special) {
  HONE_RETURN_IF_ERROR(NeedTokenizer(row, tools));
  auto encoding = tools.tokenizer->Encode(text, special);
  if (!encoding.ok()) return Annotate(encoding.status(), StrCat("row ", row.number, " (line ", row.line, ")"));
  return std::move(encoding->ids);
}

std::string WithEos(const std::string& text, const Tokenizer* tokenizer) {
  if (tokenizer == nullptr || !tokenizer->eos_id()) return text;
  const std::string eos = tokenizer->TokenText(*tokenizer->eos_id());
  return text.ends_with(eos) ? text : text + eos;
}

absl::Status FillSft(const Row& row, const TextTools& tools, Example* example) {
  switch (row.kind) {
    case RowKind::kMessages:
    case RowKind::kPromptCompletionMessages: {
      HONE_ASSIGN_OR_RETURN(ChatTokens tokens, TokenizeChat(row, tools));
      const int32_t first = FirstTrainedMessage(row, /*last_only=*/false);
      for (int32_t message : tokens.message) example->trained.push_back(message >= first);
      example->ids = std::move(tokens.ids);
      return absl::OkStatus();
    }
    case RowKind::kPromptCompletionText: {
      HONE_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, EncodeRow(row, tools, row.prompt, true));
      HONE_ASSIGN_OR_RETURN(example->ids,
                            EncodeRow(row, tools, row.prompt + WithEos(row.completion, tools.tokenizer), true));
      example->trained.assign(example->ids.size(), 1);
      std::fill_n(example->trained.begin(), std::min(prompt.size(), example->ids.size()), 0);
      return absl::OkStatus();
    }
    case RowKind::kText: {
      HONE_ASSIGN_OR_RETURN(example->ids, EncodeRow(row, tools, WithEos(row.text, tools.tokenizer), true));
      example->trained.assign(example->ids.size(), 1);
      return absl::OkStatus();
    }
    case RowKind::kIds: {
      example->ids = row.ids;
      example->trained.assign(row.ids.size(), 0);
      for (const auto& [begin, end] : row.trained)
        std::fill(example->trained.begin() + begin, example->trained.begin() + end, 1);
      return absl::OkStatus();
    }
    case RowKind::kPromptCompletionIds: {
      example->ids = row.ids;
      example->ids.insert(example->ids.end(), row.completion_ids.begin(), row.completion_ids.end());
      example->trained.assign(example->ids.size(), 1);
      std::fill_n(example->trained.begin(), row.ids.size(), 0);
      return absl::OkStatus();
    }
  }
  return Internal("a row of unknown kind");
}

}  // namespace

absl::StatusOr<Example> MakeSftExample(const Row& row, const TextTools& tools, const ExampleOptions& options) {
  Example example;
  example.row = row.number;
  HONE_RETURN_IF_ERROR(FillSft(row, tools, &example));
  if (example.ids.empty()) return RowError(row.number, row.line, "it is empty: no tokens");
  example.trained[0] = 0;  // nothing comes before it
  const int32_t supervised = example.supervised();
  if (supervised == 0) {
    return RowError(row.number, row.line, "no supervised token: there is nothing in it to learn from");
  }
  if (example.length() > options.max_length) {
    const auto cut = static_cast<uint32_t>(example.length() - options.max_length);
    const auto cut_trained = static_cast<uint32_t>(
        std::accumulate(example.trained.begin() + options.max_length, example.trained.end(), int32_t{0}));
    example.cut_completion = cut_trained;
    example.cut_prompt = cut - cut_trained;
    example.ids.resize(static_cast<size_t>(options.max_length));
    example.trained.resize(static_cast<size_t>(options.max_length));
    if (example.supervised() == 0) {
      return RowError(row.number, row.line, "no supervised token is left after the cut to max_length ",
                      options.max_length, ": what is trained begins later; raise data.max_length or shorten the row");
    }
  }
  const auto first = std::find(example.trained.begin(), example.trained.end(), 1);
  example.prompt_length = static_cast<int32_t>(first - example.trained.begin());
  return example;
}

namespace {

// prompt and answer of raw strings: the answer begins where the prompt's own ids end, or one id before if they are no
// prefix.
absl::Status FillKtoText(const Row& row, const TextTools& tools, KtoParts* parts) {
  HONE_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, EncodeRow(row, tools, row.prompt, false));
  HONE_ASSIGN_OR_RETURN(const std::vector<int32_t> full, EncodeRow(row, tools, row.prompt + row.completion, false));
  if (full.size() < prompt.size()) {
    return RowError(row.number, row.line,
                    "prompt and completion together have fewer tokens than the prompt alone; move the prompt's ",
                    "trailing characters into the completion");
  }
  size_t begin = prompt.size();
  if (!std::equal(prompt.begin(), prompt.end(), full.begin())) --begin;
  parts->prompt.assign(full.begin(), full.begin() + static_cast<long>(begin));
  parts->answer.assign(full.begin() + static_cast<long>(begin), full.end());
  parts->answer_trained.assign(parts->answer.size(), 1);
  parts->raw_text = true;
  parts->bos = tools.tokenizer->bos_id();
  parts->eos = tools.tokenizer->eos_id();
  return absl::OkStatus();
}

absl::Status FillKtoChat(const Row& row, const TextTools& tools, KtoParts* parts) {
  HONE_ASSIGN_OR_RETURN(const ChatTokens tokens, TokenizeChat(row, tools));
  const int32_t first = FirstTrainedMessage(row, /*last_only=*/true);
  size_t begin = tokens.ids.size(), end = 0;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.message[i] < first) continue;
    begin = std::min(begin, i);
    end = i + 1;
  }
  if (end == 0)
    return RowError(row.number, row.line, "no supervised token: the completion has nothing that an assistant said");
  parts->prompt.assign(tokens.ids.begin(), tokens.ids.begin() + static_cast<long>(begin));
  for (size_t i = begin; i < end; ++i) {
    parts->answer.push_back(tokens.ids[i]);
    parts->answer_trained.push_back(tokens.message[i] >= first);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<KtoParts> MakeKtoParts(const Row& row, const TextTools& tools) {
  if (!row.label)
    return RowError(row.number, row.line, "KTO needs a label: \"label\": true (desirable) or false (undesirable)");
  KtoParts parts;
  parts.label = *row.label;
  parts.row = row.number;
  parts.line = row.line;
  switch (row.kind) {
    case RowKind::kMessages:
    case RowKind::kPromptCompletionMessages:
      HONE_RETURN_IF_ERROR(FillKtoChat(row, tools, &parts));
      break;
    case RowKind::kPromptCompletionText:
      HONE_RETURN_IF_ERROR(FillKtoText(row, tools, &parts));
      break;
    case RowKind::kPromptCompletionIds:
      parts.prompt = row.ids;
      parts.answer = row.completion_ids;
      parts.answer_trained.assign(parts.answer.size(), 1);
      break;
    case RowKind::kText:
    case RowKind::kIds:
      return RowError(row.number, row.line, "KTO needs a prompt and a completion; a '", RowKindName(row.kind),
                      "' row has none");
  }
  return parts;
}

absl::StatusOr<Example> MakeKtoExample(const KtoParts& parts, const ExampleOptions& options) {
  Example example;
  example.row = parts.row;
  example.label = parts.label;
  const auto &prompt = parts.prompt, &answer = parts.answer;
  int64_t budget = options.max_length;
  if (parts.raw_text && !prompt.empty() && prompt.front() != parts.bos) --budget;
  if (parts.raw_text && !answer.empty() && answer.back() != parts.eos) --budget;
  size_t skip = 0, keep = answer.size();
  const auto fits = [&] { return static_cast<int64_t>(prompt.size() - skip + keep) <= budget; };
  if (!fits()) skip = prompt.size() - std::min(prompt.size(), static_cast<size_t>(options.max_prompt_length));
  if (!fits()) {
    const int64_t room = budget - options.max_prompt_length;
    if (room <= 0) {
      return RowError(parts.row, parts.line, "longer than data.max_length ", options.max_length,
                      ", and data.max_prompt_length ", options.max_prompt_length,
                      " leaves no room for an answer; set data.max_prompt_length lower");
    }
    keep = std::min(keep, static_cast<size_t>(room));
  }
  example.cut_prompt = static_cast<uint32_t>(skip);
  example.cut_completion = static_cast<uint32_t>(answer.size() - keep);

  const bool bos_missing = skip == prompt.size() || prompt[skip] != parts.bos;
  if (parts.raw_text && parts.bos && bos_missing) example.ids.push_back(*parts.bos);
  example.ids.insert(example.ids.end(), prompt.begin() + static_cast<long>(skip), prompt.end());
  example.prompt_length = example.length();
  example.trained.assign(example.ids.size(), 0);
  example.ids.insert(example.ids.end(), answer.begin(), answer.begin() + static_cast<long>(keep));
  example.trained.insert(example.trained.end(), parts.answer_trained.begin(),
                         parts.answer_trained.begin() + static_cast<long>(keep));
  const bool eos_missing = keep == 0 || answer[keep - 1] != parts.eos;
  if (parts.raw_text && parts.eos && eos_missing) {
    example.ids.push_back(*parts.eos);
    example.trained.push_back(1);
  }
  if (!example.trained.empty()) example.trained[0] = 0;
  if (example.supervised() == 0) return RowError(parts.row, parts.line, "no supervised token: the completion is empty");
  return example;
}

}  // namespace hone
