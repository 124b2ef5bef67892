#include "client/context.h"

#include "proto/base/status.h"

namespace hone {

int Fail(const Context& context, const absl::Status& status) {
  const bool colours = context.terminal.err_colours;
  const std::string reason = ErrorReason(status);
  const bool telling = !reason.empty() && reason != absl::StatusCodeToString(status.code());
  Err(StrCat("hone: ", Paint(colours, Colour::kRed, "error:"), " ", Printable(ToStd(status.message())),
             telling ? StrCat(" (", Printable(reason), ")") : "", "\n"));
  if (const std::string hint = ErrorHint(status); !hint.empty())
    Err(StrCat("  ", Paint(colours, Colour::kBold, "hint:"), " ", hint, "\n"));
  return ExitCodeOf(status);
}

void Note(const Context& context, std::string_view text) {
  if (!context.quiet) Err(StrCat(text, "\n"));
}

void Warn(const Context& context, std::string_view text) {
  Err(StrCat("hone: ", Paint(context.terminal.err_colours, Colour::kYellow, "warning:"), " ", Printable(text), "\n"));
}

}  // namespace hone
