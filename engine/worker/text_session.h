// A model's text side for generation: prompts and message lists to ids, new ids to text as they come, stop strings.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/worker/inference.h"
#include "hone/v1/worker.pb.h"

namespace hone {

class TextSession {
 public:
  // The tokenizer may be missing: then only ids go in and out.
  static absl::StatusOr<std::unique_ptr<TextSession>> Open(Backend& backend, const ModelFiles& files,
                                                           const LoraAdapter* adapter);
  using OnChunk = std::function<void(const v1::GenerateChunk& chunk)>;
  // Answers all requests together, batched; each ends with a chunk whose done is set. A request at fault gets
  // error_code and error_message in its chunk, the others go on.
  void Answer(const std::vector<v1::GenerateRequest>& requests, const OnChunk& on_chunk);
  InferenceSession& inference() { return *inference_; }

 private:
  absl::StatusOr<GenerationRequest> Prepare(const v1::GenerateRequest& request) const;
  void AnswerGroup(const std::vector<const v1::GenerateRequest*>& requests, AdapterMode mode, const OnChunk& on_chunk);

  std::unique_ptr<InferenceSession> inference_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  absl::Status template_error_;
};

// {"prompt"} | {"messages"} | {"ids"} + options, as one line of `generate`.
absl::StatusOr<v1::GenerateRequest> GenerateRequestFromJson(std::string_view line);

}  // namespace hone
