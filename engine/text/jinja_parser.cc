#include "engine/text/jinja_parser.h"

#include <algorithm>
#include <initializer_list>

#include "engine/text/jinja_error.h"
#include "engine/text/jinja_expression_parser.h"
#include "engine/text/jinja_lexer.h"

namespace hone::jinja {

namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body ParseAll() { return ParseBody({}); }

 private:
  // --- Statements ---------------------------------------------------------------------------------------------------
  // Up to a block whose name is among `ends` (which is consumed up to its name; *end tells which), or the template's
  // end.
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
      throw TemplateFault(Fault::kInvalid, begun,
                          StrCat("the block that begins here has no {% ", *(ends.end() - 1), " %}"));
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
    if (tag.rfind("end", 0) == 0 || tag == "else" || tag == "elif")
      FailHere(StrCat("{% ", tag, " %} without its beginning"));
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

  int loops_ = 0;
};

}  // namespace

Body ParseTemplate(std::string_view source) { return Parser(Tokenize(source)).ParseAll(); }

}  // namespace hone::jinja
