#include "engine/text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "engine/text/jinja_error.h"

namespace hone::jinja {

namespace {

int DepthOf(const Value& value) {
  if (value.IsList()) return value.list().depth;
  if (value.IsDict()) return value.dict().depth;
  if (value.Is<std::shared_ptr<const BoundMethod>>()) {
    const auto& method = value.As<std::shared_ptr<const BoundMethod>>();
    return 1 + DepthOf(method->object);
  }
  return 0;
}

int CheckDepth(int depth) {
  if (depth > kMaxNesting) FailTooMuch("lists and dicts nested more than ", kMaxNesting, " deep");
  return depth;
}

}  // namespace

Value MakeList(std::vector<Value> items, bool tuple) {
  int depth = 1;
  for (const Value& item : items) depth = std::max(depth, 1 + DepthOf(item));
  CheckDepth(depth);
  return ListPtr(std::make_shared<const List>(List{std::move(items), tuple, depth}));
}

Value MakeDict(std::vector<std::pair<Value, Value>> items) {
  int depth = 1;
  for (const auto& [key, item] : items) depth = std::max({depth, 1 + DepthOf(key), 1 + DepthOf(item)});
  CheckDepth(depth);
  return DictPtr(std::make_shared<const Dict>(Dict{std::move(items), depth}));
}

Value MakeUndefined(std::string what) { return Undefined{std::make_shared<const std::string>(std::move(what))}; }

std::string_view TypeName(const Value& value) {
  if (value.IsUndefined()) return "Undefined";
  if (value.IsNone()) return "NoneType";
  if (value.Is<bool>()) return "bool";
  if (value.Is<int64_t>()) return "int";
  if (value.Is<double>()) return "float";
  if (value.IsString()) return "str";
  if (value.IsList()) return value.list().tuple ? "tuple" : "list";
  if (value.IsDict()) return "dict";
  if (value.Is<Namespace*>()) return "Namespace";
  if (value.Is<Macro*>()) return "Macro";
  if (value.Is<LoopState*>()) return "LoopContext";
  return "function";
}

std::string_view UndefinedText(const Value& value) {
  const auto& what = value.As<Undefined>().what;
  return what ? std::string_view(*what) : "the value is undefined";
}

bool Truth(const Value& value) {
  if (value.IsUndefined() || value.IsNone()) return false;
  if (value.Is<bool>()) return value.As<bool>();
  if (value.Is<int64_t>()) return value.As<int64_t>() != 0;
  if (value.Is<double>()) return value.As<double>() != 0;
  if (value.IsString()) return !value.text().bytes.empty();
  if (value.IsList()) return !value.list().items.empty();
  if (value.IsDict()) return !value.dict().items.empty();
  return true;
}

namespace {

// -1, 0, 1, or 2 where a NaN is involved.
int CompareNumbers(const Value& a, const Value& b) {
  if (a.IsInt() && b.IsInt()) return a.AsInt() < b.AsInt() ? -1 : a.AsInt() > b.AsInt();
  if (a.Is<double>() && b.Is<double>()) {
    const double x = a.AsDouble(), y = b.AsDouble();
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
  }
  if (b.Is<double>()) {  // int against float, exactly: long double holds both
    const long double x = static_cast<long double>(a.AsInt()), y = b.AsDouble();
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
  }
  const int flipped = CompareNumbers(b, a);
  return flipped == 2 ? 2 : -flipped;
}

bool EqualDicts(const Dict& a, const Dict& b, Budget* budget) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, item] : a.items) {
    const Value* other = FindKey(b, key, budget);
    if (other == nullptr || !Equal(item, *other, budget)) return false;
  }
  return true;
}

bool EqualLists(const List& a, const List& b, Budget* budget) {
  if (a.tuple != b.tuple || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (!Equal(a.items[i], b.items[i], budget)) return false;
  }
  return true;
}

}  // namespace

bool Equal(const Value& a, const Value& b, Budget* budget) {
  budget->Spend(1);
  if (a.IsNumber() && b.IsNumber()) return CompareNumbers(a, b) == 0;
  if (a.IsString() && b.IsString()) {
    if (a.text().bytes.size() != b.text().bytes.size()) return false;
    budget->SpendBytes(a.text().bytes.size());
    return a.text().bytes == b.text().bytes;
  }
  if (a.IsList() && b.IsList()) return &a.list() == &b.list() || EqualLists(a.list(), b.list(), budget);
  if (a.IsDict() && b.IsDict()) return &a.dict() == &b.dict() || EqualDicts(a.dict(), b.dict(), budget);
  if (a.IsUndefined() || a.IsNone()) return a.IsUndefined() ? b.IsUndefined() : b.IsNone();
  if (a.Is<Namespace*>() && b.Is<Namespace*>()) return a.As<Namespace*>() == b.As<Namespace*>();
  if (a.Is<Macro*>() && b.Is<Macro*>()) return a.As<Macro*>() == b.As<Macro*>();
  return false;
}

