#include "client/context.h"

#include "client/contexts.h"
#include "proto/base/status.h"

namespace hone {

absl::Status Context::ConnectNow() {
  std::string name = context_flag.empty() ? environment.context : context_flag;
  if (socket_flag.empty()) {
    HONE_ASSIGN_OR_RETURN(const Contexts contexts, LoadContexts(environment));
    if (name.empty()) name = contexts.current;
    if (!name.empty()) {
      const auto found = contexts.all.find(name);
      if (found == contexts.all.end()) return NotFound("no context ", name, "; `hone config ls` lists them");
      HONE_ASSIGN_OR_RETURN(client, Client::Open(found->second));
      socket = found->second.address.empty() ? found->second.socket : found->second.address;
      return absl::OkStatus();
    }
  }
  HONE_ASSIGN_OR_RETURN(socket, FindSocket(environment, socket_flag));
  client = std::make_unique<Client>(socket);
  return absl::OkStatus();
}

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
