// How the evaluator computes expressions, attributes and items.
#include <algorithm>
#include <array>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_guards.h"

namespace hone::jinja {

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
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return Lookup(expr.name);
    case ExprKind::kList:
      return MakeList(EvalAll(expr.items));
    case ExprKind::kTuple:
      return MakeList(EvalAll(expr.items), true);
    case ExprKind::kDict:
      return EvalDict(expr);
    case ExprKind::kAttribute:
      return GetAttribute(Eval(*expr.items[0]), expr.name);
    case ExprKind::kSubscript: {
      const Value object = Eval(*expr.items[0]);
      return GetItem(object, Eval(*expr.items[1]));
    }
    case ExprKind::kSlice:
      return EvalSlice(expr);
    case ExprKind::kCall:
      return EvalCall(expr);
    case ExprKind::kFilter:
      return EvalFilter(expr);
    case ExprKind::kTest: {
      const Value value = Eval(*expr.items[0]);
      return ApplyTest(expr.name, value, EvalArguments(expr));
    }
    case ExprKind::kNot:
      return !Truth(Eval(*expr.items[0]));
    case ExprKind::kNegate: {
      const Value value = Eval(*expr.items[0]);
      return value.Is<double>() ? Value(-value.As<double>()) : Numeric("-", int64_t{0}, value);
    }
    case ExprKind::kPlus:
      return Numeric("+", int64_t{0}, Eval(*expr.items[0]));
    case ExprKind::kAnd: {
      Value left = Eval(*expr.items[0]);
      return Truth(left) ? Eval(*expr.items[1]) : left;
    }
    case ExprKind::kOr: {
      Value left = Eval(*expr.items[0]);
      return Truth(left) ? left : Eval(*expr.items[1]);
    }
    case ExprKind::kArithmetic:
      return EvalArithmetic(expr);
    case ExprKind::kConcat:
      return EvalConcat(expr);
    case ExprKind::kCompare:
      return EvalCompare(expr);
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
    auto same =
        std::find_if(items.begin(), items.end(), [&](const auto& item) { return Equal(item.first, key, budget_); });
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
  if (!object.IsString() && !object.IsList()) Fail("a ", TypeName(object), " cannot be sliced");
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
    const size_t end = begin + ByteOfChar(std::string_view(text.bytes).substr(begin),
                                          static_cast<size_t>(std::max<int64_t>(0, stop - start)));
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
  if (name == "previtem")
    return index > 0 ? loop->items->items[loop->index - 1] : MakeUndefined("there is no previous item");
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

}  // namespace hone::jinja
