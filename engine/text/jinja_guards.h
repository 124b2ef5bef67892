// What the evaluator enters and leaves: levels of nesting and scopes of variables. Only the evaluator's own files
// include it.
#pragma once

#include <memory>
#include <utility>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_eval.h"

namespace hone::jinja {

inline constexpr int kMaxEvalDepth = 1500;  // blocks, expressions and macros inside one another while rendering

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

}  // namespace hone::jinja
