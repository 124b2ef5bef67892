// Filters and tests, after the documentation of Jinja 3.1, and arithmetic on numbers.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"

namespace hone::jinja {

namespace {

int64_t IntArgument(const Arguments& arguments, size_t index, std::string_view name, int64_t otherwise) {
  const Value* value = arguments.Find(index, name);
  if (value == nullptr || value->IsNone()) return otherwise;
  if (!value->IsInt()) Fail("the argument '", name, "' must be an integer, not a ", TypeName(*value));
  return value->AsInt();
}

// Runs of letters, numbers and underscores.
int64_t WordCount(const Text& text) {
  int64_t count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.bytes.size(); at += CharLength(text.bytes, at)) {
    const uint32_t c = CharAt(text.bytes, at);
    const bool word = c == '_' || IsLetterOrNumber(c);
    count += word && !inside;
    inside = word;
  }
  return count;
}

int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

int64_t Power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (int64_t left = exponent; left > 0; --left) {
    if (base == 0 || base == 1) return base;
    if (base == -1) return exponent % 2 == 0 ? 1 : -1;
    if (__builtin_mul_overflow(result, base, &result)) Fail("the result of ** is beyond 64 bits");
  }
  return result;
}

Value IntegerArithmetic(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") overflow = __builtin_add_overflow(a, b, &result);
  if (op == "-") overflow = __builtin_sub_overflow(a, b, &result);
  if (op == "*") overflow = __builtin_mul_overflow(a, b, &result);
  if (op == "//" || op == "%" || op == "/") {
    if (b == 0) Fail("division by zero");
    if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
    if (b == -1) {  // the smallest integer has no negative
      if (op == "%") return int64_t{0};
      overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
    } else {
      result = op == "//" ? FloorDivide(a, b) : a - b * FloorDivide(a, b);
    }
  }
  if (op == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    return Power(a, b);
  }
  if (overflow) Fail("the result of ", op, " is beyond 64 bits");
  return result;
}

Value RealArithmetic(const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) Fail("division by zero");
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

}  // namespace

Value Evaluator::Numeric(const std::string& op, const Value& a, const Value& b) {
  if (a.IsUndefined()) Fail(UndefinedText(a));
  if (b.IsUndefined()) Fail(UndefinedText(b));
  if (!a.IsNumber() || !b.IsNumber())
    Fail("unsupported operand types for ", op, ": '", TypeName(a), "' and '", TypeName(b), "'");
  if (a.IsInt() && b.IsInt()) return IntegerArithmetic(op, a.AsInt(), b.AsInt());
  return RealArithmetic(op, a.AsDouble(), b.AsDouble());
}

// --- Filters --------------------------------------------------------------------------------------------------------

Value Evaluator::ApplyFilter(const std::string& name, const Value& operand, const Arguments& arguments) {
  budget_->Spend(1);
  if (name == "default" || name == "d") {
    const bool missing = operand.IsUndefined() || (Truth(arguments.Get(1, "boolean", false)) && !Truth(operand));
    return missing ? arguments.Get(0, "default_value", MakeText("")) : operand;
  }
  if (std::optional<Value> value = TextFilter(name, operand, arguments)) return *value;
  if (std::optional<Value> value = ListFilter(name, operand, arguments)) return *value;
  if (std::optional<Value> value = NumberFilter(name, operand, arguments)) return *value;
  Fail("the filter '", name, "' is not supported");
}

