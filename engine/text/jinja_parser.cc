#include "engine/text/jinja_parser.h"

#include <algorithm>
#include <initializer_list>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_lexer.h"

namespace hone::jinja {

namespace {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body ParseAll() { return ParseBody({}); }

 private:
  // --- Tokens -------------------------------------------------------------------------------------------------------
  const Token& Peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token Take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_.back(); }
  bool IsOperator(std::string_view text) const { return Peek().kind == TokenKind::kOperator && Peek().text == text; }
  bool IsName(std::string_view text) const { return Peek().kind == TokenKind::kName && Peek().text == text; }
  bool Accept(std::string_view op) {
    if (!IsOperator(op)) return false;
    Take();
    return true;
  }
  bool AcceptName(std::string_view name) {
    if (!IsName(name)) return false;
    Take();
    return true;
  }
  [[noreturn]] void FailHere(const std::string& message) const { throw TemplateFault(Fault::kInvalid, Peek().line, message); }
  std::string Found() const {
    switch (Peek().kind) {
      case TokenKind::kEnd: return "the end of the template";
      case TokenKind::kBlockEnd: return "'%}'";
      case TokenKind::kVariableEnd: return "'}}'";
      case TokenKind::kString: return "a string";
      default: return StrCat("'", Peek().text, "'");
    }
  }
  void Expect(std::string_view op) {
    if (!Accept(op)) FailHere(StrCat("expected '", op, "', found ", Found()));
  }
  void ExpectBlockEnd() {
    if (Peek().kind != TokenKind::kBlockEnd) FailHere(StrCat("expected '%}', found ", Found()));
    Take();
  }
  std::string ExpectName() {
    if (Peek().kind != TokenKind::kName) FailHere(StrCat("expected a name, found ", Found()));
    return Take().text;
  }

  class DepthGuard {
   public:
    explicit DepthGuard(Parser* parser) : parser_(parser) {
      if (++parser_->depth_ > kMaxSyntaxDepth) parser_->FailHere(StrCat("nested more than ", kMaxSyntaxDepth, " deep"));
    }
    ~DepthGuard() { --parser_->depth_; }

   private:
    Parser* parser_;
  };

  // --- Statements ---------------------------------------------------------------------------------------------------
  // Up to a block whose name is among `ends` (which is consumed up to its name; *end tells which), or the template's end.
  Body ParseBody(std::initializer_list<std::string_view> ends, std::string* end = nullptr) {
    DepthGuard guard(this);
    const int begun = Peek().line;
    Body body;
    while (Peek().kind != TokenKind::kEnd) {
      if (Peek().kind == TokenKind::kData) {
        StmtPtr stmt = NewStmt(StmtKind::kData);
        stmt->text = MakeText(Take().text);
        body.push_back(std::move(stmt));
      } else if (Peek().kind == TokenKind::kVariableBegin) {
        Take();
        StmtPtr stmt = NewStmt(StmtKind::kPrint);
        stmt->expr = ParseTuple(true);
        if (Peek().kind != TokenKind::kVariableEnd) FailHere(StrCat("expected '}}', found ", Found()));
        Take();
        body.push_back(std::move(stmt));
      } else {
        Take();  // {%
        for (std::string_view name : ends) {
          if (!AcceptName(name)) continue;
          if (end != nullptr) *end = std::string(name);
          return body;
        }
        body.push_back(ParseStatement());
      }
    }
    if (ends.size() > 0) {
      throw TemplateFault(Fault::kInvalid, begun, StrCat("the block that begins here has no {% ", *(ends.end() - 1), " %}"));
    }
    return body;
  }

  StmtPtr NewStmt(StmtKind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = Peek().line;
    return stmt;
  }

  StmtPtr ParseStatement() {
    const int line = Peek().line;
    const std::string tag = ExpectName();
    StmtPtr stmt = ParseTag(tag);
    stmt->line = line;
    return stmt;
  }