bool Less(const Value& a, const Value& b, Budget* budget) {
  budget->Spend(1);
  if (a.IsNumber() && b.IsNumber()) return CompareNumbers(a, b) == -1;
  if (a.IsString() && b.IsString()) {
    budget->SpendBytes(std::min(a.text().bytes.size(), b.text().bytes.size()));
    return a.text().bytes < b.text().bytes;
  }
  if (a.IsList() && b.IsList() && a.list().tuple == b.list().tuple) {
    const auto &x = a.list().items, &y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!Equal(x[i], y[i], budget)) return Less(x[i], y[i], budget);
    }
    return x.size() < y.size();
  }
  if (a.IsUndefined()) Fail(UndefinedText(a));
  if (b.IsUndefined()) Fail(UndefinedText(b));
  Fail("cannot compare '", TypeName(a), "' and '", TypeName(b), "' by order");
}

bool Hashable(const Value& value) {
  if (value.IsDict() || value.Is<Namespace*>()) return false;
  if (!value.IsList()) return true;
  if (!value.list().tuple) return false;
  return std::all_of(value.list().items.begin(), value.list().items.end(), Hashable);
}

const Value* FindKey(const Dict& dict, const Value& key, Budget* budget) {
  if (key.IsString()) return FindKey(dict, key.text().bytes, budget);
  budget->Spend(1 + dict.items.size() / 8);
  for (const auto& [k, item] : dict.items) {
    if (Equal(k, key, budget)) return &item;
  }
  return nullptr;
}

const Value* FindKey(const Dict& dict, std::string_view key, Budget* budget) {
  budget->Spend(1 + dict.items.size() / 8);
  for (const auto& [k, item] : dict.items) {
    if (k.IsString() && k.text().bytes == key) return &item;
  }
  return nullptr;
}

// Python's repr of a float: the shortest digits that read back equal, in scientific notation below 1e-4 and from 1e16.
std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string scientific(buffer, end);
  const size_t e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed).ptr;
  std::string fixed(buffer, end);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

namespace {

void AppendHex(std::string& out, uint32_t c, int digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out.push_back(kDigits[c >> shift & 15]);
}

// Python's repr of a string: single quotes unless it holds only single quotes of the two kinds.
void AppendStringRepr(const Text& text, TextBuilder* out) {
  const bool single = text.bytes.find('\'') != std::string::npos && text.bytes.find('"') == std::string::npos;
  const char quote = single ? '"' : '\'';
  out->Literal({&quote, 1});
  size_t copied = 0;
  for (size_t at = 0, length; at < text.bytes.size(); at += length) {
    length = CharLength(text.bytes, at);
    const uint32_t c = CharAt(text.bytes, at);
    std::string escape;
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      escape = "\\";
      escape.push_back(static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      escape = c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (!IsPrintable(c)) {
      escape = c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
      AppendHex(escape, c, c < 0x100 ? 2 : c < 0x10000 ? 4 : 8);
    } else {
      continue;
    }
    if (copied < at) out->AppendSlice(text, copied, at);
    out->AppendAs(escape, text, at, at + length);
    copied = at + length;
  }
  if (copied < text.bytes.size() || text.bytes.empty()) out->AppendSlice(text, copied, text.bytes.size());
  out->Literal({&quote, 1});
}

}  // namespace

void AppendRepr(const Value& value, TextBuilder* out, Budget* budget) {
  budget->Spend(1);
  if (value.IsString()) return AppendStringRepr(value.text(), out);
  if (value.IsList()) {
    const List& list = value.list();
    out->Literal(list.tuple ? "(" : "[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out->Literal(", ");
      AppendRepr(list.items[i], out, budget);
    }
    out->Literal(list.tuple ? (list.items.size() == 1 ? ",)" : ")") : "]");
    return;
  }
  if (value.IsDict()) {
    out->Literal("{");
    bool first = true;
    for (const auto& [key, item] : value.dict().items) {
      if (!first) out->Literal(", ");
      first = false;
      AppendRepr(key, out, budget);
      out->Literal(": ");
      AppendRepr(item, out, budget);
    }
    out->Literal("}");
    return;
  }
  if (value.IsUndefined()) return out->Literal("Undefined");
  out->Append(*ToText(value, budget));
}

TextPtr ToText(const Value& value, Budget* budget) {
  budget->Spend(1);
  if (value.IsString()) return value.As<TextPtr>();
  if (value.IsUndefined()) return MakeText("");
  if (value.IsNone()) return MakeText("None");
  if (value.Is<bool>()) return MakeText(value.As<bool>() ? "True" : "False");
  if (value.Is<int64_t>()) return MakeText(std::to_string(value.As<int64_t>()));
  if (value.Is<double>()) return MakeText(FloatRepr(value.As<double>()));
  if (value.IsList() || value.IsDict()) {
    TextBuilder out(budget);
    AppendRepr(value, &out, budget);
    return out.TakePtr();
  }
  Fail("a ", TypeName(value), " has no text");
}

namespace {

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Budget* budget) : style_(style), budget_(budget), out_(budget) {}
  void Write(const Value& value, int level) {
    budget_->Spend(1);
    if (value.IsString()) return String(value.text());
    if (value.IsNone()) return out_.Literal("null");
    if (value.Is<bool>()) return out_.Literal(value.As<bool>() ? "true" : "false");
    if (value.Is<int64_t>()) return out_.Literal(std::to_string(value.As<int64_t>()));
    if (value.Is<double>()) return out_.Literal(Number(value.As<double>()));
    if (value.IsList()) return Array(value.list(), level);
    if (value.IsDict()) return Object(value.dict(), level);
    Fail("tojson: a value of type ", TypeName(value), " is not JSON");
  }
  TextPtr Take() { return out_.TakePtr(); }

