#include "engine/io/model_files.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "engine/io/gguf.h"
#include "engine/io/gguf_config.h"
#include "engine/io/gguf_quant.h"
#include "engine/io/model_source.h"
#include "engine/io/nf4.h"
#include "engine/io/safetensors.h"
#include "proto/base/file.h"
#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr std::string_view kRandomPrefix = "random:";
constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxTextBytes = uint64_t{16} << 20;

enum class PathKind { kAbsent, kFolder, kFile };

absl::StatusOr<PathKind> KindOfPath(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) == 0) return S_ISDIR(info.st_mode) ? PathKind::kFolder : PathKind::kFile;
  if (errno == ENOENT || errno == ENOTDIR) return PathKind::kAbsent;
  return absl::ErrnoToStatus(errno, ToAbsl(StrCat("cannot look at ", path)));
}

// A token is written as its text or as an object with its text in "content".
std::string TokenText(const nlohmann::json& config, const char* name) {
  const auto found = config.find(name);
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
    return (*found)["content"].get<std::string>();
  }
  return "";
}

// chat_template: a string, or a list of {name, template} of which "default" is meant.
absl::StatusOr<std::string> TemplateOf(const nlohmann::json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::string();
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const auto& one : *found) {
      if (one.is_object() && one.value("name", nlohmann::json()) == "default" && one.contains("template") &&
          one["template"].is_string()) {
        return one["template"].get<std::string>();
      }
    }
    return InvalidArgument("tokenizer_config.json: chat_template: no entry is named 'default'");
  }
  return InvalidArgument("tokenizer_config.json: chat_template: expected a string or a list of named templates");
}

absl::StatusOr<nlohmann::json> ParseNamed(std::string_view text, std::string_view name) {
  auto parsed = ParseJson(text, {.max_bytes = kMaxTokenizerBytes});
  if (!parsed.ok()) return Annotate(parsed.status(), name);
  if (!parsed->is_object()) return InvalidArgument(name, ": expected an object");
  return parsed;
}

void AddSpecial(const nlohmann::json& entry, std::vector<std::string>& out) {
  if (!entry.is_object()) return;
  const auto special = entry.find("special"), content = entry.find("content");
  if (special == entry.end() || *special != true || content == entry.end() || !content->is_string()) return;
  out.push_back(content->get<std::string>());
}

bool EndsWith(const std::string& text, std::string_view suffix) { return text.ends_with(suffix); }

// The folder that `tokenize` and `render` read from: the source itself, or the folder of a .json file.
std::string TextFolder(const std::string& source) {
  std::string path = source;
  if (path.starts_with(kRandomPrefix)) path = path.substr(kRandomPrefix.size());
  if (!EndsWith(path, ".json")) return path;
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
}

}  // namespace

std::string_view ModelSourceKindName(ModelSourceKind kind) {
  switch (kind) {
    case ModelSourceKind::kHuggingFace:
      return "huggingface";
    case ModelSourceKind::kGguf:
      return "gguf";
    case ModelSourceKind::kRandom:
      return "random";
  }
  FailInvariant(__FILE__, __LINE__, "kind", "");
}

uint64_t StoredWeight::ScaleBytes() const {
  if (dtype != DType::kNf4) return 0;
  if (!nested) return blocks * sizeof(float);
  return blocks + (nested_blocks + 256 + 1) * sizeof(float);
}

std::vector<std::string> RequiredWeights(const DecoderConfig& config) {
  std::vector<std::string> names = {"model.embed_tokens.weight"};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = StrCat("model.layers.", layer, ".");
    names.push_back(prefix + "input_layernorm.weight");
    for (const char* module : {"q_proj", "k_proj", "v_proj"}) {
      names.push_back(StrCat(prefix, "self_attn.", module, ".weight"));
      if (config.qkv_bias) names.push_back(StrCat(prefix, "self_attn.", module, ".bias"));
    }
    if (config.qk_norm) {
      names.push_back(prefix + "self_attn.q_norm.weight");
      names.push_back(prefix + "self_attn.k_norm.weight");
    }
    names.push_back(prefix + "self_attn.o_proj.weight");
    names.push_back(prefix + "post_attention_layernorm.weight");
    for (const char* module : {"gate_proj", "up_proj", "down_proj"}) {
      names.push_back(StrCat(prefix, "mlp.", module, ".weight"));
    }
  }
  names.push_back("model.norm.weight");
  if (!config.tie_word_embeddings) names.push_back("lm_head.weight");
  return names;
}

bool IsVector(std::string_view name) { return name.ends_with("norm.weight") || name.ends_with(".bias"); }
bool IsLinearWeight(std::string_view name) { return name.ends_with("_proj.weight"); }