  StmtPtr ParseTag(const std::string& tag) {
    if (tag == "if") return ParseIf();
    if (tag == "for") return ParseFor();
    if (tag == "set") return ParseSet();
    if (tag == "macro") return ParseMacro();
    if (tag == "call") return ParseCallBlock();
    if (tag == "filter") return ParseFilterBlock();
    if (tag == "with") return ParseWith();
    if (tag == "generation") return ParseGeneration();
    if (tag == "print") {
      StmtPtr stmt = NewStmt(StmtKind::kPrint);
      stmt->expr = ParseTuple(true);
      ExpectBlockEnd();
      return stmt;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) FailHere(StrCat("{% ", tag, " %} outside a loop"));
      ExpectBlockEnd();
      return NewStmt(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue);
    }
    if (tag.rfind("end", 0) == 0 || tag == "else" || tag == "elif") FailHere(StrCat("{% ", tag, " %} without its beginning"));
    FailHere(StrCat("the tag {% ", tag, " %} is not supported"));
  }

  StmtPtr ParseIf() {
    StmtPtr stmt = NewStmt(StmtKind::kIf);
    bool is_else = false;
    while (true) {
      ExprPtr condition = is_else ? nullptr : ParseTuple(false);
      ExpectBlockEnd();
      std::string end;
      Body body = is_else ? ParseBody({"endif"}, &end) : ParseBody({"elif", "else", "endif"}, &end);
      stmt->branches.emplace_back(std::move(condition), std::move(body));
      if (end == "endif") break;
      is_else = end == "else";
    }
    ExpectBlockEnd();
    return stmt;
  }

  StmtPtr ParseFor() {
    StmtPtr stmt = NewStmt(StmtKind::kFor);
    stmt->target = ParseTarget();
    if (!AcceptName("in")) FailHere(StrCat("expected 'in', found ", Found()));
    stmt->expr = ParseTuple(false);
    if (AcceptName("if")) stmt->condition = ParseExpression();
    stmt->recursive = AcceptName("recursive");
    ExpectBlockEnd();
    std::string end;
    ++loops_;
    stmt->body = ParseBody({"else", "endfor"}, &end);
    --loops_;
    if (end == "else") {
      ExpectBlockEnd();
      stmt->else_body = ParseBody({"endfor"});
    }
    ExpectBlockEnd();
    return stmt;
  }

  StmtPtr ParseSet() {
    StmtPtr stmt = NewStmt(StmtKind::kSet);
    stmt->target = ParseTarget();
    if (Accept("=")) {
      stmt->expr = ParseTuple(true);
      ExpectBlockEnd();
      return stmt;
    }
    if (stmt->target->kind == ExprKind::kTuple) FailHere(StrCat("expected '=', found ", Found()));
    stmt->kind = StmtKind::kSetBlock;
    if (IsOperator("|")) stmt->expr = ParsePipes(nullptr);
    ExpectBlockEnd();
    stmt->body = ParseBody({"endset"});
    ExpectBlockEnd();
    return stmt;
  }

  // A body that `break` cannot leave.
  Body ParseClosedBody(std::string_view end) {
    const int loops = loops_;
    loops_ = 0;
    Body body = ParseBody({end});
    loops_ = loops;
    ExpectBlockEnd();
    return body;
  }

  void ParseParameters(Stmt* stmt) {
    Expect("(");
    while (!Accept(")")) {
      if (!stmt->parameters.empty()) Expect(",");
      std::string name = ExpectName();
      ExprPtr value = Accept("=") ? ParseExpression() : nullptr;
      if (!value && !stmt->parameters.empty() && stmt->parameters.back().second) {
        FailHere("a parameter without a default follows one with a default");
      }
      stmt->parameters.emplace_back(std::move(name), std::move(value));
    }
  }

  StmtPtr ParseMacro() {
    StmtPtr stmt = NewStmt(StmtKind::kMacro);
    stmt->name = ExpectName();
    ParseParameters(stmt.get());
    ExpectBlockEnd();
    stmt->body = ParseClosedBody("endmacro");
    return stmt;
  }

  StmtPtr ParseCallBlock() {
    StmtPtr stmt = NewStmt(StmtKind::kCall);
    if (IsOperator("(")) ParseParameters(stmt.get());
    stmt->expr = ParseExpression();
    if (stmt->expr->kind != ExprKind::kCall) FailHere("{% call %} needs a call");
    ExpectBlockEnd();
    stmt->body = ParseClosedBody("endcall");
    return stmt;
  }

  StmtPtr ParseFilterBlock() {
    StmtPtr stmt = NewStmt(StmtKind::kFilter);
    ExprPtr first = ParseFilter(nullptr);
    stmt->expr = ParsePipes(std::move(first));
    ExpectBlockEnd();
    stmt->body = ParseClosedBody("endfilter");
    return stmt;
  }

  StmtPtr ParseWith() {
    StmtPtr stmt = NewStmt(StmtKind::kWith);
    while (Peek().kind != TokenKind::kBlockEnd) {
      if (!stmt->parameters.empty()) Expect(",");
      std::string name = ExpectName();
      Expect("=");
      stmt->parameters.emplace_back(std::move(name), ParseExpression());
    }
    ExpectBlockEnd();
    stmt->body = ParseBody({"endwith"});
    ExpectBlockEnd();
    return stmt;
  }

  StmtPtr ParseGeneration() {
    StmtPtr stmt = NewStmt(StmtKind::kScope);
    ExpectBlockEnd();
    stmt->body = ParseClosedBody("endgeneration");
    return stmt;
  }

  // name, name.attribute (a namespace's), or several of them.
  ExprPtr ParseTarget() {
    ExprPtr first = ParseOneTarget();
    if (!IsOperator(",")) return first;
    ExprPtr tuple = NewExpr(ExprKind::kTuple);
    tuple->items.push_back(std::move(first));
    while (Accept(",")) {
      if (Peek().kind != TokenKind::kName && !IsOperator("(")) break;
      if (IsName("in")) break;
      tuple->items.push_back(ParseOneTarget());
    }
    return Finish(std::move(tuple));
  }

  ExprPtr ParseOneTarget() {
    DepthGuard guard(this);
    if (Accept("(")) {
      ExprPtr inner = ParseTarget();
      Expect(")");
      return inner;
    }
    ExprPtr target = NewExpr(ExprKind::kName);
    target->name = ExpectName();
    for (std::string_view reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (target->name == reserved) FailHere(StrCat("cannot assign to '", target->name, "'"));
    }
    if (!Accept(".")) return target;
    ExprPtr attribute = NewExpr(ExprKind::kAttribute);
    attribute->name = ExpectName();
    attribute->items.push_back(std::move(target));
    return Finish(std::move(attribute));
  }

  // --- Expressions --------------------------------------------------------------------------------------------------
  ExprPtr NewExpr(ExprKind kind) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = Peek().line;
    return expr;
  }

  ExprPtr Finish(ExprPtr expr) const {
    auto raise = [&](const ExprPtr& child) {
      if (child) expr->height = std::max(expr->height, child->height + 1);
    };
    for (const ExprPtr& item : expr->items) raise(item);
    for (const ExprPtr& item : expr->arguments) raise(item);
    for (const auto& [name, item] : expr->keywords) raise(item);
    if (expr->height > kMaxExprHeight) FailHere("the expression is too long or too deep");
    return expr;
  }

  ExprPtr Make(ExprKind kind, int line, ExprPtr a, ExprPtr b = nullptr) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    expr->items.push_back(std::move(a));
    if (b) expr->items.push_back(std::move(b));
    return Finish(std::move(expr));
  }

  bool EndsTuple() const {
    return Peek().kind == TokenKind::kVariableEnd || Peek().kind == TokenKind::kBlockEnd || IsOperator(")") ||
           Peek().kind == TokenKind::kEnd;
  }

  // Expressions separated by commas are a tuple.
  ExprPtr ParseTuple(bool with_condition, bool parenthesised = false) {
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

  ExprPtr ParseExpression() {
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

  ExprPtr ParseOr() {
    ExprPtr left = ParseAnd();
    while (IsName("or")) {
      const int line = Take().line;
      left = Make(ExprKind::kOr, line, std::move(left), ParseAnd());
    }
    return left;
  }

  ExprPtr ParseAnd() {
    ExprPtr left = ParseNot();
    while (IsName("and")) {
      const int line = Take().line;
      left = Make(ExprKind::kAnd, line, std::move(left), ParseNot());
    }
    return left;
  }

  ExprPtr ParseNot() {
    if (!IsName("not")) return ParseCompare();
    DepthGuard guard(this);
    const int line = Take().line;
    return Make(ExprKind::kNot, line, ParseNot());
  }

  // Consumes a comparison operator; empty if there is none.
  std::string TakeComparison() {
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

  ExprPtr ParseCompare() {
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

  ExprPtr Arithmetic(std::string op, int line, ExprPtr left, ExprPtr right) {
    ExprPtr expr = Make(ExprKind::kArithmetic, line, std::move(left), std::move(right));
    expr->name = std::move(op);
    return expr;
  }

  ExprPtr ParseSum() {
    ExprPtr left = ParseConcat();
    while (IsOperator("+") || IsOperator("-")) {
      const Token op = Take();
      left = Arithmetic(op.text, op.line, std::move(left), ParseConcat());
    }
    return left;
  }

  ExprPtr ParseConcat() {
    ExprPtr first = ParseProduct();
    if (!IsOperator("~")) return first;
    ExprPtr expr = Make(ExprKind::kConcat, Peek().line, std::move(first));
    while (Accept("~")) expr->items.push_back(ParseProduct());
    return Finish(std::move(expr));
  }

  ExprPtr ParseProduct() {
    ExprPtr left = ParsePower();
    while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
      const Token op = Take();
      left = Arithmetic(op.text, op.line, std::move(left), ParsePower());
    }
    return left;
  }

  ExprPtr ParsePower() {
    ExprPtr left = ParseUnary(true);
    while (IsOperator("**")) {
      const Token op = Take();
      left = Arithmetic(op.text, op.line, std::move(left), ParseUnary(true));
    }
    return left;
  }

  ExprPtr ParseUnary(bool with_filter) {
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

  ExprPtr Constant(Value value) {
    ExprPtr expr = NewExpr(ExprKind::kConst);
    expr->value = std::move(value);
    Take();
    return expr;
  }

  ExprPtr ParsePrimary() {
    switch (Peek().kind) {
      case TokenKind::kInteger: return Constant(Peek().integer);
      case TokenKind::kFloat: return Constant(Peek().number);
      case TokenKind::kString: {
        ExprPtr expr = NewExpr(ExprKind::kConst);
        std::string text;
        while (Peek().kind == TokenKind::kString) text += Take().text;
        expr->value = MakeText(text);
        return expr;
      }
      case TokenKind::kName: return ParseNamePrimary();
      default: break;
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

  ExprPtr ParseNamePrimary() {
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

  ExprPtr ParseListOrDict(std::string_view open, std::string_view close) {
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

  ExprPtr ParsePostfix(ExprPtr expr) {
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

  ExprPtr ParseDot(ExprPtr object) {
    const int line = Take().line;
    if (Peek().kind == TokenKind::kInteger) {
      ExprPtr index = Constant(Peek().integer);
      return Make(ExprKind::kSubscript, line, std::move(object), std::move(index));
    }
    ExprPtr expr = Make(ExprKind::kAttribute, line, std::move(object));
    expr->name = ExpectName();
    return expr;
  }

  ExprPtr ParseSubscript(ExprPtr object) {
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

  void ParseArguments(Expr* expr) {
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

  ExprPtr ParseCall(ExprPtr callee) {
    ExprPtr expr = Make(ExprKind::kCall, Peek().line, std::move(callee));
    ParseArguments(expr.get());
    return Finish(std::move(expr));
  }

  // | filter, is test and ( calls ) after an operand. A null operand stands for the body of a block.
  ExprPtr ParsePipes(ExprPtr expr) {
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

  std::string ParseDottedName() {
    std::string name = ExpectName();
    while (Accept(".")) name = StrCat(name, ".", ExpectName());
    return name;
  }

  ExprPtr ParseFilter(ExprPtr operand) {
    ExprPtr expr = NewExpr(ExprKind::kFilter);
    expr->name = ParseDottedName();
    expr->items.push_back(std::move(operand));
    if (IsOperator("(")) ParseArguments(expr.get());
    return Finish(std::move(expr));
  }

  ExprPtr ParseTest(ExprPtr operand) {
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

  bool BeginsTestArgument() const {
    switch (Peek().kind) {
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat: return true;
      case TokenKind::kName:
        for (std::string_view keyword : {"else", "or", "and", "if", "in", "not", "recursive"}) {
          if (Peek().text == keyword) return false;
        }
        return true;
      default: return IsOperator("[") || IsOperator("{");
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Body ParseTemplate(std::string_view source) { return Parser(Tokenize(source)).ParseAll(); }

}  // namespace hone::jinja
