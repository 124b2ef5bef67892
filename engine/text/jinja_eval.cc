#include "engine/text/jinja_eval.h"

#include <algorithm>
#include <array>

#include "engine/text/jinja_error.h"

namespace hone::jinja {

namespace {

constexpr int kMaxEvalDepth = 1500;
constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox

}  // namespace

// --- Arguments ------------------------------------------------------------------------------------------------------

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

Value Arguments::Get(size_t index, std::string_view name, Value otherwise) const {
  const Value* found = Find(index, name);
  return found != nullptr ? *found : otherwise;
}

const Value& Arguments::Need(size_t index, std::string_view name, std::string_view of) const {
  const Value* found = Find(index, name);
  if (found == nullptr) Fail(of, " needs the argument '", name, "'");
  return *found;
}

// --- Scopes ---------------------------------------------------------------------------------------------------------

class Evaluator::DepthGuard {
 public:
  DepthGuard(Evaluator* self, int line) : self_(self) {
    if (++self_->depth_ > kMaxEvalDepth) {
      throw TemplateFault(Fault::kTooMuch, line, "blocks, expressions and macros are nested too deep");
    }
  }
  ~DepthGuard() { --self_->depth_; }

 private:
  Evaluator* self_;
};

// A new innermost scope. One that a macro captured stays until the rendering ends.
class Evaluator::ScopeGuard {
 public:
  ScopeGuard(Evaluator* self, Scope* parent) : self_(self), before_(self->scope_), scope_(std::make_unique<Scope>()) {
    scope_->parent = parent;
    self_->scope_ = scope_.get();
  }
  ~ScopeGuard() {
    self_->scope_ = before_;
    if (scope_->captured) self_->scopes_.push_back(std::move(scope_));
  }

 private:
  Evaluator* self_;
  Scope* before_;
  std::unique_ptr<Scope> scope_;
};

Evaluator::~Evaluator() = default;

void Evaluator::Define(std::string name, Value value) { top_.variables.emplace_back(std::move(name), std::move(value)); }

void Evaluator::CaptureScope(Scope* scope) {
  for (; scope != nullptr && !scope->captured; scope = scope->parent) {
    scope->captured = true;
    budget_->Spend(64);
  }
}

void Evaluator::SetVariable(const std::string& name, Value value) {
  budget_->Spend(1);
  for (auto& [key, held] : scope_->variables) {
    if (key != name) continue;
    held = std::move(value);
    return;
  }
  budget_->Spend(1 + scope_->variables.size() / 16);
  scope_->variables.emplace_back(name, std::move(value));
}

Value Evaluator::Lookup(const std::string& name) {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    budget_->Spend(1 + scope->variables.size() / 16);
    for (const auto& [key, value] : scope->variables) {
      if (key == name) return value;
    }
  }
  if (name == "range") return BuiltinRef{Builtin::kRange};
  if (name == "dict") return BuiltinRef{Builtin::kDict};
  if (name == "namespace") return BuiltinRef{Builtin::kNamespace};
  if (name == "raise_exception") return BuiltinRef{Builtin::kRaiseException};
  if (name == "strftime_now") return BuiltinRef{Builtin::kStrftimeNow};
  return MakeUndefined(StrCat("'", name, "' is undefined"));
}

void Evaluator::Assign(const Expr& target, const Value& value) {
  if (target.kind == ExprKind::kName) return SetVariable(target.name, value);
  if (target.kind == ExprKind::kAttribute) {
    const Value object = Eval(*target.items[0]);
    if (!object.Is<Namespace*>()) Fail("only a namespace's attributes can be assigned, not those of a ", TypeName(object));
    for (auto& [key, held] : object.As<Namespace*>()->attributes) {
      if (key != target.name) continue;
      held = value;
      return;
    }
    budget_->Spend(1 + object.As<Namespace*>()->attributes.size() / 16);
    object.As<Namespace*>()->attributes.emplace_back(target.name, value);
    return;
  }
  const std::vector<Value> parts = Iterate(value);
  if (parts.size() != target.items.size()) {
    Fail("expected ", target.items.size(), " values to unpack, got ", parts.size());
  }
  for (size_t i = 0; i < parts.size(); ++i) Assign(*target.items[i], parts[i]);
}

