// What the three kinds of model source share; used by model_files.cc, hf_model.cc, gguf_model.cc and random_model.cc
// only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/model_files.h"
#include "proto/base/sha256.h"

namespace hone {

// What the configuration requires, in the order of the forward pass.
std::vector<std::string> RequiredWeights(const DecoderConfig& config);
struct WeightShape {
  int64_t rows = 0, cols = 0;
};
// Of a name that RequiredWeights gives; vectors are one row.
WeightShape ExpectedShape(const DecoderConfig& config, std::string_view name);
bool IsVector(std::string_view name);        // norms and biases
bool IsLinearWeight(std::string_view name);  // the weights adapters go beside
// Refuses a stored weight whose shape is not the expected one, or whose dtype cannot serve (vectors are plain floats).
absl::Status CheckWeight(const DecoderConfig& config, std::string_view name, const StoredWeight& weight);

// Text files beside a model. An absent file gives an empty text.
absl::StatusOr<std::string> ReadOptionalFile(const std::string& path, uint64_t max_bytes);
struct TextFiles {
  std::string tokenizer_json, tokenizer_config_json, chat_template;
};
absl::StatusOr<TextFiles> ReadTextFiles(const std::string& directory);
// BOS, EOS and the special tokens, from tokenizer_config.json and, where that does not list them, tokenizer.json.
absl::StatusOr<TemplateTokens> TokensOf(const TextFiles& files);

TemplateTokens TokensOfGguf(const GgufVocabulary& vocabulary);

// Adds a weight file to a digest as model_files.h says.
void DigestWeights(Sha256& sha, std::string_view header, std::string_view bytes);
// Adds a text with its length, so that two texts cannot run into each other.
void DigestText(Sha256& sha, std::string_view text);

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenHuggingFace(const std::string& directory);
absl::StatusOr<std::unique_ptr<ModelFiles>> OpenGguf(const std::string& path);
absl::StatusOr<std::unique_ptr<ModelFiles>> OpenRandom(const std::string& source, const std::string& config_path);

}  // namespace hone