std::optional<Value> Evaluator::TextFilter(const std::string& name, const Value& operand, const Arguments& arguments) {
  if (name == "string" || name == "safe") return Str(operand);
  if (name == "tojson") return ToJsonFilter(operand, arguments);
  if (name == "upper") return MapCase(*Str(operand), CaseMap::kUpper, budget_);
  if (name == "lower") return MapCase(*Str(operand), CaseMap::kLower, budget_);
  if (name == "title") return MapCase(*Str(operand), CaseMap::kJinjaTitle, budget_);
  if (name == "capitalize") return MapCase(*Str(operand), CaseMap::kCapitalize, budget_);
  if (name == "indent") {
    if (!operand.IsString()) Fail("indent needs a string, not a ", TypeName(operand));
    return Indent(operand.text(), arguments);
  }
  if (name == "trim") {
    Arguments chars;
    if (const Value* given = arguments.Find(0, "chars")) chars.positional.push_back(*given);
    return StringMethod(Str(operand), "strip", chars);
  }
  if (name == "replace") {
    const TextPtr from = Str(arguments.Need(0, "old", "replace")), to = Str(arguments.Need(1, "new", "replace"));
    return Replace(*Str(operand), *from, *to, IntArgument(arguments, 2, "count", -1));
  }
  if (name == "format") {
    Value values = MakeList(arguments.positional, true);
    return FormatPercent(*Str(operand), values);
  }
  if (name == "escape" || name == "e") {
    Value text = Str(operand);
    static constexpr std::pair<const char*, const char*> kEscapes[] = {
        {"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
    for (const auto& [from, to] : kEscapes) text = Replace(text.text(), *MakeText(from), *MakeText(to), -1);
    return text;
  }
  if (name == "wordcount") return WordCount(*Str(operand));
  return std::nullopt;
}

Value Evaluator::ToJsonFilter(const Value& operand, const Arguments& arguments) {
  JsonStyle style;
  style.ensure_ascii = Truth(arguments.Get(0, "ensure_ascii", false));
  const Value indent = arguments.Get(1, "indent", None{});
  if (indent.IsString()) style.indent = indent.text().bytes;
  if (indent.IsInt()) {
    if (indent.AsInt() > 64) Fail("tojson: an indent above 64");
    style.indent = std::string(static_cast<size_t>(std::max<int64_t>(0, indent.AsInt())), ' ');
  }
  style.item_separator = style.indent ? "," : ", ";
  style.key_separator = ": ";
  const Value separators = arguments.Get(2, "separators", None{});
  if (separators.IsList() && separators.list().items.size() == 2) {
    style.item_separator = Str(separators.list().items[0])->bytes;
    style.key_separator = Str(separators.list().items[1])->bytes;
  }
  style.sort_keys = Truth(arguments.Get(3, "sort_keys", false));
  return ToJson(operand, style, budget_);
}

Value Evaluator::Indent(const Text& text, const Arguments& arguments) {
  const Value width = arguments.Get(0, "width", int64_t{4});
  const bool first = Truth(arguments.Get(1, "first", false)), blank = Truth(arguments.Get(2, "blank", false));
  TextPtr by;
  if (width.IsString()) {
    by = width.As<TextPtr>();
  } else {
    if (!width.IsInt() || width.AsInt() > 1000) Fail("indent: the width must be a number up to 1000 or a string");
    by = MakeText(std::string(static_cast<size_t>(std::max<int64_t>(0, width.AsInt())), ' '));
  }
  // As Jinja: the text plus a newline, so that one at its end gives a last, empty line.
  std::vector<ByteRange> lines = SplitLines(text);
  if (lines.empty() || lines.back().end != text.bytes.size()) lines.push_back({text.bytes.size(), text.bytes.size()});
  TextBuilder out(budget_);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Literal("\n");
    const bool empty = lines[i].begin == lines[i].end;
    if (i == 0 ? first : (blank || !empty)) out.Append(*by);
    out.AppendSlice(text, lines[i].begin, lines[i].end);
  }
  return out.TakePtr();
}

std::optional<Value> Evaluator::ListFilter(const std::string& name, const Value& operand, const Arguments& arguments) {
  if (name == "length" || name == "count") return static_cast<int64_t>(LengthOf(operand));
  if (name == "list") return MakeList(Iterate(operand));
  if (name == "items") {
    if (operand.IsUndefined()) return MakeList({});
    if (!operand.IsDict()) Fail("items: can only get the items of a mapping, not of a ", TypeName(operand));
    return DictMethod(operand, "items", {});
  }
  if (name == "first" || name == "last") {
    const std::vector<Value> items = Iterate(operand);
    if (items.empty()) return MakeUndefined(StrCat("there is no ", name, " item, the sequence was empty"));
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    std::vector<Value> items = Iterate(operand);
    std::reverse(items.begin(), items.end());
    return operand.IsString() ? Join(items, Text{}) : MakeList(std::move(items));
  }
  if (name == "join") {
    const TextPtr separator = Str(arguments.Get(0, "d", MakeText("")));
    std::vector<Value> items = Iterate(operand);
    if (const Value* attribute = arguments.Find(1, "attribute")) {
      for (Value& item : items) item = AttributePath(item, *attribute);
    }
    return Join(items, *separator);
  }
  if (name == "select" || name == "reject") return Select(operand, arguments, false, name == "select");
  if (name == "selectattr" || name == "rejectattr") return Select(operand, arguments, true, name == "selectattr");
  if (name == "map") return MapFilter(operand, arguments);
  if (name == "sort") return SortFilter(operand, arguments);
  if (name == "dictsort") return DictSort(operand, arguments);
  if (name == "unique") return Unique(operand, arguments);
  if (name == "min" || name == "max") return MinMax(operand, arguments, name == "min");
  if (name == "batch") return Batch(operand, arguments);
  if (name == "sum") return Sum(operand, arguments);
  if (name == "attr") {  // attributes only, never a dict's keys
    const std::string attribute = Str(arguments.Need(0, "name", "attr"))->bytes;
    if (!operand.IsDict()) return GetAttribute(operand, attribute);
    return MethodOrNull(operand, attribute)
        .value_or(MakeUndefined(StrCat("'dict object' has no attribute '", attribute, "'")));
  }
  return std::nullopt;
}

// An attribute of dots and indices, as `attribute=` takes it.
Value Evaluator::AttributePath(const Value& object, const Value& path) {
  if (!path.IsString()) return GetItem(object, path);
  Value at = object;
  const std::string& bytes = path.text().bytes;
  for (size_t begin = 0; begin <= bytes.size();) {
    const size_t dot = std::min(bytes.find('.', begin), bytes.size());
    const std::string part = bytes.substr(begin, dot - begin);
    const bool index = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    at = GetItem(at, index ? Value(static_cast<int64_t>(std::stoll(part))) : Value(MakeText(part)));
    begin = dot + 1;
  }
  return at;
}

Value Evaluator::Select(const Value& operand, const Arguments& arguments, bool by_attribute, bool keep) {
  const size_t skip = by_attribute ? 1 : 0;
  const Value path = by_attribute ? arguments.Need(0, "attribute", "selectattr") : Value();
  std::string test;
  Arguments rest;
  rest.named = arguments.named;
  if (arguments.positional.size() > skip) {
    test = Str(arguments.positional[skip])->bytes;
    rest.positional.assign(arguments.positional.begin() + static_cast<long>(skip) + 1, arguments.positional.end());
  }
  std::vector<Value> kept;
  if (!Truth(operand)) return MakeList({});  // Jinja looks at nothing that is falsy, whatever it is
  for (Value& item : Iterate(operand)) {
    const Value tested = by_attribute ? AttributePath(item, path) : item;
    const bool holds = test.empty() ? Truth(tested) : ApplyTest(test, tested, rest);
    if (holds == keep) kept.push_back(std::move(item));
  }
  return MakeList(std::move(kept));
}

Value Evaluator::MapFilter(const Value& operand, const Arguments& arguments) {
  if (!Truth(operand)) return MakeList({});
  std::vector<Value> items = Iterate(operand);
  const Value* attribute = arguments.positional.empty() ? arguments.Find(0, "attribute") : nullptr;
  if (attribute != nullptr) {
    const Value* otherwise = arguments.Find(SIZE_MAX, "default");
    for (Value& item : items) {
      item = AttributePath(item, *attribute);
      if (otherwise != nullptr && item.IsUndefined()) item = *otherwise;
    }
    return MakeList(std::move(items));
  }
  const std::string name = Str(arguments.Need(0, "filter", "map"))->bytes;
  Arguments rest;
  rest.named = arguments.named;
  rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  if (name == "map" || name == "select" || name == "reject") {
    if (++call_depth_ > max_call_depth_) FailTooMuch("filters inside filters more than ", max_call_depth_, " deep");
  }
  for (Value& item : items) item = ApplyFilter(name, item, rest);
  if (name == "map" || name == "select" || name == "reject") --call_depth_;
  return MakeList(std::move(items));
}

Value Evaluator::SortKey(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.IsString()) return value;
  return MapCase(value.text(), CaseMap::kLower, budget_);
}

