// Calls of macros, methods and the few functions there are.
#include <algorithm>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_guards.h"

namespace hone::jinja {

namespace {

constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox

}  // namespace

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
    case Builtin::kRange:
      return Range(arguments);
    case Builtin::kRaiseException: {
      const Value message = arguments.Get(0, "message", MakeText(""));
      Fail("raise_exception: ", Str(message)->bytes);
    }
    case Builtin::kStrftimeNow:
      return StrftimeNow(arguments);
    case Builtin::kNamespace:
    case Builtin::kDict: {
      std::vector<std::pair<Value, Value>> items;
      if (!arguments.positional.empty()) {
        if (!arguments.positional[0].IsDict())
          Fail("dict() and namespace() take a dict, not a ", TypeName(arguments.positional[0]));
        items = arguments.positional[0].dict().items;
      }
      budget_->Spend(16 + items.size());
      for (const auto& [name, value] : arguments.named) {
        std::erase_if(items, [&, &key = name](const auto& item) {
          return item.first.IsString() && item.first.text().bytes == key;
        });
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
      if (++call_depth_ > max_call_depth_)
        FailTooMuch("loops and macros call each other more than ", max_call_depth_, " deep");
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
    const bool known =
        std::any_of(parameters.begin(), parameters.end(), [&, &key = name](const auto& p) { return p.first == key; });
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
