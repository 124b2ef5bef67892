// Defaults and validation: what the options say, then computed defaults, then rules that join fields.
#include <algorithm>
#include <set>

#include "google/protobuf/unknown_field_set.h"
#include "proto/base/sha256.h"
#include "proto/base/status.h"
#include "proto/spec/field.h"
#include "proto/spec/node.h"
#include "proto/spec/spec.h"

namespace hone {
namespace {

constexpr std::string_view kExports[] = {"peft", "merged", "merged:f32", "gguf:f16", "gguf:q8_0"};
constexpr std::string_view kModules[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
constexpr std::string_view kBlobPrefix = "sha256:";

template <typename List>
std::vector<std::string> Strings(const List& list) {
  return {std::begin(list), std::end(list)};
}

template <typename List>
std::string Listed(const List& list) {
  std::string text;
  for (const auto& item : list) text += text.empty() ? std::string(item) : StrCat(", ", item);
  return text;
}

std::string RequiredMessage(const FieldDescriptor& field) {
  const v1::FieldInfo info = InfoOf(field);
  std::string message = "required";
  if (info.examples_size() > 0) message += StrCat(", such as ", info.examples(0));
  return StrCat(message, ". ", info.help());
}

// --- What the options say of single fields.

absl::Status ApplyDefault(Message& message, const FieldDescriptor& field, const std::string& path) {
  const v1::FieldInfo info = InfoOf(field);
  if (info.default_value().empty()) return absl::OkStatus();
  std::vector<std::string> texts = {info.default_value()};
  if (field.is_repeated()) {
    HONE_ASSIGN_OR_RETURN(const NodePtr list, NodeFromYaml(info.default_value(), path));
    texts.clear();
    for (const NodePtr& item : list->items) texts.push_back(item->text);
  }
  for (const std::string& text : texts) {
    const std::optional<std::string> problem = SetScalarFromText(message, field, text);
    HONE_CHECK(!problem, "spec.proto: the default of ", path, " does not pass its own rules: ", *problem);
  }
  return absl::OkStatus();
}

absl::Status CheckValue(const Message& message, const FieldDescriptor& field, int index, const std::string& path) {
  if (const std::optional<double> number = NumericValue(message, field, index)) {
    if (std::optional<std::string> problem = RangeProblem(InfoOf(field), *number)) return FieldError(path, *problem);
  } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const std::string text = ScalarToText(message, field, index);
    if (text.empty()) return FieldError(path, StrCat("must not be empty. ", InfoOf(field).help()));
    if (std::optional<std::string> problem = StringProblem(text)) return FieldError(path, *problem);
  } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    // Numbers this build has no name for come from a newer client; guessing would train something else.
    const int number = index < 0 ? message.GetReflection()->GetEnumValue(message, &field)
                                 : message.GetReflection()->GetRepeatedEnumValue(message, &field, index);
    if (number == 0 || field.enum_type()->FindValueByNumber(number) == nullptr) {
      return FieldError(path, StrCat("expected ", Expectation(field), ", got the unknown value ", number));
    }
  }
  return absl::OkStatus();
}

absl::Status ResolveMessage(Message& message, const std::string& path);

absl::Status ResolveField(Message& message, const FieldDescriptor& field, const std::string& path) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    if (reflection.FieldSize(message, &field) == 0) HONE_RETURN_IF_ERROR(ApplyDefault(message, field, path));
    if (reflection.FieldSize(message, &field) > 1024) return FieldError(path, "more than 1024 items");
    for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
      HONE_RETURN_IF_ERROR(CheckValue(message, field, i, StrCat(path, "[", i, "]")));
    }
    return absl::OkStatus();
  }
  if (field.message_type() != nullptr) {
    // A missing message is filled too; what is required inside it then names itself.
    return ResolveMessage(*reflection.MutableMessage(&message, &field), path);
  }
  if (!reflection.HasField(message, &field)) HONE_RETURN_IF_ERROR(ApplyDefault(message, field, path));
  if (reflection.HasField(message, &field)) return CheckValue(message, field, -1, path);
  if (InfoOf(field).required()) return FieldError(path, RequiredMessage(field));
  return absl::OkStatus();
}

absl::Status ResolveMessage(Message& message, const std::string& path) {
  const Descriptor& type = *message.GetDescriptor();
  const auto& unknown = message.GetReflection()->GetUnknownFields(message);
  if (unknown.field_count() > 0) {
    return FieldError(path, StrCat("holds field number ", unknown.field(0).number(),
                                   ", which this build does not know; is the client newer than the daemon?"));
  }
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.real_containing_oneof() != nullptr && !message.GetReflection()->HasField(message, &field)) continue;
    HONE_RETURN_IF_ERROR(ResolveField(message, field, JoinPath(path, field.name())));
  }
  return absl::OkStatus();
}