 private:
  static std::string Number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return FloatRepr(value);
  }
  void NewLine(int level) {
    if (!style_.indent) return;
    out_.Literal("\n");
    for (int i = 0; i < level; ++i) out_.Literal(*style_.indent);
  }
  void Array(const List& list, int level) {
    if (list.items.empty()) return out_.Literal("[]");
    out_.Literal("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_.Literal(style_.item_separator);
      NewLine(level + 1);
      Write(list.items[i], level + 1);
    }
    NewLine(level);
    out_.Literal("]");
  }
  void Object(const Dict& dict, int level) {
    if (dict.items.empty()) return out_.Literal("{}");
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto* a, const auto* b) { return Less(a->first, b->first, budget_); });
    }
    out_.Literal("{");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Literal(style_.item_separator);
      NewLine(level + 1);
      Key(items[i]->first);
      out_.Literal(style_.key_separator);
      Write(items[i]->second, level + 1);
    }
    NewLine(level);
    out_.Literal("}");
  }
  void Key(const Value& key) {
    if (key.IsString()) return String(key.text());
    if (!key.IsNone() && !key.IsNumber()) Fail("tojson: keys must be strings or numbers, not ", TypeName(key));
    out_.Literal("\"");
    Write(key, 0);
    out_.Literal("\"");
  }
  // The escape of c, or empty if it stands for itself.
  std::string Escape(uint32_t c) const {
    switch (c) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\f':
        return "\\f";
      case '\b':
        return "\\b";
      default:
        break;
    }
    std::string out;
    if (c < 0x20 || (style_.ensure_ascii && c >= 0x7f && c < 0x10000)) {
      out = "\\u";
      AppendHex(out, c, 4);
    } else if (style_.ensure_ascii && c >= 0x10000) {
      out = "\\u";
      AppendHex(out, 0xd800 + ((c - 0x10000) >> 10), 4);
      out += "\\u";
      AppendHex(out, 0xdc00 + ((c - 0x10000) & 0x3ff), 4);
    }
    return out;
  }
  void String(const Text& text) {
    out_.Literal("\"");
    size_t copied = 0;
    for (size_t at = 0, length; at < text.bytes.size(); at += length) {
      length = CharLength(text.bytes, at);
      const std::string escape = Escape(CharAt(text.bytes, at));
      if (escape.empty()) continue;
      if (copied < at) out_.AppendSlice(text, copied, at);
      out_.AppendAs(escape, text, at, at + length);
      copied = at + length;
    }
    if (copied < text.bytes.size() || text.bytes.empty()) out_.AppendSlice(text, copied, text.bytes.size());
    out_.Literal("\"");
  }

  const JsonStyle& style_;
  Budget* budget_;
  TextBuilder out_;
};

}  // namespace

TextPtr ToJson(const Value& value, const JsonStyle& style, Budget* budget) {
  JsonWriter writer(style, budget);
  writer.Write(value, 0);
  return writer.Take();
}

namespace {

Value FromJsonAt(const nlohmann::ordered_json& json, int32_t source, int depth) {
  CheckDepth(depth);
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::null:
      return None{};
    case Type::boolean:
      return json.get<bool>();
    case Type::number_integer:
      return json.get<int64_t>();
    case Type::number_unsigned: {
      const uint64_t number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        Fail("the integer ", number, " of the conversation is beyond 64 bits");
      }
      return static_cast<int64_t>(number);
    }
    case Type::number_float:
      return json.get<double>();
    case Type::string:
      return MakeText(json.get_ref<const std::string&>(), source);
    case Type::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(FromJsonAt(item, source, depth + 1));
      return MakeList(std::move(items));
    }
    case Type::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        items.emplace_back(MakeText(key, kOtherData), FromJsonAt(item, source, depth + 1));
      }
      return MakeDict(std::move(items));
    }
    default:
      Fail("the conversation holds a value that is not JSON");
  }
}

}  // namespace

Value FromJson(const nlohmann::ordered_json& json, int32_t source) { return FromJsonAt(json, source, 1); }

}  // namespace hone::jinja