Value Evaluator::SortFilter(const Value& operand, const Arguments& arguments) {
  const bool reverse = Truth(arguments.Get(0, "reverse", false));
  const bool case_sensitive = Truth(arguments.Get(1, "case_sensitive", false));
  const Value* attribute = arguments.Find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : Iterate(operand)) {
    const bool by = attribute != nullptr && !attribute->IsNone();
    keyed.emplace_back(SortKey(by ? AttributePath(item, *attribute) : item, case_sensitive), item);
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? Less(b.first, a.first, budget_) : Less(a.first, b.first, budget_);
  });
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return MakeList(std::move(items));
}

Value Evaluator::DictSort(const Value& operand, const Arguments& arguments) {
  if (!operand.IsDict()) Fail("dictsort needs a dict, not a ", TypeName(operand));
  const bool case_sensitive = Truth(arguments.Get(0, "case_sensitive", false));
  const bool by_value = Str(arguments.Get(1, "by", MakeText("key")))->bytes == "value";
  const bool reverse = Truth(arguments.Get(2, "reverse", false));
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : operand.dict().items) {
    keyed.emplace_back(SortKey(by_value ? value : key, case_sensitive), MakeList({key, value}, true));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? Less(b.first, a.first, budget_) : Less(a.first, b.first, budget_);
  });
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return MakeList(std::move(items));
}

