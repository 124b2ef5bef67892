#include "engine/worker/text_session.h"

#include <algorithm>

#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

// Bytes at the end of `text` that may still become a character: an unfinished UTF-8 sequence.
size_t UnfinishedTail(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xc0) == 0x80) continue;
    const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

// One answer in the making.
struct Draft {
  const v1::GenerateRequest* request = nullptr;
  std::vector<int32_t> ids;
  size_t sent_ids = 0;
  std::string sent;  // text given out so far
  bool stopped = false;
};

// The decoded text, cut before the first stop string; *stopped tells whether one was found.
std::string VisibleText(const Tokenizer& tokenizer, const Draft& answer, bool* stopped) {
  std::string text = tokenizer.Decode(answer.ids, true);
  size_t cut = std::string::npos;
  for (const std::string& stop : answer.request->stop()) {
    if (!stop.empty()) cut = std::min(cut, text.find(stop));
  }
  *stopped = cut != std::string::npos;
  if (*stopped) text.resize(cut);
  return text;
}

// The longest end of `text` that could be the beginning of a stop string.
size_t HeldBack(std::string_view text, const v1::GenerateRequest& request) {
  size_t held = 0;
  for (const std::string& stop : request.stop()) {
    for (size_t n = std::min(stop.size(), text.size()); n > held; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) held = n;
    }
  }
  return held;
}

v1::GenerateChunk ErrorChunk(const v1::GenerateRequest& request, const absl::Status& status) {
  v1::GenerateChunk chunk;
  chunk.set_request(request.request());
  chunk.set_done(true);
  chunk.set_finish_reason("error");
  chunk.set_error_code(static_cast<int32_t>(status.code()));
  chunk.set_error_message(std::string(status.message()));
  return chunk;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TextSession>> TextSession::Open(Backend& backend, const ModelFiles& files,
                                                               const LoraAdapter* adapter) {
  auto session = std::make_unique<TextSession>();
  HONE_ASSIGN_OR_RETURN(session->inference_, InferenceSession::Open(backend, files, adapter));
  if (auto tokenizer = files.OpenTokenizer(); tokenizer.ok()) session->tokenizer_ = *std::move(tokenizer);
  if (files.chat_template().empty()) {
    session->template_error_ =
        FailedPrecondition("the model has no chat template; give prompt or ids instead of messages");
    return session;
  }
  auto parsed = ChatTemplate::Parse(files.chat_template(), files.template_tokens());
  session->template_error_ = parsed.status();
  if (parsed.ok()) session->chat_template_ = *std::move(parsed);
  return session;
}

absl::StatusOr<GenerationRequest> TextSession::Prepare(const v1::GenerateRequest& request) const {
  GenerationRequest out;
  SamplingOptions& sampling = out.sampling;
  sampling.temperature = request.has_temperature() ? request.temperature() : 0;
  sampling.top_k = request.top_k();
  sampling.top_p = request.has_top_p() ? request.top_p() : 1;
  sampling.max_new_tokens = request.has_max_new_tokens() ? request.max_new_tokens() : 128;
  sampling.seed = request.seed();
  if (!(sampling.temperature >= 0 && sampling.temperature <= 100))
    return InvalidArgument("temperature: expected 0 to 100");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) return InvalidArgument("top_p: expected more than 0, at most 1");
  if (sampling.max_new_tokens < 1) return InvalidArgument("max_new_tokens: expected at least 1");
  if (request.has_ids()) {
    out.prompt.assign(request.ids().ids().begin(), request.ids().ids().end());
    return out;
  }
  if (tokenizer_ == nullptr) return FailedPrecondition("the model has no tokenizer; give ids");
  if (request.input_case() == v1::GenerateRequest::kPrompt) {
    HONE_ASSIGN_OR_RETURN(Encoding encoding, tokenizer_->Encode(request.prompt(), true));
    out.prompt = std::move(encoding.ids);
    return out;
  }
  if (request.input_case() != v1::GenerateRequest::kMessagesJson)
    return InvalidArgument("give prompt, messages or ids");
  HONE_RETURN_IF_ERROR(template_error_);
  HONE_RETURN_IF_ERROR(ParseJson(request.messages_json()).status());
  RenderRequest render;
  render.messages = nlohmann::ordered_json::parse(request.messages_json());
  render.add_generation_prompt = true;
  HONE_ASSIGN_OR_RETURN(const RenderedChat chat, chat_template_->Render(render));
  HONE_ASSIGN_OR_RETURN(Encoding encoding, tokenizer_->Encode(chat.text, false));
  out.prompt = std::move(encoding.ids);
  return out;
}

void TextSession::Answer(const std::vector<v1::GenerateRequest>& requests, const OnChunk& on_chunk) {
  std::vector<const v1::GenerateRequest*> with, without;
  for (const v1::GenerateRequest& request : requests) (request.use_adapter() ? with : without).push_back(&request);
  if (!with.empty()) AnswerGroup(with, AdapterMode::kOn, on_chunk);
  if (!without.empty()) AnswerGroup(without, AdapterMode::kOff, on_chunk);
}