// --- Statements -----------------------------------------------------------------------------------------------------

Text Evaluator::Render(const Body& body) {
  RunBody(body);
  return out_.Take();
}

Evaluator::Flow Evaluator::RunBody(const Body& body) {
  for (const StmtPtr& stmt : body) {
    const Flow flow = Run(*stmt);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::Run(const Stmt& stmt) {
  DepthGuard guard(this, stmt.line);
  try {
    budget_->Spend(1);
    switch (stmt.kind) {
      case StmtKind::kData: out_.Append(*stmt.text); return Flow::kNext;
      case StmtKind::kPrint: Print(Eval(*stmt.expr)); return Flow::kNext;
      case StmtKind::kIf: return RunIf(stmt);
      case StmtKind::kFor: return RunFor(stmt);
      case StmtKind::kSet:
      case StmtKind::kSetBlock: RunSet(stmt); return Flow::kNext;
      case StmtKind::kMacro: RunMacro(stmt); return Flow::kNext;
      case StmtKind::kCall: RunCallBlock(stmt); return Flow::kNext;
      case StmtKind::kFilter:
        block_value_ = Capture(stmt.body);
        Print(Eval(*stmt.expr));
        return Flow::kNext;
      case StmtKind::kWith: return RunWith(stmt);
      case StmtKind::kScope: out_.Append(*Capture(stmt.body)); return Flow::kNext;
      case StmtKind::kBreak: return Flow::kBreak;
      case StmtKind::kContinue: return Flow::kContinue;
    }
  } catch (TemplateFault& fault) {
    if (fault.line == 0) fault.line = stmt.line;
    throw;
  }
  return Flow::kNext;
}

void Evaluator::Print(const Value& value) { out_.Append(*Str(value)); }

Evaluator::Flow Evaluator::RunIf(const Stmt& stmt) {
  for (const auto& [condition, body] : stmt.branches) {
    if (!condition || Truth(Eval(*condition))) return RunBody(body);
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::RunFor(const Stmt& stmt) {
  return RunLoop(stmt, Eval(*stmt.expr), 0);
}

ListPtr Evaluator::LoopItems(const Stmt& stmt, const Value& iterable) {
  if (!stmt.condition && iterable.IsList()) return iterable.As<ListPtr>();
  List kept;
  for (Value& item : Iterate(iterable)) {
    if (stmt.condition) {
      ScopeGuard scope(this, scope_);
      Assign(*stmt.target, item);
      if (!Truth(Eval(*stmt.condition))) continue;
    }
    kept.items.push_back(std::move(item));
  }
  return std::make_shared<const List>(std::move(kept));
}

// A break or continue in the else part is the enclosing loop's.
Evaluator::Flow Evaluator::RunLoop(const Stmt& stmt, const Value& iterable, int depth) {
  budget_->Spend(16);
  loops_.push_back(std::make_unique<LoopState>());
  LoopState* loop = loops_.back().get();
  loop->items = LoopItems(stmt, iterable);
  loop->depth = depth;
  loop->scope = scope_;
  if (stmt.recursive) {
    loop->stmt = &stmt;
    CaptureScope(scope_);
  }
  const ListPtr items = loop->items;
  bool broken = false;
  for (size_t i = 0; i < items->items.size() && !broken; ++i) {
    budget_->Spend(1);
    loop->index = i;
    ScopeGuard scope(this, loop->scope);
    SetVariable("loop", loop);
    Assign(*stmt.target, items->items[i]);
    broken = RunBody(stmt.body) == Flow::kBreak;
  }
  loop->items = nullptr;
  if (!items->items.empty()) return Flow::kNext;
  ScopeGuard scope(this, loop->scope);
  return RunBody(stmt.else_body);
}

void Evaluator::RunSet(const Stmt& stmt) {
  if (stmt.kind == StmtKind::kSet) return Assign(*stmt.target, Eval(*stmt.expr));
  Value value = Capture(stmt.body);
  if (stmt.expr) {
    block_value_ = value;
    value = Eval(*stmt.expr);
  }
  Assign(*stmt.target, value);
}

TextPtr Evaluator::Capture(const Body& body) {
  TextBuilder outer = std::exchange(out_, TextBuilder(budget_));
  ScopeGuard scope(this, scope_);
  RunBody(body);
  return std::exchange(out_, std::move(outer)).TakePtr();
}

void Evaluator::RunMacro(const Stmt& stmt) {
  CaptureScope(scope_);
  budget_->Spend(16);
  macros_.push_back(std::make_unique<Macro>(Macro{&stmt, scope_, stmt.name}));
  SetVariable(stmt.name, macros_.back().get());
}

void Evaluator::RunCallBlock(const Stmt& stmt) {
  CaptureScope(scope_);
  budget_->Spend(16);
  macros_.push_back(std::make_unique<Macro>(Macro{&stmt, scope_, "caller"}));
  const Value caller = macros_.back().get();
  const Value callee = Eval(*stmt.expr->items[0]);
  if (!callee.Is<Macro*>()) Fail("{% call %} needs a macro, not a ", TypeName(callee));
  Print(CallMacro(*callee.As<Macro*>(), EvalArguments(*stmt.expr), &caller));
}

Evaluator::Flow Evaluator::RunWith(const Stmt& stmt) {
  std::vector<Value> values;
  for (const auto& [name, expr] : stmt.parameters) values.push_back(Eval(*expr));
  ScopeGuard scope(this, scope_);
  for (size_t i = 0; i < values.size(); ++i) SetVariable(stmt.parameters[i].first, values[i]);
  return RunBody(stmt.body);
}

// --- Expressions ----------------------------------------------------------------------------------------------------

Value Evaluator::Eval(const Expr& expr) {
  DepthGuard guard(this, expr.line);
  budget_->Spend(1);
  try {
    return EvalInner(expr);
  } catch (TemplateFault& fault) {
    if (fault.line == 0) fault.line = expr.line;
    throw;
  }
}

Value Evaluator::EvalInner(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kConst: return expr.value;
    case ExprKind::kName: return Lookup(expr.name);
    case ExprKind::kList: return MakeList(EvalAll(expr.items));
    case ExprKind::kTuple: return MakeList(EvalAll(expr.items), true);
    case ExprKind::kDict: return EvalDict(expr);
    case ExprKind::kAttribute: return GetAttribute(Eval(*expr.items[0]), expr.name);
    case ExprKind::kSubscript: {
      const Value object = Eval(*expr.items[0]);
      return GetItem(object, Eval(*expr.items[1]));
    }
    case ExprKind::kSlice: return EvalSlice(expr);
    case ExprKind::kCall: return EvalCall(expr);
    case ExprKind::kFilter: return EvalFilter(expr);
    case ExprKind::kTest: {
      const Value value = Eval(*expr.items[0]);
      return ApplyTest(expr.name, value, EvalArguments(expr));
    }
    case ExprKind::kNot: return !Truth(Eval(*expr.items[0]));
    case ExprKind::kNegate: {
      const Value value = Eval(*expr.items[0]);
      return value.Is<double>() ? Value(-value.As<double>()) : Numeric("-", int64_t{0}, value);
    }
    case ExprKind::kPlus: return Numeric("+", int64_t{0}, Eval(*expr.items[0]));
    case ExprKind::kAnd: {
      Value left = Eval(*expr.items[0]);
      return Truth(left) ? Eval(*expr.items[1]) : left;
    }
    case ExprKind::kOr: {
      Value left = Eval(*expr.items[0]);
      return Truth(left) ? left : Eval(*expr.items[1]);
    }
    case ExprKind::kArithmetic: return EvalArithmetic(expr);
    case ExprKind::kConcat: return EvalConcat(expr);
    case ExprKind::kCompare: return EvalCompare(expr);
    case ExprKind::kConditional: {
      if (Truth(Eval(*expr.items[1]))) return Eval(*expr.items[0]);
      if (expr.items[2]) return Eval(*expr.items[2]);
      return MakeUndefined("the inline if-expression evaluated to false and no else section was defined");
    }
  }
  Fail("an expression of unknown kind");
}

std::vector<Value> Evaluator::EvalAll(const std::vector<ExprPtr>& exprs) {
  std::vector<Value> values;
  values.reserve(exprs.size());
  for (const ExprPtr& expr : exprs) values.push_back(Eval(*expr));
  return values;
}

Value Evaluator::EvalDict(const Expr& expr) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < expr.items.size(); i += 2) {
    Value key = Eval(*expr.items[i]);
    if (!Hashable(key)) Fail("a ", TypeName(key), " cannot be a key");
    Value value = Eval(*expr.items[i + 1]);
    auto same = std::find_if(items.begin(), items.end(), [&](const auto& item) { return Equal(item.first, key, budget_); });
    if (same != items.end()) {
      same->second = std::move(value);
    } else {
      items.emplace_back(std::move(key), std::move(value));
    }
  }
  return MakeDict(std::move(items));
}

Value Evaluator::EvalArithmetic(const Expr& expr) {
  const Value a = Eval(*expr.items[0]), b = Eval(*expr.items[1]);
  if (a.IsUndefined()) Fail(UndefinedText(a));
  if (b.IsUndefined()) Fail(UndefinedText(b));
  if (expr.name == "+") return Add(a, b);
  if (expr.name == "*") return Multiply(a, b);
  if (expr.name == "%" && a.IsString()) return FormatPercent(a.text(), b);
  return Numeric(expr.name, a, b);
}

Value Evaluator::Add(const Value& a, const Value& b) {
  if (a.IsString() && b.IsString()) {
    TextBuilder out(budget_);
    out.Append(a.text());
    out.Append(b.text());
    return out.TakePtr();
  }
  if (a.IsList() && b.IsList() && a.list().tuple == b.list().tuple) {
    budget_->Spend(a.list().items.size() + b.list().items.size());
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return MakeList(std::move(items), a.list().tuple);
  }
  if (a.IsString()) Fail("can only concatenate str (not \"", TypeName(b), "\") to str");
  return Numeric("+", a, b);
}

Value Evaluator::Multiply(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) return Numeric("*", a, b);
  const bool left = a.IsString() || a.IsList();
  const Value &sequence = left ? a : b, &count = left ? b : a;
  if (!count.IsInt() || (!sequence.IsString() && !sequence.IsList())) return Numeric("*", a, b);
  const int64_t times = std::max<int64_t>(0, count.AsInt());
  if (sequence.IsString()) {
    const uint64_t size = sequence.text().bytes.size();
    if (size > 0 && static_cast<uint64_t>(times) > budget_->max_bytes() / size) budget_->CheckSize(~uint64_t{0});
    TextBuilder out(budget_);
    for (int64_t i = 0; i < (size == 0 ? 0 : times); ++i) out.Append(sequence.text());
    return out.TakePtr();
  }
  std::vector<Value> items;
  const auto& source = sequence.list().items;
  for (int64_t i = 0; i < (source.empty() ? 0 : times); ++i) {
    budget_->Spend(source.size());
    items.insert(items.end(), source.begin(), source.end());
  }
  return MakeList(std::move(items), sequence.list().tuple);
}

