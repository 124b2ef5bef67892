// Walks a syntax tree and writes text. Everything a template can do is here, in jinja_filters.cc and in
// jinja_methods.cc; all of it spends from one Budget. Throws TemplateFault.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_value.h"

namespace hone::jinja {

// Variables of one block; what is not here is looked for in the parent.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> variables;
  bool captured = false;  // a macro was defined in it or below: it must outlive its block
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Macro {
  const Stmt* stmt = nullptr;
  Scope* scope = nullptr;
  std::string name;
};

struct LoopState {
  ListPtr items;  // null once the loop has ended
  size_t index = 0;
  int depth = 0;
  const Stmt* stmt = nullptr;  // of a recursive loop
  Scope* scope = nullptr;
  std::optional<Value> changed;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or of this name, or null.
  const Value* Find(size_t index, std::string_view name) const;
  Value Get(size_t index, std::string_view name, const Value& otherwise) const;
  const Value& Need(size_t index, std::string_view name, std::string_view of) const;
};

class Evaluator {
 public:
  Evaluator(Budget* budget, std::tm now, int max_call_depth)
      : budget_(budget), now_(now), max_call_depth_(max_call_depth), out_(budget) {}
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  void Define(std::string name, Value value);
  Text Render(const Body& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class DepthGuard;
  class ScopeGuard;

  // Statements.
  Flow RunBody(const Body& body);
  Flow Run(const Stmt& stmt);
  Flow RunIf(const Stmt& stmt);
  Flow RunFor(const Stmt& stmt);
  Flow RunLoop(const Stmt& stmt, const Value& iterable, int depth);
  ListPtr LoopItems(const Stmt& stmt, const Value& iterable);
  void RunSet(const Stmt& stmt);
  void RunMacro(const Stmt& stmt);
  void RunCallBlock(const Stmt& stmt);
  Flow RunWith(const Stmt& stmt);
  TextPtr Capture(const Body& body);
  void Print(const Value& value);

  // Variables.
  void Assign(const Expr& target, const Value& value);
  void SetVariable(const std::string& name, Value value);
  Value Lookup(const std::string& name);
  void CaptureScope(Scope* scope);

  // Expressions.
  Value Eval(const Expr& expr);
  Value EvalInner(const Expr& expr);
  Value EvalDict(const Expr& expr);
  Value EvalArithmetic(const Expr& expr);
  Value EvalCompare(const Expr& expr);
  Value EvalConcat(const Expr& expr);
  Value EvalSlice(const Expr& expr);
  Value EvalCall(const Expr& expr);
  Value EvalFilter(const Expr& expr);
  std::vector<Value> EvalAll(const std::vector<ExprPtr>& exprs);
  Arguments EvalArguments(const Expr& expr);
  bool Compare(const std::string& op, const Value& a, const Value& b);
  bool Contains(const Value& container, const Value& item);
  Value Add(const Value& a, const Value& b);
  Value Multiply(const Value& a, const Value& b);
  Value Numeric(const std::string& op, const Value& a, const Value& b);
  Value FormatPercent(const Text& format, const Value& values);

  Value GetAttribute(const Value& object, const std::string& name);
  Value GetItem(const Value& object, const Value& key);
  std::optional<Value> MethodOrNull(const Value& object, const std::string& name);
  Value LoopAttribute(LoopState* loop, const std::string& name);
  std::vector<Value> Iterate(const Value& value);
  size_t LengthOf(const Value& value);

  Value Call(const Value& callee, const Arguments& arguments);
  Value CallBuiltin(const BuiltinRef& builtin, const Arguments& arguments);
  Value CallMacro(const Macro& macro, const Arguments& arguments, const Value* caller);
  Value CallMethod(const BoundMethod& method, const Arguments& arguments);
  Value Range(const Arguments& arguments);
  Value StrftimeNow(const Arguments& arguments);

  // jinja_methods.cc
  Value StringMethod(const Value& self, const std::string& name, const Arguments& arguments);
  Value SearchMethod(const Text& text, const std::string& name, const Arguments& arguments);
  Value SplitMethod(const Text& text, const std::string& name, const Arguments& arguments);
  Value FormatMethod(const Text& format, const Arguments& arguments);
  Value DictMethod(const Value& self, const std::string& name, const Arguments& arguments);
  Value ListMethod(const Value& self, const std::string& name, const Arguments& arguments);
  Value SliceText(const Text& text, size_t begin, size_t end);
  Value Replace(const Text& text, const Text& from, const Text& to, int64_t count);
  Value Join(const std::vector<Value>& items, const Text& separator);
  std::vector<ByteRange> SplitLines(const Text& text);

  // jinja_filters.cc
  Value ApplyFilter(const std::string& name, const Value& operand, const Arguments& arguments);
  std::optional<Value> TextFilter(const std::string& name, const Value& operand, const Arguments& arguments);
  std::optional<Value> ListFilter(const std::string& name, const Value& operand, const Arguments& arguments);
  std::optional<Value> NumberFilter(const std::string& name, const Value& operand, const Arguments& arguments);
  bool ApplyTest(const std::string& name, const Value& value, const Arguments& arguments);
  std::optional<bool> TypeTest(const std::string& name, const Value& value);
  Value Indent(const Text& text, const Arguments& arguments);
  Value Select(const Value& operand, const Arguments& arguments, bool by_attribute, bool keep);
  Value MapFilter(const Value& operand, const Arguments& arguments);
  Value SortFilter(const Value& operand, const Arguments& arguments);
  Value DictSort(const Value& operand, const Arguments& arguments);
  Value Unique(const Value& operand, const Arguments& arguments);
  Value MinMax(const Value& operand, const Arguments& arguments, bool smallest);
  Value Batch(const Value& operand, const Arguments& arguments);
  Value Sum(const Value& operand, const Arguments& arguments);
  Value Round(const Value& operand, const Arguments& arguments);
  Value ToJsonFilter(const Value& operand, const Arguments& arguments);
  Value AttributePath(const Value& object, const Value& path);
  Value SortKey(const Value& value, bool case_sensitive);

  TextPtr Str(const Value& value) { return ToText(value, budget_); }

  Budget* budget_;
  std::tm now_;
  int max_call_depth_;
  TextBuilder out_;
  Scope top_;
  Scope* scope_ = &top_;
  int depth_ = 0, call_depth_ = 0;
  Value block_value_;  // what a {% filter %} or {% set x | f %} works on
  std::vector<std::unique_ptr<Scope>> scopes_;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Macro>> macros_;
  std::vector<std::unique_ptr<LoopState>> loops_;
};

// Whether Python's type of this value has a method of that name (known here or not).
bool IsMethodName(const Value& object, std::string_view name);

}  // namespace hone::jinja
