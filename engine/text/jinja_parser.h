// Tokens to a syntax tree: Jinja's grammar, less inheritance, includes and imports. Throws TemplateFault.
#pragma once

#include <string_view>

#include "engine/text/jinja_ast.h"

namespace hone::jinja {

inline constexpr int kMaxSyntaxDepth = 200;  // blocks and expressions inside one another
inline constexpr int kMaxExprHeight = 200;   // of one expression's tree; long chains of + or | too

Body ParseTemplate(std::string_view source);

}  // namespace hone::jinja
