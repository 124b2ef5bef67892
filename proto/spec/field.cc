#include "proto/spec/field.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "proto/base/json.h"
#include "proto/base/status.h"

namespace hone {
namespace {

constexpr size_t kMaxStringBytes = 4096;

struct SizeUnit {
  std::string_view name;
  double bytes;
};
constexpr SizeUnit kSizeUnits[] = {{"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
                                   {"KB", 1e3},     {"MB", 1e6},        {"GB", 1e9},           {"TB", 1e12},
                                   {"B", 1.0}};

// Names of other tools, so that a habit from there gets an answer instead of a riddle.
struct ForeignName {
  std::string_view name;
  std::string_view ours;
};
constexpr ForeignName kForeignNames[] = {
    {"per_device_train_batch_size", "batch.examples"},
    {"gradient_accumulation_steps", "batch.examples"},
    {"batch_size", "batch.examples"},
    {"epochs", "run.num_train_epochs"},
    {"num_epochs", "run.num_train_epochs"},
    {"lr", "optimizer.learning_rate"},
    {"lr_scheduler_type", "schedule.name"},
    {"optim", "optimizer.name"},
    {"rank", "adapter.lora.r"},
    {"lora_r", "adapter.lora.r"},
    {"alpha", "adapter.lora.lora_alpha"},
    {"dropout", "adapter.lora.lora_dropout"},
    {"max_seq_length", "data.max_length"},
    {"sequence_len", "data.max_length"},
    {"model_name_or_path", "model.source"},
    {"base_model", "model.source"},
    {"dataset", "data.train"},
    {"datasets", "data.train"},
    {"load_in_4bit", "model.quantization"},
    {"max_vram", "memory.vram_budget"},
};

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

std::string EnumPrefix(const EnumDescriptor& type) {
  std::string prefix;
  for (char c : type.name()) {
    if (std::isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix.push_back('_');
    prefix.push_back(static_cast<char>(std::toupper(static_cast<unsigned char>(c))));
  }
  return prefix + "_";
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// Paths of all fields with this leaf name, anywhere in the spec below `type`.
void FindLeaf(const Descriptor& type, std::string_view name, const std::string& path, std::vector<std::string>& found) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string here = JoinPath(path, field.name());
    if (field.name() == name) found.push_back(here);
    if (field.message_type() != nullptr) FindLeaf(*field.message_type(), name, here, found);
  }
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += text.empty() ? word : ", " + word;
  return text;
}

}  // namespace

v1::FieldInfo InfoOf(const FieldDescriptor& field) { return field.options().GetExtension(v1::field); }

std::string JoinPath(std::string_view parent, std::string_view name) {
  return parent.empty() ? std::string(name) : StrCat(parent, ".", name);
}

std::string ShortEnumName(const EnumValueDescriptor& value) {
  const std::string prefix = EnumPrefix(*value.type());
  if (value.name().compare(0, prefix.size(), prefix) != 0) return value.name();
  return Lower(std::string_view(value.name()).substr(prefix.size()));
}

const EnumValueDescriptor* FindEnumValue(const EnumDescriptor& type, std::string_view name) {
  for (int i = 0; i < type.value_count(); ++i) {
    const EnumValueDescriptor& value = *type.value(i);
    if (value.number() != 0 && (ShortEnumName(value) == name || value.name() == name)) return &value;
  }
  return nullptr;
}

std::vector<std::string> EnumNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(ShortEnumName(*type.value(i)));
  }
  return names;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), previous(b.size() + 1), current(b.size() + 1);
  std::iota(previous.begin(), previous.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({replace, previous[j] + 1, current[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        current[j] = std::min(current[j], before[j - 2] + 1);
      }
    }
    before.swap(previous);
    previous.swap(current);
  }
  return previous[b.size()];
}

