// Values of the template engine: what a template may hold is JSON's values, undefined, namespaces, loops, macros, bound
// methods and a few functions. There is no way from any of them to anything else.
//
// Lists and dicts are immutable once built (a template can only build new ones) and at most kMaxNesting deep, so that
// freeing them cannot overflow the stack. Namespaces, macros' scopes and loops belong to the rendering; values only
// point to them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/text/jinja_text.h"
#include "nlohmann/json.hpp"

namespace hone::jinja {

class Value;
struct List;
struct Dict;
struct Namespace;  // jinja_eval.h
struct Macro;
struct LoopState;

struct Undefined {
  std::shared_ptr<const std::string> what;  // "'x' is undefined", or null
};
struct None {};
using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;

enum class Builtin : uint8_t {
  kRange,
  kDict,
  kNamespace,
  kRaiseException,
  kStrftimeNow,
  kLoop,
  kLoopCycle,
  kLoopChanged
};
struct BuiltinRef {
  Builtin builtin;
  LoopState* loop = nullptr;
};
struct BoundMethod;  // an object and a method's name

class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, int64_t, double, TextPtr, ListPtr, DictPtr, Namespace*, Macro*,
                               LoopState*, BuiltinRef, std::shared_ptr<const BoundMethod>>;
  Value() : v_(Undefined{}) {}
  template <typename T>
  requires(!std::is_same_v<std::decay_t<T>, Value> && std::is_constructible_v<Variant, T>) Value(T&& v)
      : v_(std::forward<T>(v)) {}

  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(v_);
  }
  template <typename T>
  const T& As() const {
    return std::get<T>(v_);
  }
  bool IsUndefined() const { return Is<Undefined>(); }
  bool IsNone() const { return Is<None>(); }
  bool IsString() const { return Is<TextPtr>(); }
  const Text& text() const { return *As<TextPtr>(); }
  bool IsList() const { return Is<ListPtr>(); }
  bool IsDict() const { return Is<DictPtr>(); }
  const List& list() const { return *As<ListPtr>(); }
  const Dict& dict() const { return *As<DictPtr>(); }
  // Python's bool is an int.
  bool IsInt() const { return Is<int64_t>() || Is<bool>(); }
  int64_t AsInt() const { return Is<bool>() ? As<bool>() : As<int64_t>(); }
  bool IsNumber() const { return IsInt() || Is<double>(); }
  double AsDouble() const { return Is<double>() ? As<double>() : static_cast<double>(AsInt()); }

 private:
  Variant v_;
};

inline constexpr int kMaxNesting = 100;

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion; keys differ
  int depth = 1;
};
struct BoundMethod {
  Value object;
  std::string name;
};

// Both check the nesting.
Value MakeList(std::vector<Value> items, bool tuple = false);
Value MakeDict(std::vector<std::pair<Value, Value>> items);
Value MakeUndefined(std::string what);

std::string_view TypeName(const Value& value);  // Python's: "str", "int", "NoneType", ...
std::string_view UndefinedText(const Value& value);
bool Truth(const Value& value);
bool Equal(const Value& a, const Value& b, Budget* budget);
// Python's a < b; a fault where Python has none for these types.
bool Less(const Value& a, const Value& b, Budget* budget);
const Value* FindKey(const Dict& dict, const Value& key, Budget* budget);
const Value* FindKey(const Dict& dict, std::string_view key, Budget* budget);
bool Hashable(const Value& value);

std::string FloatRepr(double value);
// str(value), and repr(value) appended.
TextPtr ToText(const Value& value, Budget* budget);
void AppendRepr(const Value& value, TextBuilder* out, Budget* budget);

struct JsonStyle {
  std::optional<std::string> indent;  // one level's text
  std::string item_separator, key_separator;
  bool sort_keys = false, ensure_ascii = false;
};
// As Python's json.dumps.
TextPtr ToJson(const Value& value, const JsonStyle& style, Budget* budget);

// JSON of a request. Every string gets `source`. Faults: nesting, integers beyond 64 bits.
Value FromJson(const nlohmann::ordered_json& json, int32_t source);

}  // namespace hone::jinja
