// Methods of strings, dicts and lists, and %-formatting. Those that would change a value are refused, as in jinja2's
// immutable sandbox.
#include <algorithm>
#include <cmath>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"

namespace hone::jinja {

namespace {

bool OneOf(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

bool IsMethodName(const Value& object, std::string_view name) {
  if (object.IsDict()) {
    return OneOf(name, {"items", "keys", "values", "get", "copy", "pop", "popitem", "clear", "update", "setdefault",
                        "fromkeys"});
  }
  if (object.IsList()) {
    if (object.list().tuple) return OneOf(name, {"index", "count"});
    return OneOf(name,
                 {"index", "count", "copy", "append", "extend", "insert", "pop", "remove", "clear", "reverse", "sort"});
  }
  if (!object.IsString()) return false;
  return OneOf(name,
               {"capitalize", "casefold",     "center",       "count",   "encode",     "endswith",    "expandtabs",
                "find",       "format",       "format_map",   "index",   "isalnum",    "isalpha",     "isascii",
                "isdecimal",  "isdigit",      "isidentifier", "islower", "isnumeric",  "isprintable", "isspace",
                "istitle",    "isupper",      "join",         "ljust",   "lower",      "lstrip",      "maketrans",
                "partition",  "removeprefix", "removesuffix", "replace", "rfind",      "rindex",      "rjust",
                "rpartition", "rsplit",       "rstrip",       "split",   "splitlines", "startswith",  "strip",
                "swapcase",   "title",        "translate",    "upper",   "zfill"});
}

Value Evaluator::SliceText(const Text& text, size_t begin, size_t end) {
  TextBuilder out(budget_);
  out.AppendSlice(text, begin, end);
  return out.TakePtr();
}

Value Evaluator::Replace(const Text& text, const Text& from, const Text& to, int64_t count) {
  TextBuilder out(budget_);
  size_t at = 0;
  budget_->SpendBytes(text.bytes.size());
  int64_t left = count < 0 ? INT64_MAX : count;
  if (from.bytes.empty()) {  // before every character and at the end
    for (; left > 0 && at <= text.bytes.size(); --left) {
      out.Append(to);
      if (at == text.bytes.size()) return out.TakePtr();
      const size_t length = CharLength(text.bytes, at);
      out.AppendSlice(text, at, at + length);
      at += length;
    }
    out.AppendSlice(text, at, text.bytes.size());
    return out.TakePtr();
  }
  for (; left > 0; --left) {
    const size_t found = text.bytes.find(from.bytes, at);
    if (found == std::string::npos) break;
    if (found > at) out.AppendSlice(text, at, found);
    out.Append(to);
    at = found + from.bytes.size();
  }
  if (at == 0 || at < text.bytes.size()) out.AppendSlice(text, at, text.bytes.size());
  return out.TakePtr();
}

Value Evaluator::Join(const std::vector<Value>& items, const Text& separator) {
  TextBuilder out(budget_);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(separator);
    out.Append(*Str(items[i]));
  }
  return out.TakePtr();
}

std::vector<ByteRange> Evaluator::SplitLines(const Text& text) {
  budget_->SpendBytes(text.bytes.size());
  std::vector<ByteRange> lines;
  size_t begin = 0;
  for (size_t at = 0, length; at < text.bytes.size(); at += length) {
    length = CharLength(text.bytes, at);
    if (!IsLineEnd(CharAt(text.bytes, at))) continue;
    budget_->Spend(1);
    lines.push_back({begin, at});
    if (text.bytes[at] == '\r' && at + 1 < text.bytes.size() && text.bytes[at + 1] == '\n') ++length;
    begin = at + length;
  }
  if (begin < text.bytes.size()) lines.push_back({begin, text.bytes.size()});
  return lines;
}

namespace {

const Text& TextArgument(const Arguments& arguments, size_t index, std::string_view name, std::string_view of) {
  const Value& value = arguments.Need(index, name, of);
  if (value.IsUndefined()) Fail(UndefinedText(value));
  if (!value.IsString()) Fail(of, "() takes a string, not a ", TypeName(value));
  return value.text();
}

int64_t IntArgument(const Arguments& arguments, size_t index, std::string_view name, int64_t otherwise) {
  const Value* value = arguments.Find(index, name);
  if (value == nullptr) return otherwise;
  if (!value->IsInt()) Fail("the argument '", name, "' must be an integer, not a ", TypeName(*value));
  return value->AsInt();
}

// Any of the prefixes or suffixes: a string or a tuple of them.
bool Affix(const Text& text, const Value& given, bool prefix) {
  if (given.IsString()) {
    return prefix ? text.bytes.starts_with(given.text().bytes) : text.bytes.ends_with(given.text().bytes);
  }
  if (given.IsUndefined()) Fail(UndefinedText(given));
  if (!given.IsList())
    Fail(prefix ? "startswith" : "endswith", "() takes a string or a tuple of strings, not a ", TypeName(given));
  return std::any_of(given.list().items.begin(), given.list().items.end(), [&](const Value& one) {
    if (!one.IsString()) Fail(prefix ? "startswith" : "endswith", "() takes strings, not a ", TypeName(one));
    return Affix(text, one, prefix);
  });
}

bool AllChars(std::string_view bytes, bool (*test)(uint32_t)) {
  if (bytes.empty()) return false;
  for (size_t at = 0; at < bytes.size(); at += CharLength(bytes, at)) {
    if (!test(CharAt(bytes, at))) return false;
  }
  return true;
}

}  // namespace

Value Evaluator::StringMethod(const Value& self, const std::string& name, const Arguments& arguments) {
  const Text& text = self.text();
  budget_->SpendBytes(text.bytes.size());
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Value* chars = arguments.Find(0, "chars");
    if (chars != nullptr && chars->IsNone()) chars = nullptr;
    if (chars != nullptr && !chars->IsString()) Fail(name, "() takes a string, not a ", TypeName(*chars));
    if (chars != nullptr) budget_->Spend((text.bytes.size() / 16 + 1) * (chars->text().bytes.size() / 4 + 1));
    const ByteRange range =
        StripRange(text.bytes, chars != nullptr ? &chars->text().bytes : nullptr, name != "rstrip", name != "lstrip");
    return SliceText(text, range.begin, range.end);
  }
  if (name == "startswith" || name == "endswith")
    return Affix(text, arguments.Need(0, "prefix", name), name == "startswith");
  if (name == "upper") return MapCase(text, CaseMap::kUpper, budget_);
  if (name == "lower" || name == "casefold") return MapCase(text, CaseMap::kLower, budget_);
  if (name == "title") return MapCase(text, CaseMap::kTitle, budget_);
  if (name == "capitalize") return MapCase(text, CaseMap::kCapitalize, budget_);
  if (name == "replace") {
    const Text& from = TextArgument(arguments, 0, "old", name);
    return Replace(text, from, TextArgument(arguments, 1, "new", name), IntArgument(arguments, 2, "count", -1));
  }
  if (name == "join") {
    const std::vector<Value> items = Iterate(arguments.Need(0, "iterable", name));
    for (const Value& item : items) {
      if (!item.IsString()) Fail("join(): expected strings, found a ", TypeName(item));
    }
    return Join(items, text);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& affix = TextArgument(arguments, 0, "prefix", name).bytes;
    const bool prefix = name == "removeprefix";
    if (affix.empty() || !(prefix ? text.bytes.starts_with(affix) : text.bytes.ends_with(affix))) return self;
    return prefix ? SliceText(text, affix.size(), text.bytes.size())
                  : SliceText(text, 0, text.bytes.size() - affix.size());
  }
  if (name == "isspace") return AllChars(text.bytes, IsSpace);
  if (name == "isdigit" || name == "isdecimal" || name == "isnumeric") {
    return AllChars(text.bytes, [](uint32_t c) { return c >= '0' && c <= '9'; });
  }
  if (name == "format") return FormatMethod(text, arguments);
  if (name == "splitlines" || name.find("split") != std::string::npos || name.find("partition") != std::string::npos) {
    return SplitMethod(text, name, arguments);
  }
  return SearchMethod(text, name, arguments);
}

Value Evaluator::SearchMethod(const Text& text, const std::string& name, const Arguments& arguments) {
  if (!OneOf(name, {"find", "rfind", "index", "rindex", "count"}))
    Fail("the string method ", name, "() is not supported");
  const std::string& wanted = TextArgument(arguments, 0, "sub", name).bytes;
  if (arguments.positional.size() > 1) Fail(name, "() with positions is not supported");
  if (name == "count") {
    if (wanted.empty()) return static_cast<int64_t>(CountChars(text.bytes)) + 1;
    int64_t count = 0;
    for (size_t at = 0; (at = text.bytes.find(wanted, at)) != std::string::npos; at += wanted.size()) ++count;
    return count;
  }
  const size_t found = name[0] == 'r' ? text.bytes.rfind(wanted) : text.bytes.find(wanted);
  if (found != std::string::npos)
    return static_cast<int64_t>(CountChars(std::string_view(text.bytes).substr(0, found)));
  if (name.ends_with("index")) Fail(name, "(): the substring is not there");
  return int64_t{-1};
}

namespace {

// Pieces of `bytes` between occurrences of `separator`, at most `limit` cuts (< 0: all), from the left or the right.
std::vector<ByteRange> CutAt(std::string_view bytes, std::string_view separator, int64_t limit, bool right) {
  std::vector<ByteRange> pieces;
  size_t begin = 0, end = bytes.size();
  while (limit < 0 || static_cast<int64_t>(pieces.size()) < limit) {
    if (right && end < separator.size()) break;
    const size_t found = right ? bytes.rfind(separator, end - separator.size()) : bytes.find(separator, begin);
    if (found == std::string_view::npos) break;
    if (right) {
      pieces.push_back({found + separator.size(), end});
      end = found;
    } else {
      pieces.push_back({begin, found});
      begin = found + separator.size();
    }
  }
  pieces.push_back(right ? ByteRange{0, end} : ByteRange{begin, bytes.size()});
  if (right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<ByteRange> CutAtSpace(std::string_view bytes, int64_t limit) {
  std::vector<ByteRange> pieces;
  size_t at = 0;
  while (true) {
    while (at < bytes.size() && IsSpace(CharAt(bytes, at))) at += CharLength(bytes, at);
    if (at >= bytes.size()) return pieces;
    if (limit >= 0 && static_cast<int64_t>(pieces.size()) >= limit) {
      pieces.push_back({at, bytes.size()});
      return pieces;
    }
    const size_t begin = at;
    while (at < bytes.size() && !IsSpace(CharAt(bytes, at))) at += CharLength(bytes, at);
    pieces.push_back({begin, at});
  }
}

}  // namespace

Value Evaluator::SplitMethod(const Text& text, const std::string& name, const Arguments& arguments) {
  std::vector<ByteRange> pieces;
  bool tuple = false;
  if (name == "splitlines") {
    if (Truth(arguments.Get(0, "keepends", false))) Fail("splitlines(keepends) is not supported");
    pieces = SplitLines(text);
  } else if (name == "partition" || name == "rpartition") {
    const std::string& separator = TextArgument(arguments, 0, "sep", name).bytes;
    if (separator.empty()) Fail(name, "(): the separator is empty");
    const size_t found = name == "partition" ? text.bytes.find(separator) : text.bytes.rfind(separator);
    const size_t size = text.bytes.size();
    if (found != std::string::npos) {
      pieces = {{0, found}, {found, found + separator.size()}, {found + separator.size(), size}};
    } else {
      pieces = {{0, name == "partition" ? size : 0}, {0, 0}, {name == "partition" ? size : 0, size}};
    }
    tuple = true;
  } else {
    const Value separator = arguments.Get(0, "sep", None{});
    const int64_t limit = IntArgument(arguments, 1, "maxsplit", -1);
    if (separator.IsNone()) {
      if (name == "rsplit" && limit >= 0) Fail("rsplit(none, maxsplit) is not supported");
      pieces = CutAtSpace(text.bytes, limit);
    } else {
      const std::string& by = TextArgument(arguments, 0, "sep", name).bytes;
      if (by.empty()) Fail(name, "(): the separator is empty");
      pieces = CutAt(text.bytes, by, limit, name == "rsplit");
    }
  }
  budget_->Spend(pieces.size());
  std::vector<Value> items;
  for (const ByteRange& piece : pieces) items.push_back(SliceText(text, piece.begin, piece.end));
  return MakeList(std::move(items), tuple);
}

// str.format with {}, {0} and {name}; no format specifications, attributes or conversions.
Value Evaluator::FormatMethod(const Text& format, const Arguments& arguments) {
  TextBuilder out(budget_);
  const std::string& bytes = format.bytes;
  size_t automatic = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t brace = bytes.find_first_of("{}", at);
    if (brace == std::string::npos || brace > at) out.AppendSlice(format, at, std::min(brace, bytes.size()));
    if (brace == std::string::npos) break;
    if (brace + 1 < bytes.size() && bytes[brace + 1] == bytes[brace]) {
      out.AppendSlice(format, brace, brace + 1);
      at = brace + 2;
      continue;
    }
    const size_t close = bytes.find('}', brace);
    if (bytes[brace] == '}' || close == std::string::npos) Fail("format(): a brace stands alone");
    const std::string field = bytes.substr(brace + 1, close - brace - 1);
    const bool number =
        !field.empty() && field.size() < 6 && field.find_first_not_of("0123456789") == std::string::npos;
    if (field.find_first_of(":!.[{") != std::string::npos)
      Fail("format(): only {}, {0} and {name} are supported, not {", field, "}");
    const size_t index = field.empty() ? automatic++
                         : number      ? static_cast<size_t>(std::stoi(field))
                                       : arguments.positional.size();
    out.Append(*Str(arguments.Need(index, field, "format()")));
    at = close + 1;
  }
  return out.TakePtr();
}

Value Evaluator::FormatPercent(const Text& format, const Value& values) {
  std::vector<Value> items = values.IsList() && values.list().tuple ? values.list().items : std::vector<Value>{values};
  TextBuilder out(budget_);
  size_t next = 0;
  const std::string& bytes = format.bytes;
  for (size_t at = 0; at < bytes.size();) {
    const size_t percent = bytes.find('%', at);
    if (percent == std::string::npos || percent > at) out.AppendSlice(format, at, std::min(percent, bytes.size()));
    if (percent == std::string::npos) break;
    const char kind = percent + 1 < bytes.size() ? bytes[percent + 1] : 0;
    at = percent + 2;
    if (kind == '%') {
      out.Literal("%");
      continue;
    }
    if (kind != 's' && kind != 'd' && kind != 'i' && kind != 'r')
      Fail("only %s, %d, %i, %r and %% are supported in a format");
    if (next >= items.size()) Fail("not enough values for the format");
    const Value& item = items[next++];
    if (kind == 's') {
      out.Append(*Str(item));
    } else if (kind == 'r') {
      AppendRepr(item, &out, budget_);
    } else {
      if (!item.IsInt()) Fail("%", kind, " needs an integer, not a ", TypeName(item));
      out.Literal(std::to_string(item.AsInt()));
    }
  }
  const bool optional = values.IsDict() || (values.IsList() && !values.list().tuple);
  if (next < items.size() && !optional) Fail("not all values were used by the format");
  return out.TakePtr();
}

Value Evaluator::DictMethod(const Value& self, const std::string& name, const Arguments& arguments) {
  const Dict& dict = self.dict();
  budget_->Spend(dict.items.size() + 1);
  if (name == "get") {
    const Value& key = arguments.Need(0, "key", "get()");
    if (!Hashable(key)) Fail("a ", TypeName(key), " cannot be a key");
    const Value* found = FindKey(dict, key, budget_);
    return found != nullptr ? *found : arguments.Get(1, "default", None{});
  }
  if (name == "copy") return self;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items) {
    if (name == "items") items.push_back(MakeList({key, value}, true));
    if (name == "keys") items.push_back(key);
    if (name == "values") items.push_back(value);
  }
  if (OneOf(name, {"items", "keys", "values"})) return MakeList(std::move(items));
  Fail("the method ", name, "() would change a dict: a template may only build new values");
}

Value Evaluator::ListMethod(const Value& self, const std::string& name, const Arguments& arguments) {
  const auto& items = self.list().items;
  if (name == "copy") return self;
  if (name != "index" && name != "count") {
    Fail("the method ", name, "() would change a list: a template may only build new values");
  }
  const Value& wanted = arguments.Need(0, "value", name);
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Equal(items[i], wanted, budget_)) continue;
    if (name == "index") return static_cast<int64_t>(i);
    ++count;
  }
  if (name == "index") Fail("index(): the value is not in the list");
  return count;
}

}  // namespace hone::jinja
