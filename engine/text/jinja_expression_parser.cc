#include "engine/text/jinja_expression_parser.h"

namespace hone::jinja {

ExprPtr ExpressionParser::NewExpr(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = Peek().line;
  return expr;
}

ExprPtr ExpressionParser::Finish(ExprPtr expr) const {
  auto raise = [&](const ExprPtr& child) {
    if (child) expr->height = std::max(expr->height, child->height + 1);
  };
  for (const ExprPtr& item : expr->items) raise(item);
  for (const ExprPtr& item : expr->arguments) raise(item);
  for (const auto& [name, item] : expr->keywords) raise(item);
  if (expr->height > kMaxExprHeight) FailHere("the expression is too long or too deep");
  return expr;
}

ExprPtr ExpressionParser::Make(ExprKind kind, int line, ExprPtr a, ExprPtr b) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  expr->items.push_back(std::move(a));
  if (b) expr->items.push_back(std::move(b));
  return Finish(std::move(expr));
}

bool ExpressionParser::EndsTuple() const {
  return Peek().kind == TokenKind::kVariableEnd || Peek().kind == TokenKind::kBlockEnd || IsOperator(")") ||
         Peek().kind == TokenKind::kEnd;
}

ExprPtr ExpressionParser::ParseTuple(bool with_condition, bool parenthesised) {
  DepthGuard guard(this);
  ExprPtr tuple = NewExpr(ExprKind::kTuple);
  bool comma = false;
  while (!EndsTuple()) {
    tuple->items.push_back(with_condition ? ParseExpression() : ParseOr());
    comma = IsOperator(",");
    if (!Accept(",")) break;
  }
  if (tuple->items.size() == 1 && !comma) return std::move(tuple->items[0]);
  if (tuple->items.empty() && !parenthesised) FailHere(StrCat("expected an expression, found ", Found()));
  return Finish(std::move(tuple));
}

ExprPtr ExpressionParser::ParseExpression() {
  DepthGuard guard(this);
  ExprPtr value = ParseOr();
  while (IsName("if")) {
    const int line = Take().line;
    ExprPtr condition = ParseOr();
    ExprPtr otherwise = AcceptName("else") ? ParseExpression() : nullptr;
    ExprPtr expr = Make(ExprKind::kConditional, line, std::move(value), std::move(condition));
    expr->items.push_back(std::move(otherwise));
    value = Finish(std::move(expr));
  }
  return value;
}

ExprPtr ExpressionParser::ParseOr() {
  ExprPtr left = ParseAnd();
  while (IsName("or")) {
    const int line = Take().line;
    left = Make(ExprKind::kOr, line, std::move(left), ParseAnd());
  }
  return left;
}

ExprPtr ExpressionParser::ParseAnd() {
  ExprPtr left = ParseNot();
  while (IsName("and")) {
    const int line = Take().line;
    left = Make(ExprKind::kAnd, line, std::move(left), ParseNot());
  }
  return left;
}

ExprPtr ExpressionParser::ParseNot() {
  if (!IsName("not")) return ParseCompare();
  DepthGuard guard(this);
  const int line = Take().line;
  return Make(ExprKind::kNot, line, ParseNot());
}

std::string ExpressionParser::TakeComparison() {
  for (std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
    if (Accept(op)) return std::string(op);
  }
  if (AcceptName("in")) return "in";
  if (IsName("not") && Peek(1).kind == TokenKind::kName && Peek(1).text == "in") {
    Take();
    Take();
    return "not in";
  }
  return "";
}

ExprPtr ExpressionParser::ParseCompare() {
  ExprPtr left = ParseSum();
  const int line = Peek().line;
  std::string op = TakeComparison();
  if (op.empty()) return left;
  ExprPtr expr = Make(ExprKind::kCompare, line, std::move(left));
  for (; !op.empty(); op = TakeComparison()) {
    expr->operators.push_back(op);
    expr->items.push_back(ParseSum());
  }
  return Finish(std::move(expr));
}

ExprPtr ExpressionParser::Arithmetic(std::string op, int line, ExprPtr left, ExprPtr right) {
  ExprPtr expr = Make(ExprKind::kArithmetic, line, std::move(left), std::move(right));
  expr->name = std::move(op);
  return expr;
}