Value Evaluator::EvalConcat(const Expr& expr) {
  TextBuilder out(budget_);
  for (const ExprPtr& item : expr.items) out.Append(*Str(Eval(*item)));
  return out.TakePtr();
}

Value Evaluator::EvalCompare(const Expr& expr) {
  Value left = Eval(*expr.items[0]);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = Eval(*expr.items[i + 1]);
    if (!Compare(expr.operators[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

bool Evaluator::Compare(const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return Equal(a, b, budget_);
  if (op == "!=") return !Equal(a, b, budget_);
  if (op == "in") return Contains(b, a);
  if (op == "not in") return !Contains(b, a);
  if (op == "<") return Less(a, b, budget_);
  if (op == ">") return Less(b, a, budget_);
  if (op == "<=") return Less(a, b, budget_) || Equal(a, b, budget_);
  return Less(b, a, budget_) || Equal(a, b, budget_);
}

bool Evaluator::Contains(const Value& container, const Value& item) {
  if (container.IsString()) {
    if (!item.IsString()) Fail("'in' with a string on the right needs one on the left, not ", TypeName(item));
    budget_->SpendBytes(container.text().bytes.size());
    return container.text().bytes.find(item.text().bytes) != std::string::npos;
  }
  if (container.IsDict()) {
    if (!Hashable(item)) Fail("a ", TypeName(item), " cannot be a key");
    return FindKey(container.dict(), item, budget_) != nullptr;
  }
  if (container.IsUndefined()) return false;
  if (!container.IsList()) Fail("argument of type '", TypeName(container), "' is not iterable");
  for (const Value& held : container.list().items) {
    if (Equal(held, item, budget_)) return true;
  }
  return false;
}

// Python's slice.indices for a sequence of `length`.
Value Evaluator::EvalSlice(const Expr& expr) {
  const Value object = Eval(*expr.items[0]);
  std::array<std::optional<int64_t>, 3> given;
  for (size_t i = 0; i < 3; ++i) {
    if (!expr.items[i + 1]) continue;
    const Value part = Eval(*expr.items[i + 1]);
    if (part.IsNone()) continue;
    if (!part.IsInt()) Fail("slice indices must be integers or none, not ", TypeName(part));
    given[i] = part.AsInt();
  }
  if (object.IsUndefined()) Fail(UndefinedText(object));
  if (!object.IsString() && !object.IsList()) return MakeUndefined(StrCat("a ", TypeName(object), " cannot be sliced"));
  const int64_t step = given[2].value_or(1);
  if (step == 0) Fail("the step of a slice cannot be 0");
  const auto length = static_cast<int64_t>(LengthOf(object));
  const int64_t low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length;
  auto clamp = [&](int64_t index) {
    if (index < 0) index = index < -length ? low - 1 : index + length;  // below low: clamped next
    return std::clamp(index, low, std::max(low, high));
  };
  const int64_t start = given[0] ? clamp(*given[0]) : (step < 0 ? high : low);
  const int64_t stop = given[1] ? clamp(*given[1]) : (step < 0 ? low : high);
  budget_->Spend(1 + static_cast<uint64_t>(length) / 16);
  if (object.IsString() && step == 1) {
    const Text& text = object.text();
    const size_t begin = ByteOfChar(text.bytes, static_cast<size_t>(start));
    const size_t end = begin + ByteOfChar(std::string_view(text.bytes).substr(begin), static_cast<size_t>(std::max<int64_t>(0, stop - start)));
    return SliceText(text, begin, end);
  }
  std::vector<int64_t> indices;
  const int64_t count = step > 0 ? (stop > start ? (stop - start - 1) / step + 1 : 0)
                                 : (start > stop ? (start - stop - 1) / -(step + (step == INT64_MIN)) + 1 : 0);
  budget_->Spend(static_cast<uint64_t>(count));
  for (int64_t i = 0; i < count; ++i) indices.push_back(start + i * step);
  if (object.IsString()) {
    const Text& text = object.text();
    std::vector<size_t> starts;
    for (size_t at = 0; at < text.bytes.size(); at += CharLength(text.bytes, at)) starts.push_back(at);
    starts.push_back(text.bytes.size());
    budget_->Spend(starts.size());
    TextBuilder out(budget_);
    for (int64_t i : indices) out.AppendSlice(text, starts[static_cast<size_t>(i)], starts[static_cast<size_t>(i) + 1]);
    return out.TakePtr();
  }
  std::vector<Value> items;
  for (int64_t i : indices) items.push_back(object.list().items[static_cast<size_t>(i)]);
  return MakeList(std::move(items), object.list().tuple);
}

Arguments Evaluator::EvalArguments(const Expr& expr) {
  Arguments arguments;
  arguments.positional = EvalAll(expr.arguments);
  for (const auto& [name, value] : expr.keywords) arguments.named.emplace_back(name, Eval(*value));
  return arguments;
}

Value Evaluator::EvalCall(const Expr& expr) {
  const Value callee = Eval(*expr.items[0]);
  return Call(callee, EvalArguments(expr));
}

Value Evaluator::EvalFilter(const Expr& expr) {
  const Value operand = expr.items[0] ? Eval(*expr.items[0]) : block_value_;
  return ApplyFilter(expr.name, operand, EvalArguments(expr));
}

// --- Attributes and items -------------------------------------------------------------------------------------------

std::optional<Value> Evaluator::MethodOrNull(const Value& object, const std::string& name) {
  if (!IsMethodName(object, name)) return std::nullopt;
  return Value(std::make_shared<const BoundMethod>(BoundMethod{object, name}));
}

Value Evaluator::GetAttribute(const Value& object, const std::string& name) {
  if (object.IsUndefined()) Fail(UndefinedText(object));
  if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) {
    return MakeUndefined(StrCat("access to attribute '", name, "' of a ", TypeName(object), " is not allowed"));
  }
  if (object.Is<LoopState*>()) return LoopAttribute(object.As<LoopState*>(), name);
  if (object.Is<Namespace*>()) {
    for (const auto& [key, value] : object.As<Namespace*>()->attributes) {
      if (key == name) return value;
    }
  }
  if (std::optional<Value> method = MethodOrNull(object, name)) return *method;
  if (object.IsDict()) {
    if (const Value* value = FindKey(object.dict(), name, budget_)) return *value;
  }
  return MakeUndefined(StrCat("'", TypeName(object), " object' has no attribute '", name, "'"));
}

Value Evaluator::GetItem(const Value& object, const Value& key) {
  if (object.IsUndefined()) Fail(UndefinedText(object));
  if (object.IsDict() && Hashable(key)) {
    if (const Value* value = FindKey(object.dict(), key, budget_)) return *value;
  }
  if ((object.IsList() || object.IsString()) && key.IsInt()) {
    const auto length = static_cast<int64_t>(LengthOf(object));
    const int64_t index = key.AsInt() < 0 ? key.AsInt() + length : key.AsInt();
    if (index >= 0 && index < length) {
      if (object.IsList()) return object.list().items[static_cast<size_t>(index)];
      budget_->SpendBytes(object.text().bytes.size());
      const size_t at = ByteOfChar(object.text().bytes, static_cast<size_t>(index));
      return SliceText(object.text(), at, at + CharLength(object.text().bytes, at));
    }
    return MakeUndefined(StrCat("'", TypeName(object), " object' has no element ", key.AsInt()));
  }
  if (!key.IsString()) return MakeUndefined(StrCat("'", TypeName(object), " object' has no such element"));
  const std::string& name = key.text().bytes;
  if (object.IsDict()) {
    if (std::optional<Value> method = MethodOrNull(object, name)) return *method;
    return MakeUndefined(StrCat("'dict object' has no attribute '", name, "'"));
  }
  return GetAttribute(object, name);
}

Value Evaluator::LoopAttribute(LoopState* loop, const std::string& name) {
  if (!loop->items) Fail("'loop' is used after its loop has ended");
  const auto index = static_cast<int64_t>(loop->index), length = static_cast<int64_t>(loop->items->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return length - index;
  if (name == "revindex0") return length - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == length;
  if (name == "length") return length;
  if (name == "depth") return int64_t{loop->depth} + 1;
  if (name == "depth0") return int64_t{loop->depth};
  if (name == "previtem") return index > 0 ? loop->items->items[loop->index - 1] : MakeUndefined("there is no previous item");
  if (name == "nextitem") {
    return index + 1 < length ? loop->items->items[loop->index + 1] : MakeUndefined("there is no next item");
  }
  if (name == "cycle") return BuiltinRef{Builtin::kLoopCycle, loop};
  if (name == "changed") return BuiltinRef{Builtin::kLoopChanged, loop};
  return MakeUndefined(StrCat("'loop' has no attribute '", name, "'"));
}

std::vector<Value> Evaluator::Iterate(const Value& value) {
  if (value.IsList()) {
    budget_->Spend(value.list().items.size());
    return value.list().items;
  }
  std::vector<Value> items;
  if (value.IsUndefined()) return items;
  if (value.IsDict()) {
    budget_->Spend(value.dict().items.size());
    for (const auto& [key, item] : value.dict().items) items.push_back(key);
    return items;
  }
  if (value.IsString()) {
    const Text& text = value.text();
    for (size_t at = 0, length; at < text.bytes.size(); at += length) {
      length = CharLength(text.bytes, at);
      items.push_back(SliceText(text, at, at + length));
    }
    return items;
  }
  Fail("'", TypeName(value), "' object is not iterable");
}

size_t Evaluator::LengthOf(const Value& value) {
  if (value.IsString()) {
    budget_->SpendBytes(value.text().bytes.size());
    return CountChars(value.text().bytes);
  }
  if (value.IsList()) return value.list().items.size();
  if (value.IsDict()) return value.dict().items.size();
  if (value.IsUndefined()) return 0;
  Fail("a ", TypeName(value), " has no length");
}

// --- Calls ----------------------------------------------------------------------------------------------------------

Value Evaluator::Call(const Value& callee, const Arguments& arguments) {
  if (callee.IsUndefined()) Fail(UndefinedText(callee));
  if (callee.Is<BuiltinRef>()) return CallBuiltin(callee.As<BuiltinRef>(), arguments);
  if (callee.Is<Macro*>()) return CallMacro(*callee.As<Macro*>(), arguments, nullptr);
  if (callee.Is<std::shared_ptr<const BoundMethod>>()) {
    return CallMethod(*callee.As<std::shared_ptr<const BoundMethod>>(), arguments);
  }
  if (callee.Is<LoopState*>()) return CallBuiltin({Builtin::kLoop, callee.As<LoopState*>()}, arguments);
  Fail("'", TypeName(callee), "' object is not callable");
}

Value Evaluator::CallMethod(const BoundMethod& method, const Arguments& arguments) {
  if (method.object.IsString()) return StringMethod(method.object, method.name, arguments);
  if (method.object.IsDict()) return DictMethod(method.object, method.name, arguments);
  return ListMethod(method.object, method.name, arguments);
}

Value Evaluator::CallBuiltin(const BuiltinRef& builtin, const Arguments& arguments) {
  switch (builtin.builtin) {
    case Builtin::kRange: return Range(arguments);
    case Builtin::kRaiseException: {
      const Value message = arguments.Get(0, "message", MakeText(""));
      Fail("raise_exception: ", Str(message)->bytes);
    }
    case Builtin::kStrftimeNow: return StrftimeNow(arguments);
    case Builtin::kNamespace:
    case Builtin::kDict: {
      std::vector<std::pair<Value, Value>> items;
      if (!arguments.positional.empty()) {
        if (!arguments.positional[0].IsDict()) Fail("dict() and namespace() take a dict, not a ", TypeName(arguments.positional[0]));
        items = arguments.positional[0].dict().items;
      }
      budget_->Spend(16 + items.size());
      for (const auto& [name, value] : arguments.named) {
        std::erase_if(items, [&, &key = name](const auto& item) { return item.first.IsString() && item.first.text().bytes == key; });
        items.emplace_back(MakeText(name), value);
      }
      if (builtin.builtin == Builtin::kDict) return MakeDict(std::move(items));
      namespaces_.push_back(std::make_unique<Namespace>());
      for (auto& [key, value] : items) {
        if (!key.IsString()) Fail("a namespace's attributes need names");
        namespaces_.back()->attributes.emplace_back(key.text().bytes, std::move(value));
      }
      return namespaces_.back().get();
    }
    case Builtin::kLoop: {
      LoopState* loop = builtin.loop;
      if (loop->stmt == nullptr || !loop->items) Fail("only a loop marked 'recursive' can be called, while it runs");
      if (++call_depth_ > max_call_depth_) FailTooMuch("loops and macros call each other more than ", max_call_depth_, " deep");
      TextBuilder outer = std::exchange(out_, TextBuilder(budget_));
      Scope* before = std::exchange(scope_, loop->scope);
      RunLoop(*loop->stmt, arguments.Need(0, "iterable", "loop()"), loop->depth + 1);
      scope_ = before;
      --call_depth_;
      return std::exchange(out_, std::move(outer)).TakePtr();
    }
    case Builtin::kLoopCycle: {
      if (arguments.positional.empty() || !builtin.loop->items) Fail("loop.cycle() needs values, inside its loop");
      return arguments.positional[builtin.loop->index % arguments.positional.size()];
    }
    case Builtin::kLoopChanged: {
      const Value now = MakeList(arguments.positional, true);
      const bool changed = !builtin.loop->changed || !Equal(*builtin.loop->changed, now, budget_);
      builtin.loop->changed = now;
      return changed;
    }
  }
  Fail("an unknown function");
}

Value Evaluator::CallMacro(const Macro& macro, const Arguments& arguments, const Value* caller) {
  if (++call_depth_ > max_call_depth_) FailTooMuch("macros call each other more than ", max_call_depth_, " deep");
  const auto& parameters = macro.stmt->parameters;
  if (arguments.positional.size() > parameters.size()) {
    Fail("macro '", macro.name, "' takes at most ", parameters.size(), " arguments, got ", arguments.positional.size());
  }
  for (const auto& [name, value] : arguments.named) {
    const bool known = std::any_of(parameters.begin(), parameters.end(), [&, &key = name](const auto& p) { return p.first == key; });
    if (!known) Fail("macro '", macro.name, "' has no parameter '", name, "'");
  }
  TextBuilder outer = std::exchange(out_, TextBuilder(budget_));
  {
    ScopeGuard scope(this, macro.scope);
    if (caller != nullptr) SetVariable("caller", *caller);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto& [name, otherwise] = parameters[i];
      const Value* given = arguments.Find(i, name);
      Value value = given != nullptr ? *given
                    : otherwise      ? Eval(*otherwise)
                                     : MakeUndefined(StrCat("parameter '", name, "' was not provided"));
      SetVariable(name, std::move(value));
    }
    RunBody(macro.stmt->body);
  }
  --call_depth_;
  return std::exchange(out_, std::move(outer)).TakePtr();
}

Value Evaluator::Range(const Arguments& arguments) {
  for (const Value& value : arguments.positional) {
    if (!value.IsInt()) Fail("range() takes integers, not ", TypeName(value));
  }
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) Fail("range() takes 1 to 3 integers");
  const int64_t start = given.size() > 1 ? given[0].AsInt() : 0;
  const int64_t stop = given[given.size() > 1 ? 1 : 0].AsInt();
  const int64_t step = given.size() > 2 ? given[2].AsInt() : 1;
  if (step == 0) Fail("range() with step 0");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) FailTooMuch("range() of more than ", kMaxRange, " numbers");
    items.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  budget_->Spend(items.size());
  return MakeList(std::move(items));
}

Value Evaluator::StrftimeNow(const Arguments& arguments) {
  const std::string format = Str(arguments.Need(0, "format", "strftime_now()"))->bytes;
  if (format.size() > 200) Fail("strftime_now(): the format is longer than 200 bytes");
  for (size_t i = 0; i + 1 < format.size(); ++i) {  // glibc's field widths could ask for gigabytes
    if (format[i] != '%') continue;
    if (format[i + 1] >= '0' && format[i + 1] <= '9') Fail("strftime_now(): widths are not supported");
    ++i;
  }
  if (format.empty()) return MakeText("");
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof(buffer), format.c_str(), &now_);
  return MakeText(std::string_view(buffer, size));
}

}  // namespace hone::jinja