void TextSession::AnswerGroup(const std::vector<const v1::GenerateRequest*>& requests, AdapterMode mode,
                              const OnChunk& on_chunk) {
  std::vector<GenerationRequest> prepared;
  std::vector<Draft> answers;
  for (const v1::GenerateRequest* request : requests) {
    auto one = Prepare(*request);
    if (!one.ok()) {
      on_chunk(ErrorChunk(*request, one.status()));
      continue;
    }
    prepared.push_back(*std::move(one));
    answers.emplace_back().request = request;
  }
  auto send = [&](Draft& answer, const std::string& text, bool done, const char* reason) {
    v1::GenerateChunk chunk;
    chunk.set_request(answer.request->request());
    if (text.size() > answer.sent.size()) chunk.set_text(text.substr(answer.sent.size()));
    for (; answer.sent_ids < answer.ids.size(); ++answer.sent_ids) chunk.add_ids(answer.ids[answer.sent_ids]);
    chunk.set_done(done);
    chunk.set_finish_reason(reason);
    if (text.size() > answer.sent.size()) answer.sent = text;
    if (done || !chunk.text().empty()) on_chunk(chunk);
  };
  auto on_token = [&](int64_t index, int32_t token) {
    Draft& answer = answers[index];
    answer.ids.push_back(token);
    if (tokenizer_ == nullptr) return true;
    std::string text = VisibleText(*tokenizer_, answer, &answer.stopped);
    if (answer.stopped) return false;
    text.resize(text.size() - std::max(UnfinishedTail(text), HeldBack(text, *answer.request)));
    send(answer, text, false, "");
    return true;
  };
  const auto reasons = inference_->Run(prepared, mode, on_token);
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!reasons.ok()) {
      on_chunk(ErrorChunk(*answers[i].request, reasons.status()));
      continue;
    }
    bool stopped = false;
    const std::string text = tokenizer_ != nullptr ? VisibleText(*tokenizer_, answers[i], &stopped) : "";
    send(answers[i], text, true, (*reasons)[i] == FinishReason::kStop ? "stop" : "length");
  }
}

absl::StatusOr<v1::GenerateRequest> GenerateRequestFromJson(std::string_view line) {
  HONE_ASSIGN_OR_RETURN(const nlohmann::json checked, ParseJson(line));
  if (!checked.is_object()) return InvalidArgument("expected a JSON object");
  const auto object = nlohmann::ordered_json::parse(line);  // the order of a message's keys matters to templates
  v1::GenerateRequest request;
  request.set_use_adapter(true);
  auto number = [](const nlohmann::ordered_json& value, const std::string& key, auto set) -> absl::Status {
    if (!value.is_number() || (value.is_number() && value.get<double>() < 0))
      return InvalidArgument(key, ": expected a number of at least 0");
    set(value);
    return absl::OkStatus();
  };
  for (const auto& [key, value] : object.items()) {
    absl::Status status;
    if (key == "prompt" && value.is_string()) {
      request.set_prompt(value.get<std::string>());
    } else if (key == "messages" && value.is_array()) {
      request.set_messages_json(value.dump());
    } else if (key == "ids" && value.is_array()) {
      request.mutable_ids();
      for (const auto& id : value) {
        if (!id.is_number_integer()) return InvalidArgument("ids: expected integers");
        request.mutable_ids()->add_ids(id.get<int32_t>());
      }
    } else if (key == "stop") {
      if (value.is_string()) request.add_stop(value.get<std::string>());
      for (const auto& stop : value.is_array() ? value : nlohmann::ordered_json::array()) {
        if (!stop.is_string()) return InvalidArgument("stop: expected a string or a list of strings");
        request.add_stop(stop.get<std::string>());
      }
    } else if (key == "temperature") {
      status = number(value, key, [&](const auto& v) { request.set_temperature(v.template get<double>()); });
    } else if (key == "top_p") {
      status = number(value, key, [&](const auto& v) { request.set_top_p(v.template get<double>()); });
    } else if (key == "top_k") {
      status = number(value, key, [&](const auto& v) { request.set_top_k(v.template get<uint32_t>()); });
    } else if (key == "max_new_tokens") {
      status = number(value, key, [&](const auto& v) { request.set_max_new_tokens(v.template get<uint32_t>()); });
    } else if (key == "seed") {
      status = number(value, key, [&](const auto& v) { request.set_seed(v.template get<uint64_t>()); });
    } else {
      return InvalidArgument(
          "'", key,
          "': unknown, or of the wrong type; known are prompt, messages, ids, temperature, top_k, top_p, "
          "max_new_tokens, seed, stop");
    }
    HONE_RETURN_IF_ERROR(status);
  }
  if (request.input_case() == v1::GenerateRequest::INPUT_NOT_SET)
    return InvalidArgument("give prompt, messages or ids");
  return request;
}

}  // namespace hone