// --- Computed defaults.

// The last part of the source that tells models apart: the file's or folder's name.
std::string ModelLabel(std::string source) {
  if (source.rfind("random:", 0) == 0) {
    source = source.substr(7);
    if (const size_t slash = source.rfind('/'); slash != std::string::npos) source.resize(slash);
  }
  while (source.size() > 1 && source.back() == '/') source.pop_back();
  if (const size_t slash = source.rfind('/'); slash != std::string::npos) source = source.substr(slash + 1);
  if (source.size() > 5 && source.ends_with(".gguf")) source.resize(source.size() - 5);
  return source.empty() ? "model" : source;
}

std::string ObjectiveName(const v1::ObjectiveSpec& objective) {
  const auto* chosen =
      objective.GetReflection()->GetOneofFieldDescriptor(objective, objective.GetDescriptor()->oneof_decl(0));
  return chosen == nullptr ? "" : chosen->name();
}

void FillComputed(v1::JobSpec& spec) {
  if (!spec.has_name()) spec.set_name(StrCat(ObjectiveName(spec.objective()), "-", ModelLabel(spec.model().source())));
  v1::LoraSpec& lora = *spec.mutable_adapter()->mutable_lora();
  if (!lora.has_lora_alpha()) lora.set_lora_alpha(lora.r());
  if (spec.objective().has_kto() && !spec.objective().kto().has_kl_group_size() && spec.batch().examples() >= 2) {
    spec.mutable_objective()->mutable_kto()->set_kl_group_size(spec.batch().examples());
  }
  v1::RunSpec& run = *spec.mutable_run();
  if (!run.has_save_steps() && run.has_max_steps()) run.set_save_steps(std::max<uint32_t>(1, run.max_steps() / 10));
}

// --- Rules of single fields that options cannot say, and rules that join fields.

absl::Status CheckModel(const v1::ModelSpec& model) {
  const std::string& source = model.source();
  if (source == "random:") return FieldError("model.source", "expected random:DIR/config.json");
  if (IsModelPath(source)) return absl::OkStatus();
  const bool sound = source.size() <= 63 && std::all_of(source.begin(), source.end(), [&source](const char& c) {
                       const bool word = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
                       return word || (&c != &source[0] && (c == '.' || c == '_' || c == '-'));
                     });
  if (sound) return absl::OkStatus();
  return FieldError("model.source",
                    StrCat(Quoted(source),
                           " is neither a path (with a slash, or ending in .gguf) nor a name in "
                           "the registry (lower-case letters, digits, . _ -); for a folder here write ./",
                           source.size() < 40 ? source : "NAME"));
}