ExprPtr ExpressionParser::ParseSum() {
  ExprPtr left = ParseConcat();
  while (IsOperator("+") || IsOperator("-")) {
    const Token op = Take();
    left = Arithmetic(op.text, op.line, std::move(left), ParseConcat());
  }
  return left;
}

ExprPtr ExpressionParser::ParseConcat() {
  ExprPtr first = ParseProduct();
  if (!IsOperator("~")) return first;
  ExprPtr expr = Make(ExprKind::kConcat, Peek().line, std::move(first));
  while (Accept("~")) expr->items.push_back(ParseProduct());
  return Finish(std::move(expr));
}

ExprPtr ExpressionParser::ParseProduct() {
  ExprPtr left = ParsePower();
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    const Token op = Take();
    left = Arithmetic(op.text, op.line, std::move(left), ParsePower());
  }
  return left;
}

ExprPtr ExpressionParser::ParsePower() {
  ExprPtr left = ParseUnary(true);
  while (IsOperator("**")) {
    const Token op = Take();
    left = Arithmetic(op.text, op.line, std::move(left), ParseUnary(true));
  }
  return left;
}

ExprPtr ExpressionParser::ParseUnary(bool with_filter) {
  DepthGuard guard(this);
  ExprPtr expr;
  if (IsOperator("-") || IsOperator("+")) {
    const Token op = Take();
    expr = Make(op.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, op.line, ParseUnary(false));
  } else {
    expr = ParsePostfix(ParsePrimary());
  }
  return with_filter ? ParsePipes(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::Constant(Value value) {
  ExprPtr expr = NewExpr(ExprKind::kConst);
  expr->value = std::move(value);
  Take();
  return expr;
}

ExprPtr ExpressionParser::ParsePrimary() {
  switch (Peek().kind) {
    case TokenKind::kInteger:
      return Constant(Peek().integer);
    case TokenKind::kFloat:
      return Constant(Peek().number);
    case TokenKind::kString: {
      ExprPtr expr = NewExpr(ExprKind::kConst);
      std::string text;
      while (Peek().kind == TokenKind::kString) text += Take().text;
      expr->value = MakeText(text);
      return expr;
    }
    case TokenKind::kName:
      return ParseNamePrimary();
    default:
      break;
  }
  if (Accept("(")) {
    ExprPtr inner = ParseTuple(true, true);
    Expect(")");
    return inner;
  }
  if (IsOperator("[")) return ParseListOrDict("[", "]");
  if (IsOperator("{")) return ParseListOrDict("{", "}");
  FailHere(StrCat("expected an expression, found ", Found()));
}

ExprPtr ExpressionParser::ParseNamePrimary() {
  const std::string& name = Peek().text;
  if (name == "true" || name == "True") return Constant(true);
  if (name == "false" || name == "False") return Constant(false);
  if (name == "none" || name == "None") return Constant(None{});
  for (std::string_view keyword : {"if", "else", "elif", "in", "is", "and", "or", "not", "for"}) {
    if (name == keyword) FailHere(StrCat("expected an expression, found '", name, "'"));
  }
  ExprPtr expr = NewExpr(ExprKind::kName);
  expr->name = Take().text;
  return expr;
}

ExprPtr ExpressionParser::ParseListOrDict(std::string_view open, std::string_view close) {
  const bool dict = open == "{";
  ExprPtr expr = NewExpr(dict ? ExprKind::kDict : ExprKind::kList);
  Expect(open);
  while (!Accept(close)) {
    if (!expr->items.empty()) {
      Expect(",");
      if (Accept(close)) break;
    }
    expr->items.push_back(ParseExpression());
    if (!dict) continue;
    Expect(":");
    expr->items.push_back(ParseExpression());
  }
  return Finish(std::move(expr));
}

ExprPtr ExpressionParser::ParsePostfix(ExprPtr expr) {
  while (true) {
    if (IsOperator(".")) {
      expr = ParseDot(std::move(expr));
    } else if (IsOperator("[")) {
      expr = ParseSubscript(std::move(expr));
    } else if (IsOperator("(")) {
      expr = ParseCall(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::ParseDot(ExprPtr object) {
  const int line = Take().line;
  if (Peek().kind == TokenKind::kInteger) {
    ExprPtr index = Constant(Peek().integer);
    return Make(ExprKind::kSubscript, line, std::move(object), std::move(index));
  }
  ExprPtr expr = Make(ExprKind::kAttribute, line, std::move(object));
  expr->name = ExpectName();
  return expr;
}

ExprPtr ExpressionParser::ParseSubscript(ExprPtr object) {
  const int line = Take().line;
  ExprPtr parts[3];
  int colons = 0;
  while (!IsOperator("]")) {
    if (Accept(":")) {
      if (++colons > 2) FailHere("a slice has at most two ':'");
      continue;
    }
    if (parts[colons]) FailHere(StrCat("expected ']', found ", Found()));
    parts[colons] = ParseExpression();
  }
  Expect("]");
  if (colons == 0) {
    if (!parts[0]) FailHere("a subscript is empty");
    return Make(ExprKind::kSubscript, line, std::move(object), std::move(parts[0]));
  }
  ExprPtr expr = Make(ExprKind::kSlice, line, std::move(object));
  for (ExprPtr& part : parts) expr->items.push_back(std::move(part));
  return Finish(std::move(expr));
}

void ExpressionParser::ParseArguments(Expr* expr) {
  Expect("(");
  bool first = true;
  while (!Accept(")")) {
    if (!first) {
      Expect(",");
      if (Accept(")")) return;
    }
    first = false;
    if (IsOperator("*") || IsOperator("**")) FailHere("* and ** in calls are not supported");
    if (Peek().kind == TokenKind::kName && Peek(1).kind == TokenKind::kOperator && Peek(1).text == "=") {
      std::string name = Take().text;
      Take();
      expr->keywords.emplace_back(std::move(name), ParseExpression());
      continue;
    }
    if (!expr->keywords.empty()) FailHere("a positional argument follows a named one");
    expr->arguments.push_back(ParseExpression());
  }
}

ExprPtr ExpressionParser::ParseCall(ExprPtr callee) {
  ExprPtr expr = Make(ExprKind::kCall, Peek().line, std::move(callee));
  ParseArguments(expr.get());
  return Finish(std::move(expr));
}

ExprPtr ExpressionParser::ParsePipes(ExprPtr expr) {
  while (true) {
    if (IsOperator("|")) {
      Take();
      expr = ParseFilter(std::move(expr));
    } else if (IsName("is")) {
      expr = ParseTest(std::move(expr));
    } else if (IsOperator("(")) {
      expr = ParseCall(std::move(expr));
    } else {
      return expr;
    }
  }
}

std::string ExpressionParser::ParseDottedName() {
  std::string name = ExpectName();
  while (Accept(".")) name = StrCat(name, ".", ExpectName());
  return name;
}

ExprPtr ExpressionParser::ParseFilter(ExprPtr operand) {
  ExprPtr expr = NewExpr(ExprKind::kFilter);
  expr->name = ParseDottedName();
  expr->items.push_back(std::move(operand));
  if (IsOperator("(")) ParseArguments(expr.get());
  return Finish(std::move(expr));
}

ExprPtr ExpressionParser::ParseTest(ExprPtr operand) {
  const int line = Take().line;
  const bool negated = AcceptName("not");
  ExprPtr expr = NewExpr(ExprKind::kTest);
  expr->line = line;
  expr->name = ParseDottedName();
  expr->items.push_back(std::move(operand));
  if (IsOperator("(")) {
    ParseArguments(expr.get());
  } else if (BeginsTestArgument()) {
    if (IsName("is")) FailHere("tests cannot be chained with 'is'");
    expr->arguments.push_back(ParsePostfix(ParsePrimary()));
  }
  expr = Finish(std::move(expr));
  return negated ? Make(ExprKind::kNot, line, std::move(expr)) : std::move(expr);
}

bool ExpressionParser::BeginsTestArgument() const {
  switch (Peek().kind) {
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return true;
    case TokenKind::kName:
      for (std::string_view keyword : {"else", "or", "and", "if", "in", "not", "recursive"}) {
        if (Peek().text == keyword) return false;
      }
      return true;
    default:
      return IsOperator("[") || IsOperator("{");
  }
}

}  // namespace hone::jinja