Value Evaluator::Unique(const Value& operand, const Arguments& arguments) {
  const bool case_sensitive = Truth(arguments.Get(0, "case_sensitive", false));
  const Value* attribute = arguments.Find(1, "attribute");
  std::vector<Value> keys, items;
  for (Value& item : Iterate(operand)) {
    const Value key = SortKey(attribute != nullptr ? AttributePath(item, *attribute) : item, case_sensitive);
    const bool seen = std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return Equal(k, key, budget_); });
    if (seen) continue;
    keys.push_back(key);
    items.push_back(std::move(item));
  }
  return MakeList(std::move(items));
}

Value Evaluator::MinMax(const Value& operand, const Arguments& arguments, bool smallest) {
  const bool case_sensitive = Truth(arguments.Get(0, "case_sensitive", false));
  const Value* attribute = arguments.Find(1, "attribute");
  std::optional<Value> best, best_key;
  for (Value& item : Iterate(operand)) {
    Value key = SortKey(attribute != nullptr ? AttributePath(item, *attribute) : item, case_sensitive);
    if (best && !(smallest ? Less(key, *best_key, budget_) : Less(*best_key, key, budget_))) continue;
    best_key = std::move(key);
    best = std::move(item);
  }
  return best ? *best : MakeUndefined("no item, the sequence was empty");
}

Value Evaluator::Batch(const Value& operand, const Arguments& arguments) {
  const int64_t size = IntArgument(arguments, 0, "linecount", 0);
  if (size <= 0 || size > 1'000'000) Fail("batch needs a size of at least 1");
  const Value* fill = arguments.Find(1, "fill_with");
  std::vector<Value> batches, batch;
  for (Value& item : Iterate(operand)) {
    batch.push_back(std::move(item));
    if (static_cast<int64_t>(batch.size()) == size) batches.push_back(MakeList(std::exchange(batch, {})));
  }
  if (!batch.empty()) {
    if (fill != nullptr && !fill->IsNone()) {
      budget_->Spend(static_cast<uint64_t>(size));
      batch.resize(static_cast<size_t>(size), *fill);
    }
    batches.push_back(MakeList(std::move(batch)));
  }
  return MakeList(std::move(batches));
}

Value Evaluator::Sum(const Value& operand, const Arguments& arguments) {
  const Value* attribute = arguments.Find(0, "attribute");
  Value total = arguments.Get(1, "start", int64_t{0});
  for (const Value& item : Iterate(operand)) {
    total = Numeric("+", total, attribute != nullptr && !attribute->IsNone() ? AttributePath(item, *attribute) : item);
  }
  return total;
}

Value Evaluator::Round(const Value& operand, const Arguments& arguments) {
  if (!operand.IsNumber()) Fail("round needs a number, not a ", TypeName(operand));
  const int64_t digits = IntArgument(arguments, 0, "precision", 0);
  const std::string method = Str(arguments.Get(1, "method", MakeText("common")))->bytes;
  if (digits < 0 || digits > 17) Fail("round: a precision from 0 to 17 is supported");
  if (operand.IsInt() && method == "common") return operand.AsInt();
  const double value = operand.AsDouble();
  if (method == "common") {  // correctly rounded decimal, ties to even, as Python
    char buffer[400];
    const auto end =
        std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed, static_cast<int>(digits)).ptr;
    double rounded = value;
    std::from_chars(buffer, end, rounded);
    return rounded;
  }
  const double scale = std::pow(10.0, static_cast<double>(digits));
  if (method == "ceil") return std::ceil(value * scale) / scale;
  if (method == "floor") return std::floor(value * scale) / scale;
  Fail("round: the method is common, ceil or floor");
}

