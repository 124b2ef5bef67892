#include "engine/text/jinja_eval.h"

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_guards.h"

namespace hone::jinja {

// --- Arguments ------------------------------------------------------------------------------------------------------

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

Value Arguments::Get(size_t index, std::string_view name, const Value& otherwise) const {
  const Value* found = Find(index, name);
  return found != nullptr ? *found : otherwise;
}

const Value& Arguments::Need(size_t index, std::string_view name, std::string_view of) const {
  const Value* found = Find(index, name);
  if (found == nullptr) Fail(of, " needs the argument '", name, "'");
  return *found;
}

// --- Scopes ---------------------------------------------------------------------------------------------------------

Evaluator::~Evaluator() = default;

void Evaluator::Define(std::string name, Value value) {
  top_.variables.emplace_back(std::move(name), std::move(value));
}

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
    if (!object.Is<Namespace*>())
      Fail("only a namespace's attributes can be assigned, not those of a ", TypeName(object));
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
      case StmtKind::kData:
        out_.Append(*stmt.text);
        return Flow::kNext;
      case StmtKind::kPrint:
        Print(Eval(*stmt.expr));
        return Flow::kNext;
      case StmtKind::kIf:
        return RunIf(stmt);
      case StmtKind::kFor:
        return RunFor(stmt);
      case StmtKind::kSet:
      case StmtKind::kSetBlock:
        RunSet(stmt);
        return Flow::kNext;
      case StmtKind::kMacro:
        RunMacro(stmt);
        return Flow::kNext;
      case StmtKind::kCall:
        RunCallBlock(stmt);
        return Flow::kNext;
      case StmtKind::kFilter:
        block_value_ = Capture(stmt.body);
        Print(Eval(*stmt.expr));
        return Flow::kNext;
      case StmtKind::kWith:
        return RunWith(stmt);
      case StmtKind::kScope:
        out_.Append(*Capture(stmt.body));
        return Flow::kNext;
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
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

Evaluator::Flow Evaluator::RunFor(const Stmt& stmt) { return RunLoop(stmt, Eval(*stmt.expr), 0); }

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

}  // namespace hone::jinja
