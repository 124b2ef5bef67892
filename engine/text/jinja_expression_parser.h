// The part of the parser that reads expressions, and the tokens both parts share.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_error.h"
#include "engine/text/jinja_lexer.h"
#include "engine/text/jinja_parser.h"

namespace hone::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
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
  [[noreturn]] void FailHere(const std::string& message) const {
    throw TemplateFault(Fault::kInvalid, Peek().line, message);
  }
  std::string Found() const {
    switch (Peek().kind) {
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kBlockEnd:
        return "'%}'";
      case TokenKind::kVariableEnd:
        return "'}}'";
      case TokenKind::kString:
        return "a string";
      default:
        return StrCat("'", Peek().text, "'");
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
    explicit DepthGuard(ExpressionParser* parser) : parser_(parser) {
      if (++parser_->depth_ > kMaxSyntaxDepth) parser_->FailHere(StrCat("nested more than ", kMaxSyntaxDepth, " deep"));
    }
    ~DepthGuard() { --parser_->depth_; }

   private:
    ExpressionParser* parser_;
  };

  // --- Expressions ---------------------------------------------------------------------------------------------------
  ExprPtr NewExpr(ExprKind kind) const;
  ExprPtr Finish(ExprPtr expr) const;
  ExprPtr Make(ExprKind kind, int line, ExprPtr a, ExprPtr b = nullptr) const;
  bool EndsTuple() const;
  // Expressions separated by commas are a tuple.
  ExprPtr ParseTuple(bool with_condition, bool parenthesised = false);
  ExprPtr ParseExpression();
  ExprPtr ParseOr();
  ExprPtr ParseAnd();
  ExprPtr ParseNot();
  // Consumes a comparison operator; empty if there is none.
  std::string TakeComparison();
  ExprPtr ParseCompare();
  ExprPtr Arithmetic(std::string op, int line, ExprPtr left, ExprPtr right);
  ExprPtr ParseSum();
  ExprPtr ParseConcat();
  ExprPtr ParseProduct();
  ExprPtr ParsePower();
  ExprPtr ParseUnary(bool with_filter);
  ExprPtr Constant(Value value);
  ExprPtr ParsePrimary();
  ExprPtr ParseNamePrimary();
  ExprPtr ParseListOrDict(std::string_view open, std::string_view close);
  ExprPtr ParsePostfix(ExprPtr expr);
  ExprPtr ParseDot(ExprPtr object);
  ExprPtr ParseSubscript(ExprPtr object);
  void ParseArguments(Expr* expr);
  ExprPtr ParseCall(ExprPtr callee);
  // | filter, is test and ( calls ) after an operand. A null operand stands for the body of a block.
  ExprPtr ParsePipes(ExprPtr expr);
  std::string ParseDottedName();
  ExprPtr ParseFilter(ExprPtr operand);
  ExprPtr ParseTest(ExprPtr operand);
  bool BeginsTestArgument() const;

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace hone::jinja