std::optional<Value> Evaluator::NumberFilter(const std::string& name, const Value& operand,
                                             const Arguments& arguments) {
  if (name == "abs") {
    if (operand.IsInt()) return operand.AsInt() < 0 ? Numeric("-", int64_t{0}, operand) : Value(operand.AsInt());
    if (operand.Is<double>()) return std::fabs(operand.As<double>());
    Fail("abs needs a number, not a ", TypeName(operand));
  }
  if (name == "round") return Round(operand, arguments);
  if (name == "int" || name == "float") {
    const bool real = name == "float";
    if (operand.IsUndefined()) Fail(UndefinedText(operand));
    const Value otherwise = arguments.Get(0, "default", real ? Value(0.0) : Value(int64_t{0}));
    if (operand.IsNumber()) {
      const double value = operand.AsDouble();
      if (real) return value;
      if (operand.IsInt()) return operand.AsInt();
      if (!(std::fabs(value) < 9e18)) return otherwise;
      return static_cast<int64_t>(value);
    }
    if (!operand.IsString()) return otherwise;
    const std::string& bytes = operand.text().bytes;
    const ByteRange range = StripRange(bytes, nullptr, true, true);
    const char *first = bytes.data() + range.begin, *last = bytes.data() + range.end;
    if (first < last && *first == '+') ++first;
    double value = 0;
    int64_t integer = 0;
    const auto whole = std::from_chars(first, last, integer);
    if (!real && whole.ec == std::errc() && whole.ptr == last) return integer;
    const auto result = std::from_chars(first, last, value);
    if (result.ec != std::errc() || result.ptr != last) return otherwise;
    if (real) return value;
    return std::fabs(value) < 9e18 ? Value(static_cast<int64_t>(value)) : otherwise;
  }
  return std::nullopt;
}

// --- Tests ----------------------------------------------------------------------------------------------------------

std::optional<bool> Evaluator::TypeTest(const std::string& name, const Value& value) {
  if (name == "defined") return !value.IsUndefined();
  if (name == "undefined") return value.IsUndefined();
  if (name == "none") return value.IsNone();
  if (name == "boolean") return value.Is<bool>();
  if (name == "true") return value.Is<bool>() && value.As<bool>();
  if (name == "false") return value.Is<bool>() && !value.As<bool>();
  if (name == "integer") return value.Is<int64_t>();
  if (name == "float") return value.Is<double>();
  if (name == "number") return value.IsNumber();
  if (name == "string") return value.IsString();
  if (name == "mapping") return value.IsDict();
  if (name == "sequence") return value.IsString() || value.IsList() || value.IsDict();
  if (name == "iterable") return value.IsString() || value.IsList() || value.IsDict() || value.IsUndefined();
  if (name == "callable") {
    return value.Is<BuiltinRef>() || value.Is<Macro*>() || value.Is<std::shared_ptr<const BoundMethod>>() ||
           value.Is<LoopState*>();
  }
  if (name == "lower" || name == "upper") {
    const TextPtr text = Str(value);
    bool cased = false;
    for (size_t at = 0; at < text->bytes.size(); at += CharLength(text->bytes, at))
      cased |= IsCased(CharAt(text->bytes, at));
    return cased && MapCase(*text, name == "lower" ? CaseMap::kLower : CaseMap::kUpper, budget_)->bytes == text->bytes;
  }
  return std::nullopt;
}

bool Evaluator::ApplyTest(const std::string& name, const Value& value, const Arguments& arguments) {
  budget_->Spend(1);
  if (std::optional<bool> result = TypeTest(name, value)) return *result;
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const Value by = name == "divisibleby" ? arguments.Need(0, "num", name) : Value(int64_t{2});
    const Value rest = Numeric("%", value, by);
    return Equal(rest, name == "odd" ? int64_t{1} : int64_t{0}, budget_);
  }
  static constexpr std::pair<std::string_view, std::string_view> kComparisons[] = {
      {"eq", "=="},      {"equalto", "=="}, {"==", "=="}, {"ne", "!="}, {"!=", "!="}, {"lt", "<"},
      {"lessthan", "<"}, {"<", "<"},        {"le", "<="}, {"<=", "<="}, {"gt", ">"},  {"greaterthan", ">"},
      {">", ">"},        {"ge", ">="},      {">=", ">="}, {"in", "in"}};
  for (const auto& [test, op] : kComparisons) {
    if (name == test) return Compare(std::string(op), value, arguments.Need(0, "other", name));
  }
  if (name == "sameas") {
    const Value& other = arguments.Need(0, "other", name);
    return TypeName(value) == TypeName(other) && Equal(value, other, budget_);
  }
  Fail("the test '", name, "' is not supported");
}

}  // namespace hone::jinja