std::string Closest(std::string_view word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return "";  // nobody's typing mistake
  const std::string lower = Lower(word);
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(lower, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string UnknownFieldMessage(const Descriptor& type, std::string_view name) {
  std::vector<std::string> siblings;
  for (int i = 0; i < type.field_count(); ++i) siblings.push_back(type.field(i)->name());
  if (std::string close = Closest(name, siblings); !close.empty()) {
    return StrCat("unknown field; did you mean ", close, "?");
  }
  std::vector<std::string> elsewhere;
  FindLeaf(*type.file()->pool()->FindMessageTypeByName("hone.v1.JobSpec"), name, "", elsewhere);
  if (!elsewhere.empty()) return StrCat("unknown field here; did you mean ", elsewhere.front(), "?");
  for (const ForeignName& foreign : kForeignNames) {
    if (foreign.name == name) return StrCat("unknown field; Hone's name for it is ", foreign.ours);
  }
  if (siblings.empty()) return "unknown field; nothing can be set here";
  return StrCat("unknown field; known here: ", Join(siblings));
}

std::string Expectation(const FieldDescriptor& field) {
  const v1::FieldInfo info = InfoOf(field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM:
      return StrCat("one of ", Join(EnumNames(*field.enum_type())));
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a finite number";
    case FieldDescriptor::CPPTYPE_STRING:
      return "a text";
    case FieldDescriptor::CPPTYPE_UINT32:
      return "a whole number from 0 to 4294967295";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "a mapping";
    default:
      return info.size() ? "a size in whole bytes, such as 20GiB or 500MB" : "a whole number, 0 or more";
  }
}

std::optional<double> ParseDouble(std::string_view text) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<uint64_t> ParseUnsigned(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<uint64_t> ParseSize(std::string_view text) {
  if (std::optional<uint64_t> plain = ParseUnsigned(text)) return plain;
  for (const SizeUnit& unit : kSizeUnits) {
    if (text.size() <= unit.name.size() || text.substr(text.size() - unit.name.size()) != unit.name) continue;
    const std::string_view number = Trim(text.substr(0, text.size() - unit.name.size()));
    const std::optional<double> value = ParseDouble(number);
    if (!value) return std::nullopt;
    const double bytes = *value * unit.bytes;
    if (!(bytes >= 0) || bytes >= 9007199254740992.0 || bytes != std::floor(bytes)) return std::nullopt;
    return static_cast<uint64_t>(bytes);
  }
  return std::nullopt;
}

std::optional<std::string> RangeProblem(const v1::FieldInfo& info, double value) {
  if (!std::isfinite(value)) return StrCat("must be a finite number, got ", value);
  if (info.has_minimum() && info.has_maximum() && info.minimum() == info.maximum() && value != info.minimum()) {
    return StrCat("must be ", info.minimum(), ", got ", value, ". ", info.help());
  }
  if (info.has_minimum() && info.exclusive_minimum() && value <= info.minimum()) {
    return StrCat("must be above ", info.minimum(), ", got ", value);
  }
  if (info.has_minimum() && value < info.minimum()) return StrCat("must be at least ", info.minimum(), ", got ", value);
  if (info.has_maximum() && info.exclusive_maximum() && value >= info.maximum()) {
    return StrCat("must be below ", info.maximum(), ", got ", value);
  }
  if (info.has_maximum() && value > info.maximum()) return StrCat("must be at most ", info.maximum(), ", got ", value);
  return std::nullopt;
}

std::optional<std::string> StringProblem(std::string_view value) {
  size_t offset = 0;
  if (!IsValidUtf8(value, &offset)) return StrCat("not valid UTF-8 at byte ", offset, " of the value");
  if (value.find('\0') != std::string_view::npos) return "must not contain a NUL character";
  if (value.size() > kMaxStringBytes) {
    return StrCat("too long: ", value.size(), " bytes, at most ", kMaxStringBytes);
  }
  return std::nullopt;
}

std::optional<std::string> SetScalarFromText(Message& message, const FieldDescriptor& field, std::string_view text) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const v1::FieldInfo info = InfoOf(field);
  const std::string mismatch = StrCat("expected ", Expectation(field), ", got ", Quoted(text));
  const bool repeated = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING: {
      if (std::optional<std::string> problem = StringProblem(text)) return problem;
      repeated ? reflection.AddString(&message, &field, std::string(text))
               : reflection.SetString(&message, &field, std::string(text));
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      if (text != "true" && text != "false") return mismatch;
      repeated ? reflection.AddBool(&message, &field, text == "true")
               : reflection.SetBool(&message, &field, text == "true");
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const EnumValueDescriptor* value = FindEnumValue(*field.enum_type(), text);
      if (value == nullptr) {
        const std::string close = Closest(text, EnumNames(*field.enum_type()));
        return close.empty() ? mismatch : StrCat(mismatch, "; did you mean ", close, "?");
      }
      repeated ? reflection.AddEnum(&message, &field, value) : reflection.SetEnum(&message, &field, value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const std::optional<double> value = ParseDouble(text);
      if (!value) return mismatch;
      if (std::optional<std::string> problem = RangeProblem(info, *value)) return problem;
      repeated ? reflection.AddDouble(&message, &field, *value) : reflection.SetDouble(&message, &field, *value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64: {
      const bool narrow = field.cpp_type() == FieldDescriptor::CPPTYPE_UINT32;
      const std::optional<uint64_t> value = info.size() ? ParseSize(text) : ParseUnsigned(text);
      if (!value || (narrow && *value > std::numeric_limits<uint32_t>::max())) return mismatch;
      if (std::optional<std::string> problem = RangeProblem(info, static_cast<double>(*value))) return problem;
      if (narrow) {
        repeated ? reflection.AddUInt32(&message, &field, static_cast<uint32_t>(*value))
                 : reflection.SetUInt32(&message, &field, static_cast<uint32_t>(*value));
      } else {
        repeated ? reflection.AddUInt64(&message, &field, *value) : reflection.SetUInt64(&message, &field, *value);
      }
      return std::nullopt;
    }
    default:
      HONE_CHECK(false, "spec.proto uses a field type that proto/spec does not know: ", field.full_name());
  }
  return std::nullopt;
}

std::optional<double> NumericValue(const Message& message, const FieldDescriptor& field, int index) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const bool one = index < 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return one ? reflection.GetDouble(message, &field) : reflection.GetRepeatedDouble(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return one ? reflection.GetUInt32(message, &field) : reflection.GetRepeatedUInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(one ? reflection.GetUInt64(message, &field)
                                     : reflection.GetRepeatedUInt64(message, &field, index));
    default:
      return std::nullopt;
  }
}

std::string ScalarToText(const Message& message, const FieldDescriptor& field, int index) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const bool one = index < 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return one ? reflection.GetString(message, &field) : reflection.GetRepeatedString(message, &field, index);
    case FieldDescriptor::CPPTYPE_BOOL:
      return (one ? reflection.GetBool(message, &field) : reflection.GetRepeatedBool(message, &field, index)) ? "true"
                                                                                                              : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return ShortEnumName(
          *(one ? reflection.GetEnum(message, &field) : reflection.GetRepeatedEnum(message, &field, index)));
    case FieldDescriptor::CPPTYPE_UINT64:
      return StrCat(one ? reflection.GetUInt64(message, &field) : reflection.GetRepeatedUInt64(message, &field, index));
    default:
      return StrCat(*NumericValue(message, field, index));
  }
}

std::string Quoted(std::string_view text) {
  constexpr size_t kMax = 60;
  std::string quoted = "`";
  for (char c : text.substr(0, kMax)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      static constexpr char kHex[] = "0123456789abcdef";
      quoted += StrCat("\\x", kHex[byte >> 4], kHex[byte & 15]);
    } else {
      quoted.push_back(c);
    }
  }
  // Never end inside a character.
  size_t bad = 0;
  if (!IsValidUtf8(quoted, &bad)) quoted.resize(bad);
  return quoted + (text.size() > kMax ? "...`" : "`");
}

}  // namespace hone