WeightShape ExpectedShape(const DecoderConfig& config, std::string_view name) {
  if (name == "model.embed_tokens.weight" || name == "lm_head.weight") return {config.vocab_size, config.hidden_size};
  if (name.ends_with("_norm.weight")) return {1, config.head_dim};  // q_norm, k_norm
  if (name.ends_with("norm.weight")) return {1, config.hidden_size};
  for (int i = 0; i < kLinearKinds; ++i) {
    const auto kind = static_cast<LinearKind>(i);
    const std::string module = LinearShortName(kind);
    const LinearShape shape = ShapeOf(config, kind);
    if (name.ends_with(module + ".weight")) return {shape.out, shape.in};
    if (name.ends_with(module + ".bias")) return {1, shape.out};
  }
  FailInvariant(__FILE__, __LINE__, "a decoder's weight", std::string(name));
}

absl::Status CheckWeight(const DecoderConfig& config, std::string_view name, const StoredWeight& weight) {
  const WeightShape expected = ExpectedShape(config, name);
  if (weight.rows != expected.rows || weight.cols != expected.cols) {
    return InvalidArgument(name, " is [", weight.rows, ", ", weight.cols, "], the configuration says [", expected.rows,
                           ", ", expected.cols, "]");
  }
  const bool plain = weight.dtype == DType::kF32 || weight.dtype == DType::kF16 || weight.dtype == DType::kBF16;
  if (IsVector(name) && !plain) return Unimplemented(name, " is ", DTypeName(weight.dtype), ", expected plain floats");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadOptionalFile(const std::string& path, uint64_t max_bytes) {
  auto text = ReadFile(path, max_bytes);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

absl::StatusOr<TextFiles> ReadTextFiles(const std::string& directory) {
  TextFiles files;
  HONE_ASSIGN_OR_RETURN(files.tokenizer_json, ReadOptionalFile(directory + "/tokenizer.json", kMaxTokenizerBytes));
  HONE_ASSIGN_OR_RETURN(files.tokenizer_config_json,
                        ReadOptionalFile(directory + "/tokenizer_config.json", kMaxTextBytes));
  HONE_ASSIGN_OR_RETURN(files.chat_template, ReadOptionalFile(directory + "/chat_template.jinja", kMaxTextBytes));
  if (!files.chat_template.empty() || files.tokenizer_config_json.empty()) return files;
  HONE_ASSIGN_OR_RETURN(const auto config, ParseNamed(files.tokenizer_config_json, "tokenizer_config.json"));
  HONE_ASSIGN_OR_RETURN(files.chat_template, TemplateOf(config));
  return files;
}

absl::StatusOr<TemplateTokens> TokensOf(const TextFiles& files) {
  TemplateTokens tokens;
  if (!files.tokenizer_config_json.empty()) {
    HONE_ASSIGN_OR_RETURN(const auto config, ParseNamed(files.tokenizer_config_json, "tokenizer_config.json"));
    tokens.bos_token = TokenText(config, "bos_token");
    tokens.eos_token = TokenText(config, "eos_token");
    if (const auto added = config.find("added_tokens_decoder"); added != config.end() && added->is_object()) {
      for (const auto& [id, entry] : added->items()) AddSpecial(entry, tokens.special_tokens);
    }
  }
  if (tokens.special_tokens.empty() && !files.tokenizer_json.empty()) {
    HONE_ASSIGN_OR_RETURN(const auto tokenizer, ParseNamed(files.tokenizer_json, "tokenizer.json"));
    if (const auto added = tokenizer.find("added_tokens"); added != tokenizer.end() && added->is_array()) {
      for (const auto& entry : *added) AddSpecial(entry, tokens.special_tokens);
    }
  }
  return tokens;
}

TemplateTokens TokensOfGguf(const GgufVocabulary& vocabulary) {
  TemplateTokens tokens;
  if (vocabulary.bos) tokens.bos_token = vocabulary.tokens[*vocabulary.bos];
  if (vocabulary.eos) tokens.eos_token = vocabulary.tokens[*vocabulary.eos];
  constexpr int32_t kUnknown = 2, kControl = 3;
  for (size_t i = 0; i < vocabulary.token_types.size(); ++i) {
    const int32_t type = vocabulary.token_types[i];
    if (type == kControl || type == kUnknown) tokens.special_tokens.push_back(vocabulary.tokens[i]);
  }
  return tokens;
}

void DigestText(Sha256& sha, std::string_view text) {
  sha.Update(StrCat(text.size(), ":"));
  sha.Update(text);
}

namespace {

// Asks for pages of a mapped file at once instead of one fault after the other; where it is not one nothing happens.
void AskFor(std::string_view bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data()) + bytes.size();
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

}  // namespace

void DigestWeights(Sha256& sha, std::string_view header, std::string_view bytes) {
  constexpr uint64_t kSample = 64 << 10, kSamples = 64;
  DigestText(sha, header);
  sha.Update(StrCat(bytes.size(), ":"));
  if (bytes.size() <= kSample * kSamples) return sha.Update(bytes);
  const uint64_t last = bytes.size() - kSample;
  const auto sample = [&](uint64_t i) {
    return bytes.substr(i + 1 == kSamples ? last : last / (kSamples - 1) * i, kSample);
  };
  for (uint64_t i = 0; i < kSamples; ++i) AskFor(sample(i));
  for (uint64_t i = 0; i < kSamples; ++i) sha.Update(sample(i));
}

absl::StatusOr<std::unique_ptr<ModelFiles>> ModelFiles::Open(const std::string& source) {
  if (source.empty())
    return InvalidArgument("a model source is a folder, a .gguf file or random:DIR/config.json; got ''");
  if (source.starts_with(kRandomPrefix)) return OpenRandom(source, source.substr(kRandomPrefix.size()));
  HONE_ASSIGN_OR_RETURN(const PathKind kind, KindOfPath(source));
  switch (kind) {
    case PathKind::kAbsent:
      return NotFound(source, ": there is no such file or folder");
    case PathKind::kFolder:
      return OpenHuggingFace(source);
    case PathKind::kFile:
      break;
  }
  if (EndsWith(source, ".safetensors")) {
    return FailedPrecondition(source, " holds weights only; a model is the folder that also has its config.json");
  }
  return OpenGguf(source);
}

std::string ModelFiles::Quantization() const {
  std::set<std::string> kinds;
  for (const std::string& name : names_) {
    if (!IsLinearWeight(name)) continue;
    const auto weight = Describe(name);
    if (!weight.ok()) continue;
    switch (weight->dtype) {
      case DType::kNf4:
        kinds.insert("nf4");
        break;
      case DType::kQ8_0:
        kinds.insert("q8_0");
        break;
      case DType::kQ4_0:
        kinds.insert("q4_0");
        break;
      case DType::kQ4_1:
        kinds.insert("q4_1");
        break;
      default:
        break;
    }
  }
  std::string text;
  for (const std::string& kind : kinds) text += StrCat(text.empty() ? "" : "+", kind);
  return text.empty() ? "none" : text;
}

absl::Status ModelFiles::ReadAsFloat(std::string_view name, float* out) const {
  HONE_ASSIGN_OR_RETURN(const StoredWeight weight, Describe(name));
  const auto elements = static_cast<uint64_t>(weight.rows) * static_cast<uint64_t>(weight.cols);
  if (weight.dtype == DType::kF32) return Read(name, {.data = out});
  std::vector<uint8_t> data(weight.bytes);
  if (weight.dtype != DType::kNf4) {
    HONE_RETURN_IF_ERROR(Read(name, {.data = data.data()}));
    DecodeToFloat(weight.dtype, data.data(), elements, out);
    return absl::OkStatus();
  }
  std::vector<float> absmax(weight.blocks);
  WeightDestination destination{.data = data.data()};
  if (!weight.nested) {
    destination.absmax = absmax.data();
    HONE_RETURN_IF_ERROR(Read(name, destination));
    DecodeNf4(data.data(), absmax.data(), elements, out);
    return absl::OkStatus();
  }
  std::vector<uint8_t> codes(weight.blocks);
  std::vector<float> nested_code(256), nested_absmax(weight.nested_blocks);
  float offset = 0;
  destination.absmax_codes = codes.data();
  destination.nested_code = nested_code.data();
  destination.nested_absmax = nested_absmax.data();
  destination.nested_offset = &offset;
  HONE_RETURN_IF_ERROR(Read(name, destination));
  DecodeNf4Absmax(codes.data(), nested_code.data(), nested_absmax.data(), offset, weight.blocks, absmax.data());
  DecodeNf4(data.data(), absmax.data(), elements, out);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ModelFiles::OpenTokenizerOnly(const std::string& source) {
  if (EndsWith(source, ".gguf")) {
    HONE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(source));
    HONE_ASSIGN_OR_RETURN(GgufVocabulary vocabulary, VocabularyFromGguf(file));
    return Tokenizer::FromGguf(std::move(vocabulary));
  }
  const std::string folder = TextFolder(source);
  HONE_ASSIGN_OR_RETURN(const TextFiles files, ReadTextFiles(folder));
  if (!files.tokenizer_json.empty()) return Tokenizer::FromJson(files.tokenizer_json, files.tokenizer_config_json);
  if (source.starts_with(kRandomPrefix)) {
    HONE_ASSIGN_OR_RETURN(const auto model, Open(source));
    return model->OpenTokenizer();
  }
  return NotFound(folder, ": there is no tokenizer.json (other tokenizer files are not read)");
}

absl::StatusOr<std::string> ModelFiles::ReadChatTemplateOnly(const std::string& source) {
  std::string text;
  if (EndsWith(source, ".gguf")) {
    HONE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(source));
    text = ChatTemplateFromGguf(file).value_or("");
  } else {
    HONE_ASSIGN_OR_RETURN(const TextFiles files, ReadTextFiles(TextFolder(source)));
    text = files.chat_template;
  }
  if (text.empty()) return NotFound(source, ": the model has no chat template");
  return text;
}

absl::StatusOr<TemplateTokens> ModelFiles::ReadTemplateTokensOnly(const std::string& source) {
  if (EndsWith(source, ".gguf")) {
    HONE_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(source));
    HONE_ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, VocabularyFromGguf(file));
    return TokensOfGguf(vocabulary);
  }
  HONE_ASSIGN_OR_RETURN(const TextFiles files, ReadTextFiles(TextFolder(source)));
  return TokensOf(files);
}

}  // namespace hone
