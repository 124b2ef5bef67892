// The syntax tree of a template. One node type for expressions and one for statements; `kind` says which fields count.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja_value.h"

namespace hone::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;

enum class ExprKind : uint8_t {
  kConst,      // value
  kName,       // name
  kList,       // items
  kTuple,      // items
  kDict,       // items: key, value, key, value, ...
  kAttribute,  // items[0] . name
  kSubscript,  // items[0] [ items[1] ]
  kSlice,      // items[0] [ items[1] : items[2] : items[3] ], the last three may be null
  kCall,       // items[0] ( arguments )
  kFilter,     // items[0] | name ( arguments ); items[0] null inside {% filter %}
  kTest,       // items[0] is name ( arguments )
  kNot,        // items[0]
  kNegate,
  kPlus,
  kAnd,  // items[0], items[1]
  kOr,
  kArithmetic,   // items[0] name items[1]; name: + - * / // % **
  kConcat,       // items, joined as text
  kCompare,      // items[0] operators[0] items[1] operators[1] items[2] ...
  kConditional,  // items[0] if items[1] else items[2] (may be null)
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int height = 1;  // levels below and with it
  Value value;
  std::string name;
  std::vector<ExprPtr> items;
  std::vector<std::string> operators;
  std::vector<ExprPtr> arguments;
  std::vector<std::pair<std::string, ExprPtr>> keywords;
};

enum class StmtKind : uint8_t {
  kData,      // text
  kPrint,     // expr
  kIf,        // branches: condition, body; a null condition is else
  kFor,       // target in expr, condition (may be null), body, else_body, recursive
  kSet,       // target = expr
  kSetBlock,  // target = body, through expr's filters if not null
  kMacro,     // name, parameters, body
  kCall,      // expr is the call; parameters, body: its caller
  kFilter,    // expr's filters over body
  kWith,      // parameters as assignments, body
  kScope,     // body in a scope of its own ({% generation %})
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kData;
  int line = 0;
  TextPtr text;
  std::string name;
  ExprPtr target, expr, condition;
  Body body, else_body;
  bool recursive = false;
  std::vector<std::pair<ExprPtr, Body>> branches;
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // default may be null
};

}  // namespace hone::jinja