absl::Status CheckLora(const v1::LoraSpec& lora) {
  const std::string path = "adapter.lora.target_modules";
  std::set<std::string> seen;
  for (int i = 0; i < lora.target_modules_size(); ++i) {
    const std::string& name = lora.target_modules(i);
    const std::string here = StrCat(path, "[", i, "]");
    if (!seen.insert(name).second) return FieldError(here, StrCat(Quoted(name), " is given twice"));
    if (name == "all-linear") continue;
    if (name == "lm_head" || name == "embed_tokens") {
      return FieldError(
          here, StrCat(name, " is never trained; adapters go on the linears of the blocks: ", Listed(kModules)));
    }
    if (std::find(std::begin(kModules), std::end(kModules), name) != std::end(kModules)) continue;
    std::vector<std::string> known = Strings(kModules);
    known.push_back("all-linear");
    const std::string close = Closest(name, known);
    return FieldError(here,
                      StrCat("unknown module ", Quoted(name), "; ",
                             close.empty() ? StrCat("known: ", Listed(known)) : StrCat("did you mean ", close, "?")));
  }
  if (seen.count("all-linear") > 0 && seen.size() > 1) {
    return FieldError(path, "all-linear already names every linear; leave it out or the others");
  }
  std::set<uint32_t> layers;
  for (int i = 0; i < lora.layers_to_transform_size(); ++i) {
    if (!layers.insert(lora.layers_to_transform(i)).second) {
      return FieldError(StrCat("adapter.lora.layers_to_transform[", i, "]"),
                        StrCat("layer ", lora.layers_to_transform(i), " is given twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckObjective(const v1::JobSpec& spec) {
  const std::string name = ObjectiveName(spec.objective());
  if (name.empty()) return FieldError("objective", "required; choose one, such as {sft: {}} or {kto: {}}");
  if (!spec.objective().has_kto()) return absl::OkStatus();
  const v1::KtoSpec& kto = spec.objective().kto();
  if (!kto.has_kl_group_size()) {
    return FieldError("objective.kto.kl_group_size",
                      "a batch of one example has no other to pair with; raise batch.examples to 2 or more, or set "
                      "kl_group_size to 2 or more");
  }
  if (kto.desirable_weight() == 0 && kto.undesirable_weight() == 0) {
    return FieldError("objective.kto.desirable_weight", "both weights are 0, so nothing would be learned");
  }
  return absl::OkStatus();
}

absl::Status CheckRows(const std::string& source, const std::string& path) {
  if (source.compare(0, kBlobPrefix.size(), kBlobPrefix) != 0) return absl::OkStatus();
  if (IsSha256Hex(std::string_view(source).substr(kBlobPrefix.size()))) return absl::OkStatus();
  return FieldError(path, "expected 64 lower-case hex digits after sha256:");
}

absl::Status CheckData(const v1::JobSpec& spec) {
  const v1::DataSpec& data = spec.data();
  HONE_RETURN_IF_ERROR(CheckRows(data.train(), "data.train"));
  if (!data.has_eval()) return absl::OkStatus();
  HONE_RETURN_IF_ERROR(CheckRows(data.eval(), "data.eval"));
  if (data.eval_fraction() > 0) {
    return FieldError("data.eval_fraction", "data.eval already gives the evaluation rows; set one of the two");
  }
  return absl::OkStatus();
}

// KTO keeps the prompt's tail before it cuts the answer, so the prompt must leave the answer room. The default shrinks
// with max_length; a value the user wrote is never changed.
absl::Status FitPromptLength(v1::JobSpec& spec, bool given) {
  v1::DataSpec& data = *spec.mutable_data();
  if (!spec.objective().has_kto() || data.max_prompt_length() < data.max_length()) return absl::OkStatus();
  if (!given) {
    data.set_max_prompt_length(data.max_length() / 2);
    return absl::OkStatus();
  }
  return FieldError("data.max_prompt_length", StrCat("must be below data.max_length (", data.max_length(), "), got ",
                                                     data.max_prompt_length(), "; the answer needs room"));
}

absl::Status CheckOptimizer(const v1::OptimizerSpec& optimizer) {
  if (optimizer.betas_size() == 2) return absl::OkStatus();
  return FieldError("optimizer.betas",
                    StrCat("expected exactly two numbers, such as [0.9, 0.999], got ", optimizer.betas_size()));
}

absl::Status CheckExport(const v1::JobSpec& spec) {
  std::set<std::string> seen;
  for (int i = 0; i < spec.export__size(); ++i) {
    const std::string& name = spec.export_(i);
    const std::string path = StrCat("export[", i, "]");
    if (!seen.insert(name).second) return FieldError(path, StrCat(Quoted(name), " is given twice"));
    if (std::find(std::begin(kExports), std::end(kExports), name) != std::end(kExports)) continue;
    const std::string close = Closest(name, Strings(kExports));
    return FieldError(
        path, StrCat("unknown format ", Quoted(name), "; ", close.empty() ? "" : StrCat("did you mean ", close, "? "),
                     "known: ", Listed(kExports)));
  }
  if (seen.count("merged") > 0 && seen.count("merged:f32") > 0) {
    return FieldError("export", "merged and merged:f32 go to the same folder; choose one");
  }
  return absl::OkStatus();
}

}  // namespace

bool IsModelPath(std::string_view source) {
  return source.find('/') != std::string_view::npos || source.ends_with(".gguf") || source.starts_with("random:");
}

absl::StatusOr<v1::JobSpec> ResolveSpec(const v1::JobSpec& spec) {
  v1::JobSpec resolved = spec;
  const bool prompt_length_given = spec.data().has_max_prompt_length();
  v1::AdapterSpec& adapter = *resolved.mutable_adapter();
  if (adapter.kind_case() == v1::AdapterSpec::KIND_NOT_SET) adapter.mutable_lora();
  HONE_RETURN_IF_ERROR(ResolveMessage(resolved, ""));
  FillComputed(resolved);
  HONE_RETURN_IF_ERROR(CheckModel(resolved.model()));
  HONE_RETURN_IF_ERROR(CheckLora(resolved.adapter().lora()));
  HONE_RETURN_IF_ERROR(CheckObjective(resolved));
  HONE_RETURN_IF_ERROR(CheckData(resolved));
  HONE_RETURN_IF_ERROR(FitPromptLength(resolved, prompt_length_given));
  HONE_RETURN_IF_ERROR(CheckOptimizer(resolved.optimizer()));
  HONE_RETURN_IF_ERROR(CheckExport(resolved));
  return resolved;
}

std::string CanonicalSpecBytes(const v1::JobSpec& spec) {
  // No maps and no unknown fields in a resolved spec: protobuf's own order is fixed.
  return spec.SerializeAsString();
}

bool SameResolvedSpec(const v1::JobSpec& a, const v1::JobSpec& b) {
  return CanonicalSpecBytes(a) == CanonicalSpecBytes(b);
}

}  // namespace hone
